"""Decoupled knowledge distillation.

B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang, "Decoupled Knowledge Distillation", CVPR 2022,
arXiv:2203.08679.
"""

from torch import Tensor

from edkd.distillers._base import Distiller
from edkd.distillers._math import decoupled_kl, reduced, warmup_factor
from edkd.distillers._split import Parts, split_terms
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output


def dkd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float | Tensor,
    reduction: str = "mean",
) -> Tensor:
    """T^2 * mean_i(alpha * TCKD_i + beta * NCKD_i) (equation 7).

    TCKD is the divergence of the binary distributions target / not target, NCKD the divergence of
    the distributions over the other classes.

    Args:
        logits_student: (N,C), C >= 2; computed in float32 or better, finite for logits up to +-1e4.
        logits_teacher: (N,C).
        target: (N,), class numbers.
        alpha: weight of TCKD, >= 0.
        beta: weight of NCKD, >= 0.
        temperature: T > 0.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar >= 0, or (N,); 0 where both predictions agree.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> dkd_loss(logits, logits, torch.tensor([0]), alpha=1.0, beta=8.0, temperature=4.0).item()
        0.0
    """
    of_target, of_others = dkd_parts(
        logits_student, logits_teacher, target, alpha, beta, temperature
    )
    return reduced(of_target + of_others, reduction)


def dkd_parts(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float | Tensor,
    kept: Tensor | None = None,
) -> Parts:
    """T^2 * alpha * TCKD_i and T^2 * beta * NCKD_i, (N,) each.

    Args:
        logits_student: see `dkd_loss`, also for the others.
        kept: (N,C), bool, the other classes that NCKD compares; None: all.
    """
    tckd, nckd, _ = decoupled_kl(logits_student, logits_teacher, target, temperature, kept)
    return temperature**2 * alpha * tckd, temperature**2 * beta * nckd


@METHODS.register("DKD")
class DKD(Distiller):
    """CE_WEIGHT * CE(student, target) + min(epoch / WARMUP, 1) * dkd_loss(student, teacher)."""

    needs_class_numbers = True
    has_loss_per_image = True
    can_split = True
    defaults = dict(
        CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
        ALPHA=Key(1.0, "weight of the target-class term", low=0.0),
        BETA=Key(8.0, "weight of the non-target-class term", low=0.0),
        T=Key(4.0, "softens both predictions", low=1e-3),
        WARMUP=Key(20, "the distillation term grows over these epochs", unit="epochs", low=0),
    )

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        hp = self.hp
        logits = (student.logits, teacher.logits, batch.target)
        factor = warmup_factor(batch.epoch, hp.WARMUP)
        if self.split:
            kept = self.split.kept(teacher.logits, batch)
            parts = dkd_parts(*logits, hp.ALPHA, hp.BETA, hp.T, kept)
            return split_terms(parts, factor, self.reduction)

        loss_dkd = dkd_loss(*logits, hp.ALPHA, hp.BETA, hp.T, self.reduction)
        return {"loss_kd": factor * loss_dkd}
