"""Transformed teacher matching (TTM).

K. Zheng, E.-H. Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024,
arXiv:2402.11148.
"""

from torch import Tensor

from edkd.distillers._base import Distiller
from edkd.distillers._math import kl_divergence, log_softmax, reduced
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output


def ttm_loss(
    logits_student: Tensor, logits_teacher: Tensor, gamma: float, reduction: str = "mean"
) -> Tensor:
    """mean_i KL(q || p_s) with q = p_t^gamma / sum_c p_t(c)^gamma.

    p = softmax(logits), without a temperature. q is computed as softmax(gamma * logits_teacher),
    its equal, in which no small probability underflows before the power is taken.

    Args:
        logits_student: (N,C); computed in float32 or better, finite for logits up to +-1e4.
        logits_teacher: (N,C).
        gamma: exponent > 0; below 1 it flattens the teacher's prediction.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar >= 0, or (N,); 0 where the student's prediction is q.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[20.0, 0.0, -10.0]])
        >>> ttm_loss(0.1 * teacher, teacher, gamma=0.1).item()
        0.0
    """
    log_q = log_softmax(logits_teacher, 1 / gamma)
    return reduced(kl_divergence(log_q, log_softmax(logits_student)), reduction)


@METHODS.register("TTM")
class TTM(Distiller):
    """CE_WEIGHT * CE(student, target) + KD_WEIGHT * ttm_loss(student, teacher)."""

    has_loss_per_image = True
    defaults = dict(
        CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
        KD_WEIGHT=Key(
            45.0, "weight of the divergence", source="the example of the published code", low=0.0
        ),
        GAMMA=Key(0.1, "exponent of the teacher's probabilities", low=1e-4),
    )

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        loss_ttm = ttm_loss(student.logits, teacher.logits, self.hp.GAMMA, self.reduction)
        return {"loss_kd": self.hp.KD_WEIGHT * loss_ttm}
