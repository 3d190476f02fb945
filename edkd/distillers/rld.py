"""Refined logit distillation (RLD).

W. Sun, D. Chen, S. Lyu, G. Chen, C. Chen, C. Wang, "Knowledge Distillation with Refined Logits",
ICCV 2025, arXiv:2408.07703.
"""

from torch import Tensor

from edkd.distillers._base import Distiller
from edkd.distillers._math import (
    at_least_float32,
    binary_kl,
    check_class_numbers,
    decouple,
    kl_divergence,
    log_softmax_among,
    reduced,
    warmup_factor,
)
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output


def sample_confidence(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float
) -> Tensor:
    """KL of [p_t(m), 1 - p_t(m)] from [p_s(y), 1 - p_s(y)], with m the teacher's top class, (N,).

    Args:
        logits_student: (N,C), C >= 2.
        logits_teacher: (N,C).
        target: y (N,), class numbers.
        temperature: T > 0, of p = softmax(logits / T).
    """
    margin_s, _ = decouple(logits_student, target, temperature)
    margin_t, _ = decouple(logits_teacher, logits_teacher.argmax(1), temperature)
    return binary_kl(margin_t, margin_s)


def masked_correlation(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float
) -> Tensor:
    """KL of the predictions over the classes that the teacher ranks below the target, (N,).

    0 without gradient for an image whose target is the teacher's least likely class, as no class
    is left to compare.

    Args:
        logits_student: (N,C).
        logits_teacher: (N,C).
        target: (N,), class numbers.
        temperature: T > 0.
    """
    z_target = logits_teacher.gather(1, target[:, None])
    kept = logits_teacher < z_target
    log_q_s = log_softmax_among(logits_student, kept, temperature)
    log_q_t = log_softmax_among(logits_teacher, kept, temperature)
    return kl_divergence(log_q_t, log_q_s)


def rld_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
    alpha_temperature: float,
    reduction: str = "mean",
) -> Tensor:
    """mean_i(alpha * T_a^2 * SCD_i + beta * T^2 * MCD_i).

    SCD is `sample_confidence` at T_a, MCD is `masked_correlation` at T.

    Args:
        logits_student: (N,C), C >= 2; computed in float32 or better, finite for logits up to +-1e4.
        logits_teacher: (N,C).
        target: (N,), class numbers.
        alpha: weight of SCD, >= 0.
        beta: weight of MCD, >= 0.
        temperature: T > 0.
        alpha_temperature: T_a > 0.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar >= 0, or (N,); 0 where both predictions agree and the teacher's is correct.

    Raises:
        UserError: `target` holds class probabilities.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> rld_loss(logits, logits, torch.tensor([0]), 1.0, 8.0, 4.0, 1.0).item()
        0.0
    """
    check_class_numbers(target)
    student = at_least_float32(logits_student)
    teacher = at_least_float32(logits_teacher)
    scd = sample_confidence(student, teacher, target, alpha_temperature)
    mcd = masked_correlation(student, teacher, target, temperature)

    loss = alpha * alpha_temperature**2 * scd + beta * temperature**2 * mcd
    return reduced(loss, reduction)


@METHODS.register("RLD")
class RLD(Distiller):
    """CE_WEIGHT * CE(student, target) + min(epoch / WARMUP, 1) * rld_loss(student, teacher)."""

    needs_class_numbers = True
    has_loss_per_image = True
    defaults = dict(
        CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
        ALPHA=Key(1.0, "weight of the term of the sample's confidence", low=0.0),
        BETA=Key(8.0, "weight of the term of the classes below the target", low=0.0),
        ALPHA_T=Key(1.0, "softens both predictions in the confidence term", low=1e-3),
        T=Key(4.0, "softens both predictions in the other term", low=1e-3),
        WARMUP=Key(20, "the distillation terms grow over these epochs", unit="epochs", low=0),
    )

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        hp = self.hp
        loss_rld = rld_loss(
            student.logits,
            teacher.logits,
            batch.target,
            hp.ALPHA,
            hp.BETA,
            hp.T,
            hp.ALPHA_T,
            self.reduction,
        )
        return {"loss_kd": warmup_factor(batch.epoch, hp.WARMUP) * loss_rld}
