"""Attention transfer.

S. Zagoruyko, N. Komodakis, "Paying More Attention to Attention: Improving the Performance of
Convolutional Neural Networks via Attention Transfer", ICLR 2017, arXiv:1612.03928.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from edkd.distillers._math import at_least_float32, unit_vectors
from edkd.distillers._stages import StageDistiller, at_one_size
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output


def attention_map(feature: Tensor, power: int = 2) -> Tensor:
    """Q / |Q| with Q the mean over the channels of |A|^p at each position (section 3.1).

    Args:
        feature: A, (N,D,H,W); computed in float32 or better.
        power: p >= 1.

    Returns:
        (N,H*W), rows of norm 1; 0 where A is 0.

    Example:
        >>> attention_map(torch.tensor([[[[3.0, 0.0]], [[3.0, 0.0]]]]))
        tensor([[1., 0.]])
    """
    strength = at_least_float32(feature).abs().pow(power).mean(1)
    return unit_vectors(strength.flatten(1))


def at_loss(
    features_student: Sequence[Tensor], features_teacher: Sequence[Tensor], power: int = 2
) -> Tensor:
    """sum_stages mean_{n,j} (Q_s_nj - Q_t_nj)^2 with Q from `attention_map` (equation 2).

    Differs from the paper: the squared distance of the two maps instead of the distance, and the
    mean over its positions, as in the published code of RepDistiller and mdistiller, whose weight
    is 1000. Odd powers take |A|, as the paper does; that code takes A, which is the same after a
    ReLU.

    Args:
        features_student: (N,D,H,W) for each stage.
        features_teacher: as many; the larger of two maps is pooled to the size of the smaller.
        power: p >= 1.

    Returns:
        A scalar >= 0; 0 where the attention maps agree.

    Example:
        >>> student = torch.tensor([[[[1.0, 0.0]]]])
        >>> at_loss([student], [student.flip(3)]).item()
        1.0
    """
    losses = []
    for stage_student, stage_teacher in zip(features_student, features_teacher, strict=True):
        pooled_student, pooled_teacher = at_one_size(stage_student, stage_teacher)
        q_s = attention_map(pooled_student, power)
        q_t = attention_map(pooled_teacher, power)
        losses.append((q_s - q_t).square().mean())
    return torch.stack(losses).sum()


@METHODS.register("AT")
class AT(StageDistiller):
    """CE_WEIGHT * CE(student, target) + FEAT_WEIGHT * at_loss(student, teacher).

    It reads the maps after the stem, paired as in `StageDistiller`.
    """

    defaults = dict(
        P=Key(2, "power of the activations in an attention map", low=1),
        LOSS=dict(
            CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
            FEAT_WEIGHT=Key(1000.0, "weight of the distance of the attention maps", low=0.0),
        ),
    )

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        loss_at = at_loss(*self.stages(student, teacher), self.hp.P)
        return {"loss_kd": self.hp.LOSS.FEAT_WEIGHT * loss_at}
