"""Feature maps of two networks whose stages differ: which ones are paired, at which size."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor

from edkd.distillers._features import FeatureShapes
from edkd.errors import UserError

Shape = tuple[int, ...]
Size = tuple[int, int]
T = TypeVar("T")


def maps_before_relu(features: Mapping[str, Any]) -> list[Any]:
    """The feature maps before the last ReLU of each stage, or `feats` of a network without these.

    Args:
        features: of an Output; or shapes, as `FeatureShapes._asdict`.
    """
    return features["preact_feats"] or features["feats"]


def last_of_each(first: Sequence[T], second: Sequence[T]) -> tuple[list[T], list[T]]:
    """The last entries of two sequences, as many as the shorter one has."""
    number = min(len(first), len(second))
    return list(first[len(first) - number :]), list(second[len(second) - number :])


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


def common_size(first: Shape, second: Shape) -> Size:
    """The smaller height and the smaller width of two maps (N,D,H,W)."""
    return min(first[2], second[2]), min(first[3], second[3])


def pooled_to(feature: Tensor, size: Size) -> Tensor:
    """A map (N,D,H,W) averaged over cells to another height and width; unchanged if it has both."""
    if feature.shape[2:] == size:
        return feature
    return F.adaptive_avg_pool2d(feature, size)


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
