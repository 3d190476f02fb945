"""Decoupled knowledge distillation.

B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang, "Decoupled Knowledge Distillation", CVPR 2022, arXiv:2203.08679.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edkd.distillers._base import Distiller, register
from edkd.distillers._common import at_least_float32, decoupled_kl, warmup_factor


def dkd_loss(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """T^2 * mean_i(alpha * TCKD_i + beta * NCKD_i) (equation 7).

    TCKD is the divergence of the two-way distribution target / not target, NCKD that among the other classes.

    Args:
        logits_student, logits_teacher: (N,C), C >= 2; computed in float32 or better, finite for logits up to +-1e4.
        target: (N,), class numbers.
        alpha, beta: weights >= 0.
        temperature: T > 0.

    Returns:
        A scalar >= 0, 0 where both agree.
    """
    tckd, nckd, _ = decoupled_kl(logits_student, logits_teacher, target, temperature)
    return temperature**2 * (alpha * tckd + beta * nckd).mean()


@register("DKD")
class DKD(Distiller):
    """CE_WEIGHT * CE(student, target) + min(epoch / WARMUP, 1) * dkd_loss(student, teacher)."""

    defaults = dict(
        CE_WEIGHT=1.0,  # of the cross-entropy with the labels
        ALPHA=1.0,  # of the target-class term
        BETA=8.0,  # of the non-target-class term
        T=4.0,  # temperature, > 0
        WARMUP=20,  # epochs over which the distillation term grows to its full weight; 0: at once
    )

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Any) -> None:
        super().__init__(student, teacher)
        self.ce_weight = cfg.DKD.CE_WEIGHT
        self.alpha = cfg.DKD.ALPHA
        self.beta = cfg.DKD.BETA
        self.temperature = cfg.DKD.T
        self.warmup = cfg.DKD.WARMUP

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Distiller.forward_train`; the terms are `loss_ce` and `loss_dkd`."""
        logits_student, _ = self.student(image)
        with torch.no_grad():
            logits_teacher, _ = self.teacher(image)
        loss_dkd = dkd_loss(logits_student, logits_teacher, target, self.alpha, self.beta, self.temperature)
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(at_least_float32(logits_student), target),
            "loss_dkd": warmup_factor(kwargs["epoch"], self.warmup) * loss_dkd,
        }
