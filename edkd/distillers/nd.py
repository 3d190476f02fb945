"""Norm and direction of features: the additional loss of KD++ and DKD++.

Y. Wang, L. Cheng, M. Duan, Y. Wang, Z. Feng, S. Kong, "Improving Knowledge Distillation via
Regularizing Feature Norm and Direction", ECCV 2024, arXiv:2305.17007.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._math import at_least_float32, check_class_numbers, reduced
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output

EPSILON = 1e-4
"""The least norm that a product is divided by."""


def nd_loss(
    feature_student: Tensor, feature_teacher: Tensor, direction: Tensor, reduction: str = "mean"
) -> Tensor:
    """mean_i [1 - s_i . e_i / max(|s_i|, |t_i|)] (equation 8).

    e_i is the direction of the teacher's mean feature for the class of the image. So the student's
    feature is pulled in that direction, and to a norm that is not below the teacher's.

    Args:
        feature_student: s (N,D); computed in float32 or better.
        feature_teacher: t (N,D).
        direction: e (N,D), of norm 1; 0 where there is none.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar, or (N,), in [0, 2].

    Example:
        >>> direction = torch.tensor([[1.0, 0.0]])
        >>> nd_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]]), direction).item()
        0.5
    """
    s = at_least_float32(feature_student)
    t = at_least_float32(feature_teacher)
    norm = torch.maximum(s.norm(dim=1), t.norm(dim=1)).clamp(min=EPSILON)
    return reduced(1 - (s * direction).sum(1) / norm, reduction)


@METHODS.register("ND")
class ND(Distiller):
    """CE_WEIGHT * CE(student, target) + ND_WEIGHT * nd_loss, of the pooled features.

    It is meant to be combined: DISTILLER.TYPE "KD+ND" is KD++, "DKD+ND" is DKD++. Where the
    student's feature has another width than the teacher's, batch norm, dropout and a linear map
    come before the loss, as in the published code.

    Differs from the published code: the mean features of the classes are those of the augmented
    images of the first epoch.
    """

    teacher_needs = ("pooled_feat",)
    student_needs = ("logits", "pooled_feat")
    needs_class_numbers = True
    has_loss_per_image = True
    collects = True
    defaults = dict(
        CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
        ND_WEIGHT=Key(1.0, "weight of the term for norm and direction", low=0.0),
        DROPOUT=Key(
            0.5,
            "share of the student's features that are dropped before the linear map to another "
            "width",
            low=0.0,
            high=0.99,
        ),
    )

    directions: Tensor

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        width_student = self.feature_shapes(student).pooled_feat[1]
        width_teacher = self.feature_shapes(teacher).pooled_feat[1]

        self.connector: nn.Module = nn.Identity()
        if width_student != width_teacher:
            self.connector = nn.Sequential(
                nn.BatchNorm1d(width_student),
                nn.Dropout(self.hp.DROPOUT),
                nn.Linear(width_student, width_teacher),
            )
        self.register_buffer("directions", torch.zeros(self.facts().num_classes, width_teacher))

    def collect(self, teacher: Output, batch: Batch) -> None:
        """Add the features to the sums of their classes."""
        check_class_numbers(batch.target)
        feature = teacher.features["pooled_feat"].to(self.directions.dtype)
        is_class = F.one_hot(batch.target, len(self.directions)).to(self.directions.dtype)

        # A product, as sums by index depend on the order of threads on a GPU.
        with torch.autocast(feature.device.type, enabled=False):
            self.directions += is_class.T @ feature

    def end_collection(self) -> None:
        """The sum of a class has the direction of its mean."""
        self.directions.copy_(F.normalize(self.directions))

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        check_class_numbers(batch.target)
        loss_nd = nd_loss(
            self.connector(student.features["pooled_feat"]),
            teacher.features["pooled_feat"],
            self.directions[batch.target],
            self.reduction,
        )
        return {"loss_kd": self.hp.ND_WEIGHT * loss_nd}
