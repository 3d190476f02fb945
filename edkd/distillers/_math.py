"""Mathematics that several losses share."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edkd.errors import UserError

REDUCTIONS = ("mean", "none")

SMALLEST_NORM = 1e-12
"""Of a vector that has a direction."""


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precisions become float32; float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def full_precision(tensor: Tensor) -> Any:
    """A context in which autocast does not round matrix products to half precision."""
    return torch.autocast(tensor.device.type, enabled=False)


def matmul(first: Tensor, second: Tensor) -> Tensor:
    """first @ second in float32 or better; autocast would compute it in half precision."""
    with full_precision(first):
        return at_least_float32(first) @ at_least_float32(second)


def unit_vectors(tensor: Tensor) -> Tensor:
    """x / |x| of each vector along the last dimension, in float32 or better.

    Where |x| <= 1e-12 it is 0 without a gradient, which would be up to 1e12 there.
    """
    tensor = at_least_float32(tensor)
    norm = torch.linalg.vector_norm(tensor, dim=-1, keepdim=True)
    return torch.where(norm > SMALLEST_NORM, tensor / norm.clamp(min=SMALLEST_NORM), 0.0)


def log_softmax(logits: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """log softmax(logits / T) over the classes, the last dimension, in float32 or better."""
    return F.log_softmax(at_least_float32(logits) / temperature, -1)


def log_softmax_among(logits: Tensor, kept: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / T) over some of the classes, in float32 or better.

    Args:
        logits: (N,C).
        kept: (N,C), bool: the classes. In a row without any, all classes are equally likely.
        temperature: T > 0.

    Returns:
        (N,C); the lowest finite numbers, of which `exp` is 0, for the classes that are left out.
    """
    z = at_least_float32(logits) / temperature
    return F.log_softmax(z.masked_fill(~kept, torch.finfo(z.dtype).min), 1)


def cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """The mean over the batch, in float32 or better.

    Args:
        logits: (N,C).
        target: (N,), class numbers; (N,C), class probabilities.
        smoothing: in [0, 1), share of the target that is spread over all classes.
    """
    logits = at_least_float32(logits)
    if target.is_floating_point():
        target = target.to(logits.dtype)
    return F.cross_entropy(logits, target, label_smoothing=smoothing)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row, (N,), from log-probabilities (N,C)."""
    return (log_p.exp() * (log_p - log_q)).sum(1)


def reduced(loss: Tensor, reduction: str) -> Tensor:
    """The mean of a loss (N,) over the images, or the loss as it is.

    Args:
        reduction: "mean" or "none".

    Raises:
        UserError: another value of `reduction`.
    """
    if reduction not in REDUCTIONS:
        raise UserError(f"reduction is {reduction!r}, not one of {', '.join(REDUCTIONS)}")
    return loss.mean() if reduction == "mean" else loss


def soft_divergence(log_p: Tensor, logits_student: Tensor, temperature: float) -> Tensor:
    """T^2 * mean_n KL(p || p_s) with p_s = softmax(logits_student / T), a scalar.

    Args:
        log_p: (N,C), log-probabilities of the target distribution.
        logits_student: (N,C).
        temperature: T > 0.
    """
    log_p_s = log_softmax(logits_student, temperature)
    return temperature**2 * kl_divergence(log_p, log_p_s).mean()


def warmup_factor(epoch: int | Tensor, warmup: int) -> float | Tensor:
    """min(epoch / warmup, 1), or 1 where warmup is 0.

    Args:
        epoch: from 1; may be a tensor on the device.
        warmup: epochs >= 0.
    """
    if not warmup:
        return 1.0
    if isinstance(epoch, Tensor):
        return (epoch / warmup).clamp(max=1.0)
    return min(epoch / warmup, 1.0)


def cosine_decay(epoch: int | Tensor, start: int, end: int) -> float | Tensor:
    """1 up to the epoch `start`, then half a cosine down to 0 at the epoch `end`.

    Args:
        epoch: from 1; may be a tensor on the device.
        start: the last epoch with 1; from `end` on there is no decay.
        end: the last epoch of the training.
    """
    if start >= end:
        return 1.0
    if isinstance(epoch, Tensor):
        share = ((epoch - start) / (end - start)).clamp(0.0, 1.0)
        return (1 + torch.cos(math.pi * share)) / 2

    share_so_far = min(max((epoch - start) / (end - start), 0.0), 1.0)
    return (1 + math.cos(math.pi * share_so_far)) / 2


def mean_prediction(
    logits: Sequence[Tensor], weights: Sequence[float], temperature: float
) -> Tensor:
    """Logits z with softmax(z / T) = sum_k w_k softmax(z_k / T), (N,C).

    Args:
        logits: of K networks, (N,C) each.
        weights: K numbers >= 0 that are not all 0; they are divided by their sum.
        temperature: T > 0.
    """
    total = sum(weights)
    weighted = [
        log_softmax(row, temperature) + math.log(weight / total)
        for row, weight in zip(logits, weights, strict=True)
        if weight > 0
    ]
    return temperature * torch.stack(weighted).logsumexp(0)


def decoupled_kl(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    temperature: float | Tensor,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The two parts of KL(teacher || student) that DKD weights separately, for each sample.

    Args:
        logits_student: (N,C), C >= 2, any floating type; computed in float32 or better.
        logits_teacher: (N,C).
        target: (N,), class numbers.
        temperature: T > 0.
        kept: (N,C), bool, the other classes that NCKD compares; None: all.

    Returns:
        TCKD (N,): the divergence of the binary distributions target / not target.
        NCKD (N,): the divergence of the distributions over the other classes.
        The teacher's margin m (N,): its softened probability of the target is sigmoid(m).
    """
    check_class_numbers(target)
    margin_s, log_p_s = decouple(logits_student, target, temperature, kept)
    margin_t, log_p_t = decouple(logits_teacher, target, temperature, kept)
    return binary_kl(margin_t, margin_s), kl_divergence(log_p_t, log_p_s), margin_t


