"""CTKD: a learned temperature that maximises the student's loss (curriculum temperature).

Z. Li, X. Li, L. Yang, B. Zhao, R. Song, L. Luo, J. Li, J. Yang, "Curriculum Temperature for
Knowledge Distillation", AAAI 2023, arXiv:2211.16231.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._math import scaled_gradient
from edkd.distillers.kd import kd_loss
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output


def curriculum(epoch: int | Tensor, loops: int) -> Tensor:
    """(cos(pi * min(epoch / loops, 1)) - 1) / 2: from 0 to -1 over the first epochs.

    Args:
        epoch: from 1; may be a tensor on the device.
        loops: epochs >= 0; 0: -1 from the beginning.

    Returns:
        A scalar.

    Example:
        >>> [round(curriculum(epoch, 10).item(), 4) for epoch in (1, 5, 10, 11)]
        [-0.0245, -0.5, -1.0, -1.0]
    """
    done = torch.as_tensor(epoch, dtype=torch.float32)
    share = (done / loops).clamp(max=1.0) if loops else torch.ones_like(done)
    return (torch.cos(math.pi * share) - 1) / 2


def learned_temperature(parameter: Tensor, start: float, span: float) -> Tensor:
    """T = start + span * sigmoid(parameter), in float32 or better.

    Args:
        parameter: any shape.
        start: lowest temperature, > 0.
        span: the most that is added to it, >= 0.

    Example:
        >>> round(learned_temperature(torch.ones(1), start=1.0, span=20.0).item(), 4)
        15.6212
    """
    return start + span * parameter.sigmoid()


def ctkd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    temperature: Tensor,
    reduction: str = "mean",
) -> Tensor:
    """T^2 * mean_i KL(p_t || p_s) as `kd_loss`, with a gradient for the temperature T.

    The gradient flows through the factor T^2, too. A curriculum reverses it, see `CTKD`.

    Args:
        logits_student: (N,C); computed in float32 or better, finite for logits up to +-1e4.
        logits_teacher: (N,C).
        temperature: a tensor of one element, > 0.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar >= 0, or (N,); 0 where both predictions agree.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> ctkd_loss(logits, logits, torch.tensor([4.0])).item()
        0.0
    """
    return kd_loss(logits_student, logits_teacher, temperature.squeeze(), reduction)


@METHODS.register("CTKD")
class CTKD(Distiller):
    """LOSS.CE_WEIGHT * CE(student, target) + LOSS.KD_WEIGHT * ctkd_loss(student, teacher).

    The temperature T_START + T_END * sigmoid(theta) has one learned parameter theta. The gradient
    of theta is multiplied by `curriculum`, so the temperature maximises the loss that the student
    minimises, after a slow start. theta is updated like the student's parameters.

    Differs from the paper: only its global temperature. The instance-wise one, from a small
    network on both logits, is not in the published repository.
    """

    has_loss_per_image = True
    defaults = dict(
        T_START=Key(1.0, "lowest temperature", low=1e-3),
        T_END=Key(20.0, "the temperature stays below T_START + T_END", low=0.0),
        DECAY_LOOPS=Key(
            10, "the reversed gradient grows over these epochs; 5 on ImageNet", "epochs", low=0
        ),
        LOSS=dict(
            CE_WEIGHT=Key(0.1, "weight of the cross-entropy with the labels", low=0.0),
            KD_WEIGHT=Key(0.9, "weight of the divergence from the teacher", low=0.0),
        ),
    )

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        self.theta = nn.Parameter(torch.ones(1))

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        hp = self.hp
        theta = scaled_gradient(self.theta, curriculum(batch.epoch, hp.DECAY_LOOPS))
        temperature = learned_temperature(theta, hp.T_START, hp.T_END)
        loss_kd = ctkd_loss(student.logits, teacher.logits, temperature, self.reduction)
        return {"loss_kd": hp.LOSS.KD_WEIGHT * loss_kd}
