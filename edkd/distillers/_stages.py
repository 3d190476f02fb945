"""The feature maps of two networks stage by stage: which ones belong together, at one size."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._math import at_least_float32
from edkd.errors import UserError
from edkd.types import DataInfo, Output

Shape = Sequence[int]
Pair = tuple[int, int]


class StageDistiller(Distiller):
    """A method that compares the feature maps after the stem, in pairs.

    The first of `feats` is the stem's and is left out, except where a network has no other. Where
    both networks have as many maps, they are paired in order; otherwise see `stage_pairs`.
    """

    teacher_needs = ("feats",)
    student_needs = ("feats",)

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        cfg: Any = None,
        data: DataInfo | None = None,
    ) -> None:
        super().__init__(student, teacher, cfg, data)
        shapes_student, shapes_teacher = [
            after_stem(self.feature_shapes(network).feats) for network in (student, self.teacher)
        ]
        self.pairs = stage_pairs(shapes_student, shapes_teacher)
        if not self.pairs:
            raise UserError(
                f"{type(self).__name__} compares feature maps, of which the student has "
                f"{len(shapes_student)} and the teacher {len(shapes_teacher)}; choose other "
                "networks, or a method that reads logits, such as KD"
            )

    def stages(self, student: Output, teacher: Output) -> tuple[list[Tensor], list[Tensor]]:
        """The maps of both networks, (N,D,H,W) each, pair by pair."""
        maps_student = after_stem(student.features["feats"])
        maps_teacher = after_stem(teacher.features["feats"])
        of_student = [maps_student[first] for first, _ in self.pairs]
        of_teacher = [maps_teacher[second] for _, second in self.pairs]
        return of_student, of_teacher


def after_stem(maps: Sequence[Any]) -> Sequence[Any]:
    """All but the first of several maps."""
    return maps[1:] if len(maps) > 1 else maps


def stage_pairs(shapes_student: Sequence[Shape], shapes_teacher: Sequence[Shape]) -> list[Pair]:
    """Which map of the student belongs to which one of the teacher.

    Each map of the network with fewer maps gets one of the other network, in order. The choice has
    the least sum of |log(height / height)|; of equal choices it has the deepest maps.

    Args:
        shapes_student: (N,D,H,W) of each map.
        shapes_teacher: the same.

    Returns:
        Numbers of the student's and the teacher's maps; empty where a network has none.

    Example:
        >>> stage_pairs([(1, 8, 16, 16), (1, 8, 8, 8)], [(1, 8, s, s) for s in (32, 16, 8, 8)])
        [(0, 1), (1, 3)]
    """
    if len(shapes_student) > len(shapes_teacher):
        return [(s, t) for t, s in stage_pairs(shapes_teacher, shapes_student)]

    heights = [shape[2] for shape in shapes_student]
    others = [shape[2] for shape in shapes_teacher]

    def mismatch(chosen: Sequence[int]) -> float:
        ratios = [others[number] / height for number, height in zip(chosen, heights, strict=True)]
        return sum(abs(math.log(ratio)) for ratio in ratios)

    choices = list(itertools.combinations(range(len(others)), len(heights)))
    best = min(reversed(choices), key=lambda chosen: round(mismatch(chosen), 6))
    return list(enumerate(best))


def at_one_size(feature_student: Tensor, feature_teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps at the smaller of their heights and widths, by average pooling.

    Args:
        feature_student: (N,D,H,W); converted to float32 or better.
        feature_teacher: the same; D may differ.
    """
    height = min(feature_student.shape[2], feature_teacher.shape[2])
    width = min(feature_student.shape[3], feature_teacher.shape[3])
    return _pooled(feature_student, height, width), _pooled(feature_teacher, height, width)


def _pooled(feature: Tensor, height: int, width: int) -> Tensor:
    feature = at_least_float32(feature)
    old_height, old_width = feature.shape[2:]
    if (old_height, old_width) == (height, width):
        return feature

    # The same result; on a GPU, only this one is deterministic.
    if old_height % height == 0 and old_width % width == 0:
        return F.avg_pool2d(feature, (old_height // height, old_width // width))
    return F.adaptive_avg_pool2d(feature, (height, width))
