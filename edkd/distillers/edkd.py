"""Exponential decoupled knowledge distillation: DKD whose beta follows the teacher's confidence.

The loss decouples as B. Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv:2203.08679, equation 7; its
beta is an exponential of the teacher's probability of the target class, as in the published EDKD figure and code.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edkd.distillers._base import Distiller, register
from edkd.distillers._common import at_least_float32, decoupled_kl, warmup_factor
from edkd.errors import UserError, nearest

FORMS = ("paper", "reference")


def edkd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
    form: str = "paper",
) -> Tensor:
    """T^2 * mean_i(alpha * TCKD_i + beta_i * NCKD_i), beta_i = beta * exp(-(1 - p_i)).

    Args:
        logits_student, logits_teacher: (N,C), C >= 2; computed in float32 or better, finite for logits up to +-1e4.
        target: (N,), class numbers.
        alpha, beta: weights >= 0; beta is the largest that beta_i can be.
        temperature: T > 0.
        form: "paper": p_i is the teacher's softened probability of the target class, and weights the sample's own
            NCKD. "reference" (the published code): p_i is the larger of that probability and the rest's, and the
            mean of beta_i multiplies the mean of NCKD.

    Returns:
        A scalar >= 0, 0 where both agree.

    Raises:
        UserError: `form` is another word.
    """
    if form not in FORMS:
        raise UserError(f"edkd_loss: form is {form!r}, not one of {', '.join(FORMS)}{nearest(form, FORMS)}")
    tckd, nckd, margin_t = decoupled_kl(logits_student, logits_teacher, target, temperature)
    if form == "reference":
        margin_t, nckd = margin_t.abs(), nckd.mean()
    beta_i = beta * torch.exp(-torch.sigmoid(-margin_t))  # 1 - sigmoid(m) = sigmoid(-m), without cancellation
    return temperature**2 * (alpha * tckd + beta_i * nckd).mean()


@register("EDKD")
class EDKD(Distiller):
    """CE_WEIGHT * CE(student, target) + min(epoch / WARMUP, 1) * edkd_loss(student, teacher)."""

    defaults = dict(
        CE_WEIGHT=1.0,  # of the cross-entropy with the labels
        ALPHA=1.0,  # of the target-class term
        BETA=8.0,  # of the non-target-class term, at full confidence of the teacher
        T=4.0,  # temperature, > 0
        WARMUP=20,  # epochs over which the distillation term grows to its full weight; 0: at once
        FORM="paper",  # paper | reference, see edkd_loss
    )
    choices = dict(FORM=FORMS)

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Any) -> None:
        super().__init__(student, teacher)
        self.ce_weight = cfg.EDKD.CE_WEIGHT
        self.alpha = cfg.EDKD.ALPHA
        self.beta = cfg.EDKD.BETA
        self.temperature = cfg.EDKD.T
        self.warmup = cfg.EDKD.WARMUP
        self.form = cfg.EDKD.FORM

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Distiller.forward_train`; the terms are `loss_ce` and `loss_edkd`."""
        logits_student, _ = self.student(image)
        with torch.no_grad():
            logits_teacher, _ = self.teacher(image)
        loss_edkd = edkd_loss(
            logits_student, logits_teacher, target, self.alpha, self.beta, self.temperature, self.form
        )
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(at_least_float32(logits_student), target),
            "loss_edkd": warmup_factor(kwargs["epoch"], self.warmup) * loss_edkd,
        }
