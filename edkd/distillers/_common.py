"""Maths that several losses share."""

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precisions become float32, float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row, (N,), from log-probabilities (N,C)."""
    return (log_p.exp() * (log_p - log_q)).sum(1)


def warmup_factor(epoch: int, warmup: int) -> float:
    """min(epoch / warmup, 1), epoch counted from 1; 1 where warmup is 0."""
    return min(epoch / warmup, 1.0) if warmup else 1.0


def decouple(logits: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Split softened predictions into the target against the rest, and the rest among themselves.

    With z = logits / temperature and the margin m = z_target - logsumexp(z_others), the softened probability of
    the target is sigmoid(m): nothing is exponentiated that could overflow, and no logarithm is taken of a sum of
    probabilities that could be 0.

    Args:
        logits: (N,C), any floating type.
        target: (N,), class numbers.

    Returns:
        The margin m (N,), and the log-probabilities among the other classes (N,C), where the target's own entry is
        the lowest finite number (probability 0).
    """
    z = at_least_float32(logits) / temperature
    is_target = torch.arange(z.shape[1], device=z.device) == target[:, None]
    others = z.masked_fill(is_target, torch.finfo(z.dtype).min)
    margin = torch.where(is_target, z, 0.0).sum(1) - others.logsumexp(1)
    return margin, F.log_softmax(others, 1)


def binary_kl(margin_p: Tensor, margin_q: Tensor) -> Tensor:
    """KL of two Bernoulli distributions, (N,), of success probabilities sigmoid(margin)."""
    yes = margin_p.sigmoid() * (F.logsigmoid(margin_p) - F.logsigmoid(margin_q))
    no = (-margin_p).sigmoid() * (F.logsigmoid(-margin_p) - F.logsigmoid(-margin_q))
    return yes + no
