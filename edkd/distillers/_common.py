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


def warmup_factor(epoch: int | Tensor, warmup: int) -> float | Tensor:
    """min(epoch / warmup, 1), epoch counted from 1, perhaps a tensor on the device; 1 where warmup is 0."""
    if not warmup:
        return 1.0
    return (epoch / warmup).clamp(max=1.0) if isinstance(epoch, Tensor) else min(epoch / warmup, 1.0)


def decoupled_kl(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The two parts of KL(teacher || student) that DKD weighs apart, of each sample.

    Args:
        logits_student, logits_teacher: (N,C), C >= 2, any floating type; computed in float32 or better.
        target: (N,), class numbers.
        temperature: T > 0.

    Returns:
        TCKD (N,): the divergence of the two-way distributions target / not target.
        NCKD (N,): that of the distributions among the other classes.
        The teacher's margin m (N,): its softened probability of the target is sigmoid(m).
    """
    margin_s, log_p_s = _decouple(logits_student, target, temperature)
    margin_t, log_p_t = _decouple(logits_teacher, target, temperature)
    return _binary_kl(margin_t, margin_s), kl_divergence(log_p_t, log_p_s), margin_t


def _decouple(logits: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The margin (N,) of the target over the others, and the log-probabilities among the others (N,C).

    With z = logits / temperature and the margin m = z_target - logsumexp(z_others), the softened probability of
    the target is sigmoid(m): nothing is exponentiated that could overflow, and no logarithm is taken of a sum of
    probabilities that could be 0. The target's own entry among the others is the lowest finite number: probability 0.
    """
    z = at_least_float32(logits) / temperature
    is_target = torch.arange(z.shape[1], device=z.device) == target[:, None]
    others = z.masked_fill(is_target, torch.finfo(z.dtype).min)
    margin = torch.where(is_target, z, 0.0).sum(1) - others.logsumexp(1)
    return margin, F.log_softmax(others, 1)


def _binary_kl(margin_p: Tensor, margin_q: Tensor) -> Tensor:
    """KL of two Bernoulli distributions, (N,), of success probabilities sigmoid(margin)."""
    yes = margin_p.sigmoid() * (F.logsigmoid(margin_p) - F.logsigmoid(margin_q))
    no = (-margin_p).sigmoid() * (F.logsigmoid(-margin_p) - F.logsigmoid(-margin_q))
    return yes + no
