"""Normalised knowledge distillation (NKD).

Z. Yang, A. Zeng, Z. Li, T. Zhang, C. Yuan, Y. Li, "From Knowledge Distillation to Self-Knowledge
Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels", ICCV 2023,
arXiv:2303.13005.
"""

import torch.nn.functional as F
from torch import Tensor

from edkd.distillers._base import Distiller
from edkd.distillers._math import decouple, reduced
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output, class_numbers


def nkd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    gamma: float,
    temperature: float,
    reduction: str = "mean",
) -> Tensor:
    """mean_i(-p_t(y) log p_s(y) - gamma * T^2 * sum_{c != y} q_t(c) log q_s(c)).

    p = softmax(logits), and q = softmax(logits / T) over the classes other than the target y.
    Both terms are cross-entropies, so the loss is not 0 where student and teacher agree.

    Args:
        logits_student: (N,C), C >= 2; computed in float32 or better, finite for logits up to +-1e4.
        logits_teacher: (N,C).
        target: (N,), class numbers; of class probabilities (N,C), the most probable class counts,
            as in the published code.
        gamma: weight of the non-target term, >= 0; with two classes this term is 0.
        temperature: T > 0, of the non-target term.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar >= 0, or (N,).

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 4)
        >>> loss = nkd_loss(logits, logits, torch.tensor([0]), gamma=1.5, temperature=1.0)
        >>> round(loss.item(), 4)  # log(4) / 4 + 1.5 * log(3)
        1.9945
    """
    target = class_numbers(target)
    margin_s, _ = decouple(logits_student, target, 1.0)
    margin_t, _ = decouple(logits_teacher, target, 1.0)
    loss_target = -margin_t.sigmoid() * F.logsigmoid(margin_s)

    _, log_q_s = decouple(logits_student, target, temperature)
    _, log_q_t = decouple(logits_teacher, target, temperature)
    loss_others = -(log_q_t.exp() * log_q_s).sum(1)
    return reduced(loss_target + gamma * temperature**2 * loss_others, reduction)


@METHODS.register("NKD")
class NKD(Distiller):
    """CE_WEIGHT * CE(student, target) + nkd_loss(student, teacher).

    With SOLVER.MIXUP or SOLVER.CUTMIX, the class with the larger share of an image is its target.
    """

    has_loss_per_image = True
    defaults = dict(
        CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
        GAMMA=Key(1.5, "weight of the non-target-class term", low=0.0),
        T=Key(1.0, "softens both predictions of the non-target classes", low=1e-3),
    )

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        loss_nkd = nkd_loss(
            student.logits,
            teacher.logits,
            batch.target,
            self.hp.GAMMA,
            self.hp.T,
            self.reduction,
        )
        return {"loss_kd": loss_nkd}
