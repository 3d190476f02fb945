"""Training transforms that decode no more of a JPEG file than they need.

A random resized crop is drawn from the size in the file's header. The image is then decoded at the
smallest scale of the decoder (1, 1/2, 1/4, 1/8) at which the crop is at least as large as the
result. The crop is resized as a tensor, in about a third of the time that PIL takes.

Random numbers are drawn as by torchvision's transforms, so crops and flips are the same. The pixels
differ by at most 1 of 255 where an image is decoded in full. Where it is not, they differ by more:
the decoder averages before the resize does, and the edges of the crop are rounded to pixels of the
decoded image.

Evaluation and prediction decode in full: the accuracies of published weights hold for that.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edkd.dataset.stored_image import StoredImage

_SMOOTH = ("bilinear", "bicubic")
"""Interpolations in which torchvision resizes tensors as PIL resizes images."""


class ScaledTransform:
    """Transforms of an image that is not decoded yet.

    Args:
        first: makes a PIL image or a tensor of a `StoredImage`.
        rest: transforms of torchvision; the last one returns a tensor.
    """

    def __init__(self, first: Callable[[StoredImage], Any], rest: Sequence[Any]) -> None:
        from torchvision.transforms import v2

        self.first = first
        self.rest = v2.Compose(rest)

    def __call__(self, image: StoredImage) -> Tensor:
        """uint8 (3,H,W).

        Raises:
            Undecodable: the file is damaged.
        """
        return self.rest(self.first(image))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.first}, {self.rest})"


def scaled(transform: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    """The `ScaledTransform` that replaces a transform of PIL images.

    The transform itself is returned if it does not begin with a RandomResizedCrop or a Resize,
    bilinear or bicubic.
    """
    from torchvision.transforms import v2

    steps = list(transform.transforms) if isinstance(transform, v2.Compose) else []
    if len(steps) < 2 or type(steps[0]) not in (v2.RandomResizedCrop, v2.Resize):
        return transform

    first, *rest = steps
    if getattr(first.interpolation, "value", first.interpolation) not in _SMOOTH:
        return transform
    if isinstance(first, v2.RandomResizedCrop):
        return ScaledTransform(ScaledCrop(first), _after_tensor(rest))
    return transform if first.max_size else ScaledTransform(ScaledResize(first), rest)


def _after_tensor(steps: Sequence[Any]) -> list[Any]:
    """Transforms of a PIL image for the same image as a tensor.

    These two are the same for both. Others are slower for tensors, or differ.
    """
    from torchvision.transforms import v2

    same = (v2.RandomHorizontalFlip, v2.PILToTensor)
    if all(type(step) in same for step in steps):
        return list(steps)
    return [v2.ToPILImage(), *steps]


class _ScaledStep:
    """A transform of torchvision that decodes no more than it needs.

    Args:
        step: the transform.
    """

    def __init__(self, step: Any) -> None:
        self.step = step

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.step})"


class ScaledCrop(_ScaledStep):
    """A RandomResizedCrop that decodes what its crop needs."""

    def __call__(self, image: StoredImage) -> Tensor:
        """The resized crop, uint8 (3,H,W)."""
        from torchvision.transforms.v2 import functional as F

        # The crop, from the size alone.
        width, height = image.size
        box = self.step.make_params([torch.empty(3, height, width, device="meta")])

        # The same crop of the decoded image.
        needed_height, needed_width = self.step.size
        divisor = image.divisor(min(box["width"] // needed_width, box["height"] // needed_height))
        left, right = _edges(box["left"], box["width"], divisor, width)
        top, bottom = _edges(box["top"], box["height"], divisor, height)
        crop = image.crop((left, top, right, bottom), divisor)

        return F.resize(crop, self.step.size, self.step.interpolation, antialias=True)


def _edges(start: int, length: int, divisor: int, whole: int) -> tuple[int, int]:
    """Where a part of a row or column of length `whole` is after it was divided."""
    new_length = round(length / divisor)
    last = math.ceil(whole / divisor) - new_length
    new_start = min(round(start / divisor), last)
    return new_start, new_start + new_length


class ScaledResize(_ScaledStep):
    """A Resize that decodes at the smallest scale that is at least as large as its result."""

    def __call__(self, image: StoredImage) -> Any:
        """The resized image, of PIL."""
        width, height = image.size
        size = self.step.size
        if len(size) == 1:
            most = min(width, height) // size[0]
        else:
            most = min(height // size[0], width // size[1])
        return self.step(image.pixels(image.divisor(most)))
