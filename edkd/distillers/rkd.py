"""Relational knowledge distillation.

W. Park, D. Kim, Y. Lu, M. Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edkd.distillers._base import Distiller
from edkd.distillers._math import at_least_float32, matmul
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output

EPSILON = 1e-12


class Relations(NamedTuple):
    """Of the features f_i of a batch."""

    distances: Tensor
    """(N,N): |f_i - f_j| divided by the mean over all i != j; 0 where i = j."""
    angles: Tensor
    """(N,N,N): the cosine of the angle at f_i between f_j and f_k."""


def relations(feature: Tensor, squared: bool = False, epsilon: float = EPSILON) -> Relations:
    """Distances and angles of the features of a batch (section 3.2).

    Args:
        feature: (N,D); computed in float32 or better.
        squared: whether distances are squared.
        epsilon: > 0, the lowest squared distance of two different images. Where two are closer,
            their distance has no gradient, and angles with their direction are 0.

    Example:
        >>> distances, angles = relations(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        >>> distances[0]
        tensor([0.0000, 0.8787, 0.8787])
        >>> angles[0, 1]
        tensor([0., 1., 0.])
    """
    rows = at_least_float32(feature).flatten(1)
    difference = rows[None] - rows[:, None]
    squares = difference.square().sum(2)
    clamped = squares.clamp(min=epsilon)
    length = clamped.sqrt()

    number = len(rows)
    is_self = torch.eye(number, dtype=torch.bool, device=rows.device)
    distance = (clamped if squared else length).masked_fill(is_self, 0.0)
    mean = distance.sum() / max(number * (number - 1), 1)
    smallest = torch.finfo(distance.dtype).tiny

    # A point has no direction to itself, nor to one in the same place.
    has_direction = (squares > epsilon)[:, :, None]
    direction = torch.where(has_direction, difference / length[:, :, None], 0.0)
    return Relations(distance / mean.clamp(min=smallest), matmul(direction, direction.mT))


def rkd_loss(
    feature_student: Tensor,
    feature_teacher: Tensor,
    distance_weight: float,
    angle_weight: float,
    squared: bool = False,
    epsilon: float = EPSILON,
) -> Tensor:
    """distance_weight * mean_ij h(d_s_ij - d_t_ij) + angle_weight * mean_ijk h(a_s_ijk - a_t_ijk).

    d and a come from `relations`; h is the Huber loss with delta 1 (section 3.2). The means include
    i = j, as in the published code. Memory grows with N^3 and N^2 * D.

    Args:
        feature_student: (N,D).
        feature_teacher: (N,D); D may differ.
        distance_weight: >= 0.
        angle_weight: >= 0.
        squared: whether distances are squared.
        epsilon: > 0, the lowest squared distance of two different images.

    Returns:
        A scalar >= 0; 0 where the relations agree, and for one image.

    Example:
        >>> student = torch.eye(3)
        >>> rkd_loss(student, 2 * student, distance_weight=25.0, angle_weight=50.0).item() < 1e-9
        True
    """
    of_student = relations(feature_student, squared, epsilon)
    of_teacher = relations(feature_teacher, squared, epsilon)
    loss_distance = F.smooth_l1_loss(of_student.distances, of_teacher.distances)
    loss_angle = F.smooth_l1_loss(of_student.angles, of_teacher.angles)
    return distance_weight * loss_distance + angle_weight * loss_angle


@METHODS.register("RKD")
class RKD(Distiller):
    """CE_WEIGHT * CE(student, target) + FEAT_WEIGHT * rkd_loss(student, teacher).

    It reads the pooled features of both networks.
    """

    teacher_needs = ("pooled_feat",)
    student_needs = ("pooled_feat",)
    gathers_batch = True
    defaults = dict(
        DISTANCE_WEIGHT=Key(25.0, "weight of the distances", low=0.0),
        ANGLE_WEIGHT=Key(50.0, "weight of the angles", low=0.0),
        LOSS=dict(
            CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
            FEAT_WEIGHT=Key(1.0, "weight of the distances and angles together", low=0.0),
        ),
        PDIST=dict(
            EPSILON=Key(EPSILON, "lowest squared distance of two different images", low=1e-20),
            SQUARED=Key(False, "whether distances are squared"),
        ),
    )

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        hp = self.hp
        loss_rkd = rkd_loss(
            student.features["pooled_feat"],
            teacher.features["pooled_feat"],
            hp.DISTANCE_WEIGHT,
            hp.ANGLE_WEIGHT,
            hp.PDIST.SQUARED,
            hp.PDIST.EPSILON,
        )
        return {"loss_kd": hp.LOSS.FEAT_WEIGHT * loss_rkd}
