"""Weighted transformed teacher matching (WTTM).

K. Zheng, E.-H. Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024,
arXiv:2402.11148.
"""

from torch import Tensor

from edkd.distillers._base import Distiller
from edkd.distillers._math import log_softmax, reduced
from edkd.distillers.ttm import ttm_loss
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output


def wttm_loss(
    logits_student: Tensor, logits_teacher: Tensor, gamma: float, reduction: str = "mean"
) -> Tensor:
    """mean_i w_i KL(q || p_s) with w_i = sum_c p_t(c)^gamma and q as in `ttm_loss`.

    For gamma below 1, the weight is 1 for a certain teacher, and C^(1 - gamma) for one that finds
    all classes equally likely.

    Args:
        logits_student: (N,C); computed in float32 or better, finite for logits up to +-1e4.
        logits_teacher: (N,C).
        gamma: exponent > 0.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar >= 0, or (N,); 0 where the student's prediction is q.

    Example:
        >>> import torch
        >>> student = torch.tensor([[1.0, 0.0]])
        >>> loss = wttm_loss(student, torch.zeros(1, 2), gamma=0.5)
        >>> round((loss / ttm_loss(student, torch.zeros(1, 2), gamma=0.5)).item(), 4)  # 2^0.5
        1.4142
    """
    weight = (gamma * log_softmax(logits_teacher)).logsumexp(1).exp()
    loss_ttm = ttm_loss(logits_student, logits_teacher, gamma, reduction="none")
    return reduced(weight * loss_ttm, reduction)


@METHODS.register("WTTM")
class WTTM(Distiller):
    """CE_WEIGHT * CE(student, target) + KD_WEIGHT * wttm_loss(student, teacher)."""

    has_loss_per_image = True
    defaults = dict(
        CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
        KD_WEIGHT=Key(
            4.0,
            "weight of the divergence",
            source="the example of the published code, which adds CRD",
            low=0.0,
        ),
        GAMMA=Key(0.2, "exponent of the teacher's probabilities", low=1e-4),
    )

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        loss_wttm = wttm_loss(student.logits, teacher.logits, self.hp.GAMMA, self.reduction)
        return {"loss_kd": self.hp.KD_WEIGHT * loss_wttm}
