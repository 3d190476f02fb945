"""Exponential decoupled knowledge distillation: DKD whose beta follows the teacher's confidence.

The loss decouples as in B. Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022,
arXiv:2203.08679, equation 7; beta is an exponential of the teacher's probability of the target
class, as in the published EDKD figure and code.
"""

from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._math import decoupled_kl, reduced, warmup_factor
from edkd.distillers._split import Parts, split_terms
from edkd.errors import UserError
from edkd.hints import not_one_of
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output

FORMS = ("paper", "reference")


def edkd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
    form: str = "paper",
    reduction: str = "mean",
) -> Tensor:
    """T^2 * mean_i(alpha * TCKD_i + beta_i * NCKD_i) with beta_i = beta * exp(-(1 - p_i)).

    Args:
        logits_student: (N,C), C >= 2; computed in float32 or better, finite for logits up to +-1e4.
        logits_teacher: (N,C).
        target: (N,), class numbers.
        alpha: weight of TCKD, >= 0.
        beta: the largest value of beta_i, >= 0.
        temperature: T > 0.
        form: "paper": p_i is the teacher's softened probability of the target class and weights
            the sample's own NCKD. "reference" (the published code): p_i is the larger of that
            probability and its complement, and the mean of beta_i multiplies the mean of NCKD.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar >= 0, or (N,); 0 where both predictions agree.

    Raises:
        UserError: another value of `form`.

    Example:
        >>> import torch
        >>> student = torch.tensor([[1.0, 0.0, -1.0]])
        >>> teacher = torch.tensor([[2.0, 0.0, -1.0]])
        >>> loss = edkd_loss(student, teacher, torch.tensor([0]), 1.0, 8.0, temperature=4.0)
        >>> round(loss.item(), 4)
        0.1241
    """
    of_target, of_others = edkd_parts(
        logits_student, logits_teacher, target, alpha, beta, temperature, form
    )
    return reduced(of_target + of_others, reduction)


def edkd_parts(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
    form: str = "paper",
    kept: Tensor | None = None,
) -> Parts:
    """T^2 * alpha * TCKD_i and T^2 * beta_i * NCKD_i, (N,) each.

    Args:
        logits_student: see `edkd_loss`, also for the others.
        kept: (N,C), bool, the other classes that NCKD compares; None: all.

    Raises:
        UserError: another value of `form`.
    """
    if form not in FORMS:
        raise UserError(f"edkd_loss: {not_one_of('form', form, FORMS)}")

    tckd, nckd, margin_t = decoupled_kl(logits_student, logits_teacher, target, temperature, kept)
    if form == "reference":
        margin_t = margin_t.abs()
        nckd = nckd.mean()

    # 1 - sigmoid(m) = sigmoid(-m), without cancellation.
    beta_i = beta * torch.exp(-torch.sigmoid(-margin_t))
    return temperature**2 * alpha * tckd, temperature**2 * beta_i * nckd


@METHODS.register("EDKD")
class EDKD(Distiller):
    """CE_WEIGHT * CE(student, target) + min(epoch / WARMUP, 1) * edkd_loss(student, teacher)."""

    needs_class_numbers = True
    has_loss_per_image = True
    can_split = True
    defaults = dict(
        CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
        ALPHA=Key(1.0, "weight of the target-class term", low=0.0),
        BETA=Key(8.0, "weight of the non-target-class term at full confidence", low=0.0),
        T=Key(4.0, "softens both predictions", low=1e-3),
        WARMUP=Key(20, "the distillation term grows over these epochs", unit="epochs", low=0),
        FORM=Key("paper", "form of the published figure or of the published code", choices=FORMS),
    )

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        # The published code multiplies two means over the batch.
        self.gathers_batch = self.hp.FORM == "reference"

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        hp = self.hp
        logits = (student.logits, teacher.logits, batch.target)
        factor = warmup_factor(batch.epoch, hp.WARMUP)
        if self.split:
            kept = self.split.kept(teacher.logits, batch)
            parts = edkd_parts(*logits, hp.ALPHA, hp.BETA, hp.T, hp.FORM, kept)
            return split_terms(parts, factor, self.reduction)

        loss_edkd = edkd_loss(*logits, hp.ALPHA, hp.BETA, hp.T, hp.FORM, self.reduction)
        return {"loss_kd": factor * loss_edkd}
