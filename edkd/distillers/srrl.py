"""Softmax regression representation learning.

J. Yang, B. Martinez, A. Bulat, G. Tzimiropoulos, "Knowledge distillation via softmax regression
representation learning", ICLR 2021.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._math import at_least_float32, reduced
from edkd.distillers._pooled_map import pooled_map, shape_of_pooled_map
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output


def srrl_loss(student: Tensor, teacher: Tensor, reduction: str = "mean") -> Tensor:
    """mean_i mean_d (h_id - t_id)^2, for features (equation 2) and for logits (equation 6).

    Args:
        student: h (N,D); computed in float32 or better.
        teacher: t (N,D).
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar >= 0, or (N,); 0 where both agree.

    Example:
        >>> import torch
        >>> srrl_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])).item()
        2.0
    """
    difference = at_least_float32(student) - at_least_float32(teacher)
    return reduced(difference.square().mean(1), reduction)


@METHODS.register("SRRL")
class SRRL(Distiller):
    """CE_WEIGHT * CE + FEAT_WEIGHT * srrl_loss of features + LOGIT_WEIGHT * srrl_loss of logits.

    The features h of the student are compared with the pooled ones of the teacher, the logits
    W_t(h) with those of the teacher.
    h = mean over H and W of ReLU(BN(Conv1x1(map))), of the feature map that the student pools. W_t
    is the classifier of the teacher, which stays as it is. Where a student has no such map, its
    pooled feature is a map of 1x1.
    """

    teacher_needs = ("logits", "pooled_feat")
    student_needs = ("logits", "pooled_feat")
    has_loss_per_image = True
    defaults = dict(
        CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
        FEAT_WEIGHT=Key(1.0, "weight of the difference of the pooled features", low=0.0),
        LOGIT_WEIGHT=Key(1.0, "weight of the difference of the teacher's logits", low=0.0),
    )

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        width_student = self.feature_shapes(student).pooled_feat[1]
        width_teacher = self.feature_shapes(teacher).pooled_feat[1]

        # The teacher's classifier must take what is compared with its feature.
        classifier = self.classifier(teacher)
        if classifier.in_features != width_teacher:
            raise UserError(
                f"SRRL uses the classifier of the teacher, which takes {classifier.in_features} "
                f"features, but its pooled feature has {width_teacher}; choose another teacher"
            )
        self.frozen = (classifier,)

        image_shape = self.facts().image_shape
        self.has_map = shape_of_pooled_map(student, image_shape) is not None
        convolution = nn.Conv2d(width_student, width_teacher, 1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        self.connector = nn.Sequential(convolution, nn.BatchNorm2d(width_teacher), nn.ReLU())

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        feature = self.connector(pooled_map(student, self.has_map)).mean((2, 3))
        (classifier,) = self.frozen
        logits = self.standardized(F.linear(feature, classifier.weight, classifier.bias))

        loss_feat = srrl_loss(feature, teacher.features["pooled_feat"], self.reduction)
        loss_logit = srrl_loss(logits, teacher.logits, self.reduction)
        return {
            "loss_kd_feat": self.hp.FEAT_WEIGHT * loss_feat,
            "loss_kd_logit": self.hp.LOGIT_WEIGHT * loss_logit,
        }
