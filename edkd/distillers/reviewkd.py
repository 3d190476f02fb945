"""Knowledge review: each stage of the teacher guides a fusion of the student's deeper stages.

P. Chen, S. Liu, H. Zhao, J. Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021,
arXiv:2104.09044.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._math import at_least_float32, warmup_factor
from edkd.distillers._stages import (
    Shape,
    Size,
    check_stages,
    last_of_each,
    maps_before_relu,
)
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output

LEVELS = (4, 2, 1)
"""Heights and widths to which maps are pooled."""

MEANING = dict(
    SHAPES="heights of the student's maps, the pooled features first",
    OUT_SHAPES="heights of the teacher's maps, the pooled features first",
    IN_CHANNELS="channels of the student's maps, the pooled features last",
    OUT_CHANNELS="channels of the teacher's maps, the pooled features last",
)
"""Published keys for what is found from the networks."""


def hcl_loss(features_student: Sequence[Tensor], features_teacher: Sequence[Tensor]) -> Tensor:
    """sum_k sum_l w_l * mean((pool_l(s_k) - pool_l(t_k))^2) / sum_l w_l (section 3.3).

    The hierarchical context loss. The levels l of stage k are the whole map, with weight 1, then
    those of 4x4, 2x2 and 1x1 cells that are smaller than the map; each level weighs half as much as
    the one before.

    Args:
        features_student: of K stages, (N,D,H,W) each; computed in float32 or better.
        features_teacher: of the same shapes.

    Returns:
        A scalar >= 0; 0 where both are equal.

    Example:
        >>> hints = [torch.ones(2, 3, 8, 8), torch.ones(2, 5, 1, 1)]
        >>> hcl_loss([hint + 2 for hint in hints], hints).item()
        8.0
    """
    pairs = zip(features_student, features_teacher, strict=True)
    return torch.stack([_context_loss(s, t) for s, t in pairs]).sum()


def _context_loss(feature_student: Tensor, feature_teacher: Tensor) -> Tensor:
    difference = at_least_float32(feature_student) - at_least_float32(feature_teacher)
    loss = difference.square().mean()
    weight = 1.0
    total = 1.0

    # Pooling is linear, so the difference is pooled.
    for level in LEVELS:
        if level >= min(difference.shape[2:]):
            continue
        weight /= 2
        total += weight
        loss = loss + weight * F.adaptive_avg_pool2d(difference, level).square().mean()
    return loss / total


class AttentionFusion(nn.Module):
    """Fuses a map of the student with the fusion of its deeper maps (section 3.3, ABF).

    The children have the published names.

    Args:
        in_channels: of the student's map.
        mid_channels: of fused maps.
        out_channels: of the teacher's map.
        has_deeper: whether there are deeper maps; the deepest stage has none.
    """

    def __init__(
        self, in_channels: int, mid_channels: int, out_channels: int, has_deeper: bool
    ) -> None:
        super().__init__()
        self.conv1 = _conv_bn(in_channels, mid_channels, 1)
        self.conv2 = _conv_bn(mid_channels, out_channels, 3)
        self.att_conv: nn.Module | None = None
        if has_deeper:
            self.att_conv = nn.Sequential(nn.Conv2d(2 * mid_channels, 2, 1), nn.Sigmoid())

    def forward(self, x: Tensor, deeper: Tensor | None, out_size: Size) -> tuple[Tensor, Tensor]:
        """The map to compare, and the fused one for the next stage.

        Args:
            x: (N,D,H,W) of the student.
            deeper: (N,M,H',W'), fused from the deeper maps; None at the deepest stage.
            out_size: height and width of the teacher's map.

        Returns:
            (N,out_channels,*out_size) and (N,M,*out_size).
        """
        x = self.conv1(x)
        if self.att_conv is not None and deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            attention = self.att_conv(torch.cat([x, deeper], 1))
            x = x * attention[:, :1] + deeper * attention[:, 1:]

        if x.shape[2:] != out_size:
            x = F.interpolate(x, out_size, mode="nearest")
        return self.conv2(x), x


def _conv_bn(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


@METHODS.register("REVIEWKD")
class ReviewKD(Distiller):
    """CE_WEIGHT * CE + min(epoch / WARMUP_EPOCHS, 1) * REVIEWKD_WEIGHT * hcl_loss(fused, teacher).

    The teacher's maps are those before the last ReLU of each stage, without the stem, then its
    pooled features as a map of 1x1. If a teacher has no maps before a ReLU, its maps are used as
    they are. The student has as many maps, its last ones; its stem is one of them only where the
    teacher has more stages. Fused maps are resized to the teacher's by nearest neighbours.

    Differs from the published code: numbers of channels and sizes are found from the networks; the
    published keys for them are compared with what was found. MAX_MID_CHANNEL has an effect.
    """

    teacher_needs = ("feats", "pooled_feat")
    student_needs = ("logits", "feats", "pooled_feat")
    defaults = dict(
        CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
        REVIEWKD_WEIGHT=Key(1.0, "weight of the hierarchical context loss", low=0.0),
        WARMUP_EPOCHS=Key(20, "the distillation term grows over these", unit="epochs", low=0),
        **{
            name: Key([], f"{text}; empty: found from the networks")
            for name, text in MEANING.items()
        },
        MAX_MID_CHANNEL=Key(512, "largest number of channels of fused maps", low=1),
        STU_PREACT=Key(False, "whether the student's maps are those before the ReLUs"),
    )

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        found_student = self.feature_shapes(student)
        found_teacher = self.feature_shapes(teacher)
        check_stages("REVIEWKD", "student", found_student)
        check_stages("REVIEWKD", "teacher", found_teacher)
        shapes_student = found_student._asdict()
        shapes_teacher = found_teacher._asdict()
        if self.hp.STU_PREACT and not shapes_student["preact_feats"]:
            raise UserError(
                "REVIEWKD.STU_PREACT is True, but the student has no feature maps before a ReLU; "
                "set it to False"
            )

        own, hints = last_of_each(self._maps(shapes_student), _hints(shapes_teacher))
        own.append(_as_map(shapes_student["pooled_feat"]))
        hints.append(_as_map(shapes_teacher["pooled_feat"]))
        self._check_given(own, hints)

        # From the deepest stage on, as they run.
        self.out_sizes = [(shape[2], shape[3]) for shape in reversed(hints)]
        mid_channels = min(self.hp.MAX_MID_CHANNEL, own[-1][1])
        self.abfs = nn.ModuleList()
        for shape, hint in zip(reversed(own), reversed(hints), strict=True):
            has_deeper = len(self.abfs) > 0
            fusion = AttentionFusion(shape[1], mid_channels, hint[1], has_deeper)
            self.abfs.append(fusion)

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        maps = self._maps(student.features)
        own, hints = last_of_each(maps, _hints(teacher.features))
        own.append(_pooled_map(student.features))
        hints.append(_pooled_map(teacher.features))

        # Review, from the deepest stage on.
        fused = None
        outputs = []
        for fusion, feature, size in zip(self.abfs, reversed(own), self.out_sizes, strict=True):
            output, fused = fusion(feature, fused, size)
            outputs.append(output)

        factor = warmup_factor(batch.epoch, self.hp.WARMUP_EPOCHS)
        loss_review = hcl_loss(outputs, hints[::-1])
        return {"loss_kd": factor * self.hp.REVIEWKD_WEIGHT * loss_review}

    def _maps(self, features: Mapping[str, Any]) -> list[Any]:
        """The student's maps, or their shapes."""
        return features["preact_feats"] if self.hp.STU_PREACT else features["feats"]

    def _check_given(self, own: Sequence[Shape], hints: Sequence[Shape]) -> None:
        """Raise UserError where a published key contradicts the networks."""
        found = dict(
            SHAPES=_heights(own),
            OUT_SHAPES=_heights(hints),
            IN_CHANNELS=[shape[1] for shape in own],
            OUT_CHANNELS=[shape[1] for shape in hints],
        )

        for name, value in found.items():
            given = list(self.hp[name])
            if given and given != value:
                raise UserError(
                    f"REVIEWKD.{name} is {given}, but the {MEANING[name]}, are {value} for these "
                    "networks; leave it out"
                )


def _hints(features: Mapping[str, Any]) -> list[Any]:
    """The teacher's maps, or their shapes, without the stem."""
    return maps_before_relu(features)[1:]


def _pooled_map(features: Mapping[str, Any]) -> Tensor:
    """The pooled features (N,D) as a map (N,D,1,1)."""
    return features["pooled_feat"].flatten(1)[:, :, None, None]


def _as_map(shape: Shape) -> Shape:
    """The shape of pooled features as that of a map."""
    return (shape[0], shape[1], 1, 1)


def _heights(shapes: Sequence[Shape]) -> list[Any]:
    """The height of each map from the deepest on; (height, width) where they differ."""
    sizes = [shape[2:] for shape in reversed(shapes)]
    return [size[0] if size[0] == size[1] else size for size in sizes]
