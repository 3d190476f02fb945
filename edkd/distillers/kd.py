"""Knowledge distillation.

G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", NIPS workshop
2014, arXiv:1503.02531.
"""

from torch import Tensor

from edkd.distillers._base import Distiller
from edkd.distillers._math import kl_divergence, log_softmax, reduced
from edkd.distillers._split import split_terms
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output


def kd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    temperature: float | Tensor,
    reduction: str = "mean",
) -> Tensor:
    """T^2 * mean_i KL(p_t || p_s) with p = softmax(logits / T) (section 2).

    Args:
        logits_student: (N,C); computed in float32 or better, finite for logits up to +-1e4.
        logits_teacher: (N,C).
        temperature: T > 0.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar >= 0, or (N,); 0 where both predictions agree.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> kd_loss(logits, logits, temperature=4.0).item()
        0.0
    """
    log_p_s = log_softmax(logits_student, temperature)
    log_p_t = log_softmax(logits_teacher, temperature)
    return temperature**2 * reduced(kl_divergence(log_p_t, log_p_s), reduction)


@METHODS.register("KD")
class KD(Distiller):
    """CE_WEIGHT * CE(student, target) + KD_WEIGHT * kd_loss(student, teacher)."""

    has_loss_per_image = True
    can_split = True
    defaults = dict(
        TEMPERATURE=Key(4.0, "softens both predictions", low=1e-3),
        LOSS=dict(
            CE_WEIGHT=Key(0.1, "weight of the cross-entropy with the labels", low=0.0),
            KD_WEIGHT=Key(0.9, "weight of the divergence from the teacher", low=0.0),
        ),
    )

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        weight = self.hp.LOSS.KD_WEIGHT
        if self.split:
            parts = self.split.kd(student.logits, teacher.logits, self.hp.TEMPERATURE, batch)
            return split_terms(parts, weight, self.reduction)

        loss_kd = kd_loss(student.logits, teacher.logits, self.hp.TEMPERATURE, self.reduction)
        return {"loss_kd": weight * loss_kd}
