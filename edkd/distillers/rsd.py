"""Redundancy suppression distillation, for networks of different architectures.

W. Zhang, Y. Liu, W. Ran, C. Ma, "Cross-Architecture Distillation Made Simple with Redundancy
Suppression", ICCV 2025.
"""

from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._math import at_least_float32
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output

EPSILON = 1e-5
"""Added to a standard deviation."""

LEAST_VARIANCE = 1e-16
"""Below it a feature is constant: it becomes 0, without a gradient."""


def rsd_loss(feature_student: Tensor, feature_teacher: Tensor, kappa: float) -> Tensor:
    """sum_d (P_dd - 1)^2 + kappa * sum_{d != e} P_de^2.

    P_de = 1/N sum_i t'_id s'_ie is the correlation of the features, each standardised over the
    batch: x' = (x - mean) / (std + 1e-5).

    Args:
        feature_student: s (N,D), N >= 2; computed in float32 or better.
        feature_teacher: t (N,D).
        kappa: weight of the redundancy between different features, >= 0.

    Returns:
        A scalar >= 0.

    Raises:
        UserError: the batch has one image.

    Example:
        >>> feature = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
        >>> round(rsd_loss(feature, feature, kappa=0.01).item(), 6)
        0.0
    """
    number = len(feature_student)
    if number < 2:
        raise UserError("rsd_loss relates the images of a batch, but it has one; use two or more")

    s = _standardized(at_least_float32(feature_student))
    t = _standardized(at_least_float32(feature_teacher))
    with torch.autocast(s.device.type, enabled=False):
        correlation = t.T @ s / number

    diagonal = correlation.diagonal()
    invariance = (diagonal - 1).square().sum()
    redundancy = correlation.square().sum() - diagonal.square().sum()
    return invariance + kappa * redundancy


def _standardized(feature: Tensor) -> Tensor:
    variance = feature.var(0, unbiased=False)
    std = variance.clamp(min=LEAST_VARIANCE).sqrt()
    scale = torch.where(variance > LEAST_VARIANCE, 1 / (std + EPSILON), 0.0)
    return (feature - feature.mean(0)) * scale


@METHODS.register("RSD")
class RSD(Distiller):
    """CE_WEIGHT * CE(student, target) + FEAT_WEIGHT * rsd_loss, of the pooled features.

    The student's pooled feature passes through two linear layers, with batch norm and GELU between
    them, which are not part of the trained network.
    """

    teacher_needs = ("pooled_feat",)
    student_needs = ("logits", "pooled_feat")
    gathers_batch = True
    defaults = dict(
        CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
        FEAT_WEIGHT=Key(0.1, "weight of the correlation term", low=0.0),
        KAPPA=Key(0.01, "weight of the correlation of different features", low=0.0),
        GAMMA=Key(2, "width between the linear layers, in widths of the student's feature", low=1),
    )

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        width_student = self.feature_shapes(student).pooled_feat[1]
        width_teacher = self.feature_shapes(teacher).pooled_feat[1]
        width = self.hp.GAMMA * width_student

        self.projector = nn.Sequential(
            nn.Linear(width_student, width, bias=False),
            nn.BatchNorm1d(width),
            nn.GELU(),
            nn.Linear(width, width_teacher, bias=False),
        )

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        projected = self.projector(student.features["pooled_feat"])
        loss_rsd = rsd_loss(projected, teacher.features["pooled_feat"], self.hp.KAPPA)
        return {"loss_kd": self.hp.FEAT_WEIGHT * loss_rsd}
