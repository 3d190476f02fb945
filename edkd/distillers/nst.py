"""Neuron selectivity transfer.

Z. Huang, N. Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017,
arXiv:1707.01219.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from edkd.distillers._math import matmul, unit_vectors
from edkd.distillers._stages import StageDistiller, at_one_size
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output


def selectivity_distance(feature_student: Tensor, feature_teacher: Tensor) -> Tensor:
    """The squared maximum mean discrepancy of two sets of channels, for each image (section 4).

    With a_c the map of channel c of the student, divided by its norm, b_c that of the teacher, and
    the kernel k(x, y) = (x.y)^2:
    MMD^2 = mean_cd k(a_c, a_d) + mean_cd k(b_c, b_d) - 2 mean_cd k(a_c, b_d).

    The same number is |A^T A / D_s - B^T B / D_t|_F^2, whose matrices are as large as there are
    positions instead of channels. The smaller matrices are computed.

    Args:
        feature_student: (N,D,H,W), float32 or better.
        feature_teacher: the same; D may differ.

    Returns:
        (N,).
    """
    a = unit_vectors(feature_student.flatten(2))
    b = unit_vectors(feature_teacher.flatten(2))
    positions = a.shape[2]
    if positions <= max(a.shape[1], b.shape[1]):
        difference = matmul(a.mT, a) / a.shape[1] - matmul(b.mT, b) / b.shape[1]
        return difference.square().sum((1, 2))

    return _mean_kernel(a, a) + _mean_kernel(b, b) - 2 * _mean_kernel(a, b)


def _mean_kernel(first: Tensor, second: Tensor) -> Tensor:
    return matmul(first, second.mT).square().mean((1, 2))


def nst_loss(features_student: Sequence[Tensor], features_teacher: Sequence[Tensor]) -> Tensor:
    """sum_stages mean_n MMD^2(student's channels, teacher's channels), see `selectivity_distance`.

    Differs from the paper, as the published code of RepDistiller and mdistiller does: the paper
    halves the weight, and interpolates features of other sizes instead of pooling them.

    Args:
        features_student: (N,D,H,W) for each stage; computed in float32 or better.
        features_teacher: as many; the larger of two maps is pooled to the size of the smaller.

    Returns:
        A scalar >= 0, up to rounding; 0 where the features agree.

    Example:
        >>> student = torch.tensor([[[[1.0, 0.0]]]])
        >>> nst_loss([student], [student.flip(3)]).item()
        2.0
    """
    losses = []
    for stage_student, stage_teacher in zip(features_student, features_teacher, strict=True):
        losses.append(selectivity_distance(*at_one_size(stage_student, stage_teacher)).mean())
    return torch.stack(losses).sum()


@METHODS.register("NST")
class NST(StageDistiller):
    """CE_WEIGHT * CE(student, target) + FEAT_WEIGHT * nst_loss(student, teacher).

    It reads the maps after the stem, paired as in `StageDistiller`.
    """

    defaults = dict(
        LOSS=dict(
            CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
            FEAT_WEIGHT=Key(50.0, "weight of the discrepancy of the channels", low=0.0),
        ),
    )

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        loss_nst = nst_loss(*self.stages(student, teacher))
        return {"loss_kd": self.hp.LOSS.FEAT_WEIGHT * loss_nst}
