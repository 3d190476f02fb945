"""The feature maps of two networks stage by stage: which ones are compared, and at which size."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._features import FeatureShapes
from edkd.distillers._math import at_least_float32
from edkd.errors import UserError
from edkd.types import Output

Shape = Sequence[int]
Size = tuple[int, int]
Pair = tuple[int, int]
T = TypeVar("T")


class StageDistiller(Distiller):
    """A method that compares the feature maps after the stem, in pairs.

    The first of `feats` is the stem's and is left out, except where a network has no other. Where
    both networks have as many maps, they are paired in order; otherwise see `stage_pairs`.
    """

    teacher_needs = ("feats",)
    student_needs = ("feats",)

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
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
    """Which map of the student is compared with which map of the teacher.

    Each map of the network with fewer maps gets one of the other network, in order. The choice has
    the least sum of |log(height / height)|; of equal choices, the deepest maps win.

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


def last_of_each(first: Sequence[T], second: Sequence[T]) -> tuple[list[T], list[T]]:
    """The last entries of two sequences, as many as the shorter one has."""
    number = min(len(first), len(second))
    return list(first[len(first) - number :]), list(second[len(second) - number :])


def maps_before_relu(features: Mapping[str, Any]) -> list[Any]:
    """The feature maps before the last ReLU of each stage, or `feats` of a network without these.

    Args:
        features: of an Output; or shapes, as `FeatureShapes._asdict`.
    """
    return features["preact_feats"] or features["feats"]


# Sizes.


def at_one_size(feature_student: Tensor, feature_teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps at the smaller of their heights and widths, by average pooling.

    Args:
        feature_student: (N,D,H,W); converted to float32 or better.
        feature_teacher: the same; D may differ.
    """
    size = common_size(feature_student.shape, feature_teacher.shape)
    maps = (at_least_float32(feature_student), at_least_float32(feature_teacher))
    return pooled_to(maps[0], size), pooled_to(maps[1], size)


def common_size(first: Shape, second: Shape) -> Size:
    """The smaller height and the smaller width of two maps (N,D,H,W)."""
    return min(first[2], second[2]), min(first[3], second[3])


def pooled_to(feature: Tensor, size: Size) -> Tensor:
    """A map (N,D,H,W) averaged over cells to another height and width; unchanged if it has both."""
    height, width = size
    old_height, old_width = feature.shape[2:]
    if (old_height, old_width) == size:
        return feature

    # The same result; on a GPU, only this one is deterministic.
    if old_height % height == 0 and old_width % width == 0:
        return F.avg_pool2d(feature, (old_height // height, old_width // width))
    return F.adaptive_avg_pool2d(feature, size)


# Checks.


def check_stages(method: str, role: str, shapes: FeatureShapes) -> None:
    """Raise UserError where a network has no feature map besides its first, the stem.

    Args:
        method: that reads the stages, for messages.
        role: "student" or "teacher".
        shapes: of the network.
    """
    if len(shapes.feats) < 2:
        raise UserError(
            f"{method} compares the feature maps of stages, but the {role} has "
            f"{len(shapes.feats)} feature map(s), the first of which is its stem; choose another "
            f"{role}, or another DISTILLER.TYPE"
        )


def check_input_size(key: str, given: Sequence[int], image_shape: tuple[int, int, int]) -> None:
    """Raise UserError where a published key for the size of images contradicts the data.

    Args:
        key: for messages.
        given: (height, width); empty: that of the data.
        image_shape: (channels, height, width) of an image of a batch.
    """
    size = image_shape[1:]
    if given and tuple(given) != size:
        raise UserError(
            f"{key} is {tuple(given)}, but the images of the data are {size}; leave it out, the "
            "size is found from the data"
        )
