"""Distillation with the reused classifier of the teacher.

D. Chen, J.-P. Mei, H. Zhang, C. Wang, Y. Feng, C. Chen, "Knowledge Distillation with the Reused
Teacher Classifier", CVPR 2022, arXiv:2203.14001.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._math import at_least_float32
from edkd.distillers._pooled_map import pooled_map, shape_of_pooled_map
from edkd.distillers._stages import pooled_to
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.reused_classifier import Projection, ReusedClassifier, name_with
from edkd.types import Batch, Output


def simkd_loss(projected: Tensor, feature_teacher: Tensor) -> Tensor:
    """mean (s - t)^2 of the last feature maps (equation 2).

    Args:
        projected: s (N,D,H,W), the student's map after the projector; computed in float32 or
            better.
        feature_teacher: t (N,D,H',W'); pooled to the student's height and width.

    Returns:
        A scalar >= 0; 0 where both agree.

    Example:
        >>> import torch
        >>> simkd_loss(torch.ones(1, 2, 1, 1), torch.full((1, 2, 2, 2), 3.0)).item()
        4.0
    """
    s = at_least_float32(projected)
    t = at_least_float32(feature_teacher)
    return F.mse_loss(s, pooled_to(t, (s.shape[2], s.shape[3])))


@METHODS.register("SIMKD")
class SIMKD(Distiller):
    """CE_WEIGHT * CE(student, target) + FEAT_WEIGHT * simkd_loss(projected map, teacher's map).

    The network that is evaluated, saved and exported is a `ReusedClassifier`: student, projector
    and the teacher's classifier, which is not trained. The student's own classifier is left out.

    The teacher's map is the one that it pools for its classifier. If it has no such map (a vision
    transformer), its pooled feature is a map of 1x1.
    """

    teacher_needs = ("pooled_feat",)  # or the map, see `set_up`
    student_needs = ("logits", "feats")
    defaults = dict(
        FACTOR=Key(2, "the projector has 1 / FACTOR of the teacher's channels inside", low=1),
        CE_WEIGHT=Key(0.0, "weight of the cross-entropy with the labels", low=0.0),
        FEAT_WEIGHT=Key(1.0, "weight of the difference of the feature maps", low=0.0),
    )

    student: ReusedClassifier

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        data = self.facts()
        _check_solver(cfg.SOLVER)
        classifier = self.classifier(teacher)
        shape_teacher = shape_of_pooled_map(teacher, data.image_shape)
        self.has_map = shape_teacher is not None
        self.teacher_needs = ("feats",) if self.has_map else ("pooled_feat",)

        # The smaller of both heights and widths.
        _, in_channels, *size_student = self.feature_shapes(student).feats[-1]
        pooled = self.feature_shapes(teacher).pooled_feat
        _, out_channels, *size_teacher = shape_teacher or (*pooled, 1, 1)
        height, width = map(min, size_student, size_teacher)
        projection = Projection(in_channels, out_channels, height, width, self.hp.FACTOR)
        if classifier.in_features != out_channels:
            raise UserError(
                f"SIMKD reuses the classifier of the teacher, which takes {classifier.in_features} "
                f"features, but its pooled feature has {out_channels}; choose another teacher"
            )

        self.student = ReusedClassifier(student, projection, data.num_classes)
        reused: Any = self.student.classifier
        reused.weight.copy_(classifier.weight.detach())
        reused.bias.zero_()
        if classifier.bias is not None:
            reused.bias.copy_(classifier.bias.detach())

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        feature_teacher = pooled_map(teacher, self.has_map)
        loss_feat = simkd_loss(student.features["feats"][-1], feature_teacher)
        return {"loss_kd": self.hp.FEAT_WEIGHT * loss_feat}

    def get_extra_parameters(self) -> int:
        """Those of the projector, which is part of the student that is saved."""
        return sum(parameter.numel() for parameter in self.student.projector.parameters())

    def architectures(self, cfg: Any) -> list[str]:
        """The student with its projector."""
        return [name_with(cfg.DISTILLER.STUDENT, self.student.projection)]


def _check_solver(solver: Any) -> None:
    """Refuse keys of the head, which is not trained."""
    for key, usual in (("TRAIN_ONLY", "all"), ("HEAD_LR_FACTOR", 1.0)):
        if solver[key] != usual:
            raise UserError(
                f"SOLVER.{key} {solver[key]} trains the head in another way, but SIMKD does not "
                f"train it; set it to {usual}"
            )
