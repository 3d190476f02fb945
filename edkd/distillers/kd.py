"""Knowledge distillation.

G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", NIPS workshop 2014, arXiv:1503.02531.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edkd.distillers._base import Distiller, register
from edkd.distillers._common import at_least_float32, kl_divergence


def kd_loss(logits_student: Tensor, logits_teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * mean_i KL(p_t || p_s), p = softmax(logits / T) (section 2).

    Args:
        logits_student, logits_teacher: (N,C); computed in float32 or better, finite for logits up to +-1e4.
        temperature: T > 0.

    Returns:
        A scalar >= 0, 0 where both agree.
    """
    log_p_s = F.log_softmax(at_least_float32(logits_student) / temperature, 1)
    log_p_t = F.log_softmax(at_least_float32(logits_teacher) / temperature, 1)
    return temperature**2 * kl_divergence(log_p_t, log_p_s).mean()


@register("KD")
class KD(Distiller):
    """CE_WEIGHT * CE(student, target) + KD_WEIGHT * kd_loss(student, teacher)."""

    defaults = dict(
        TEMPERATURE=4.0,  # softens both predictions, > 0
        LOSS=dict(
            CE_WEIGHT=0.1,  # of the cross-entropy with the labels
            KD_WEIGHT=0.9,  # of the divergence from the teacher
        ),
    )

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Any) -> None:
        super().__init__(student, teacher)
        self.temperature = cfg.KD.TEMPERATURE
        self.ce_weight = cfg.KD.LOSS.CE_WEIGHT
        self.kd_weight = cfg.KD.LOSS.KD_WEIGHT

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Distiller.forward_train`; the terms are `loss_ce` and `loss_kd`."""
        logits_student, _ = self.student(image)
        with torch.no_grad():
            logits_teacher, _ = self.teacher(image)
        return logits_student, {
            "loss_ce": self.ce_weight * F.cross_entropy(at_least_float32(logits_student), target),
            "loss_kd": self.kd_weight * kd_loss(logits_student, logits_teacher, self.temperature),
        }
