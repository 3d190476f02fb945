"""Variational information distillation.

S. Ahn, S. X. Hu, A. Damianou, N. D. Lawrence, Z. Dai, "Variational Information Distillation for
Knowledge Transfer", CVPR 2019, arXiv:1904.05835.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._math import at_least_float32
from edkd.distillers._stages import (
    check_input_size,
    check_stages,
    common_size,
    last_of_each,
    pooled_to,
)
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output


def vid_loss(mean: Tensor, feature_teacher: Tensor, log_scale: Tensor, eps: float = 1e-5) -> Tensor:
    """mean_nchw[(t - mu)^2 / (2 v_c) + log(v_c) / 2] with v_c = softplus(a_c) + eps (equation 5).

    This is the negative log-likelihood of the teacher's map under a normal distribution whose mean
    the student predicts, without its constant.

    Differs from the paper: the mean over all entries instead of their sum, as in the published
    code.

    Args:
        mean: mu (N,D,H,W), predicted from the student's map; computed in float32 or better.
        feature_teacher: t (N,D,H,W).
        log_scale: a (D,), learned; one variance for each channel.
        eps: smallest variance, > 0.

    Returns:
        A scalar, which can be negative; it is smallest where v_c is the mean squared error.

    Example:
        >>> hint = torch.ones(2, 3, 4, 4)
        >>> log_scale = torch.full((3,), 0.5413)  # a variance of 1
        >>> round(vid_loss(hint + 2, hint, log_scale).item(), 3)
        2.0
    """
    mean = at_least_float32(mean)
    feature_teacher = at_least_float32(feature_teacher)
    variance = F.softplus(at_least_float32(log_scale)) + eps
    variance = variance[:, None, None]

    squared = (mean - feature_teacher).square()
    return 0.5 * (squared / variance + variance.log()).mean()


def inverse_softplus(value: float) -> float:
    """x with softplus(x) = value, for value > 0."""
    x = torch.tensor(value, dtype=torch.float64)
    return (x + torch.log(-torch.expm1(-x))).item()


@METHODS.register("VID")
class VID(Distiller):
    """CE_WEIGHT * CE + FEAT_WEIGHT * sum over the stages of vid_loss(regressor(student), teacher).

    The stages are all maps but the stem. Where one network has more, the last ones are paired. Of
    two maps of different size, the larger one is average-pooled to the size of the smaller.

    Differs from the published code of mdistiller: the variances learn, as in the paper.
    """

    teacher_needs = ("feats",)
    student_needs = ("logits", "feats")
    defaults = dict(
        EPS=Key(1e-5, "smallest variance", low=1e-12),
        INIT_PRED_VAR=Key(5.0, "variance of each channel before training", low=1e-6),
        INPUT_SIZE=Key((), "height and width of an image; empty: those of the data"),
        LOSS=dict(
            CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
            FEAT_WEIGHT=Key(1.0, "weight of the negative log-likelihood", low=0.0),
        ),
    )

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        hp = self.hp
        if hp.INIT_PRED_VAR <= hp.EPS:
            raise UserError(
                f"VID.INIT_PRED_VAR is {hp.INIT_PRED_VAR}, but must be above VID.EPS, {hp.EPS}"
            )

        shapes_student = self.feature_shapes(student)
        shapes_teacher = self.feature_shapes(teacher)
        check_stages("VID", "student", shapes_student)
        check_stages("VID", "teacher", shapes_teacher)
        data = self.facts()
        check_input_size("VID.INPUT_SIZE", hp.INPUT_SIZE, data.image_shape)

        self.regressors = nn.ModuleList()
        self.log_scales = nn.ParameterList()
        start = inverse_softplus(hp.INIT_PRED_VAR - hp.EPS)
        pairs = last_of_each(shapes_student.feats[1:], shapes_teacher.feats[1:])
        for shape_student, shape_teacher in zip(*pairs, strict=True):
            channels = shape_teacher[1]
            self.regressors.append(regressor(shape_student[1], channels))
            self.log_scales.append(nn.Parameter(torch.full((channels,), start)))

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        pairs = last_of_each(student.features["feats"][1:], teacher.features["feats"][1:])
        stages = zip(*pairs, self.regressors, self.log_scales, strict=True)

        terms = []
        for feature_student, feature_teacher, regress, log_scale in stages:
            size = common_size(feature_student.shape, feature_teacher.shape)
            mean = regress(pooled_to(feature_student, size))
            hint = pooled_to(feature_teacher, size)
            terms.append(vid_loss(mean, hint, log_scale, self.hp.EPS))
        return {"loss_kd": self.hp.LOSS.FEAT_WEIGHT * torch.stack(terms).sum()}


def regressor(in_channels: int, out_channels: int) -> nn.Sequential:
    """Three 1x1 convolutions with ReLUs between them, from the student's channels to the mean."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 1, bias=False),
    )