def check_class_numbers(target: Tensor) -> None:
    """Raise UserError for class probabilities (N,C), which have no single target class."""
    if target.dim() != 1:
        raise UserError(
            f"this loss needs class numbers (N,) as targets, not a tensor of shape "
            f"{tuple(target.shape)}; use KD for soft targets, or set SOLVER.MIXUP and "
            "SOLVER.CUTMIX to 0"
        )


def is_class(target: Tensor, num_classes: int) -> Tensor:
    """(N,C), bool: whether a class is that of the image, from class numbers (N,)."""
    return torch.arange(num_classes, device=target.device) == target[:, None]


def scaled_gradient(tensor: Tensor, factor: float | Tensor) -> Tensor:
    """The tensor as it is, with `factor` times its gradient; a factor < 0 reverses it."""
    constant = tensor.detach()
    return constant + factor * (tensor - constant)


def decouple(
    logits: Tensor, target: Tensor, temperature: float | Tensor, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The margin (N,) of the target, and log-probabilities over the other kept classes (N,C).

    With z = logits / temperature and the margin m = z_target - logsumexp(z_others), the softened
    probability of the target is sigmoid(m). So nothing that can overflow is exponentiated, and
    no logarithm is taken of a sum of probabilities that can be 0. Among the others, the target's
    own entry is the lowest finite number: its probability is 0.
    """
    z = at_least_float32(logits) / temperature
    is_target = is_class(target, z.shape[1])
    others = z.masked_fill(is_target, torch.finfo(z.dtype).min)

    z_target = torch.where(is_target, z, 0.0).sum(1)
    margin = z_target - others.logsumexp(1)
    if kept is not None:
        others = others.masked_fill(~kept, torch.finfo(z.dtype).min)
    return margin, F.log_softmax(others, 1)


def binary_kl(margin_p: Tensor, margin_q: Tensor) -> Tensor:
    """KL of two Bernoulli distributions with success probabilities sigmoid(margin), (N,)."""
    yes = margin_p.sigmoid() * (F.logsigmoid(margin_p) - F.logsigmoid(margin_q))
    no = (-margin_p).sigmoid() * (F.logsigmoid(-margin_p) - F.logsigmoid(-margin_q))
    return yes + no
