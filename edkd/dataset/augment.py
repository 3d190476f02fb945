"""Batched augmentation on the device. Each outcome for an image has a number.

The results equal those of torchvision's transforms for the same offsets, pixel by pixel.
"""

import re
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from edkd.errors import UserError
from edkd.memory import prefer_huge_pages

_ADDRESS = re.compile(r"\bat 0x[0-9a-f]+", re.IGNORECASE)


class NumberedViews(Protocol):
    """A finite set of numbered views of an image."""

    @property
    def num_views(self) -> int:
        """Number of views of an image; view numbers are below it."""

    def identity(self) -> str:
        """Everything that decides the result, as text that is the same in every process.

        It is part of the key of the teacher cache: different parameters need different texts.
        """


@runtime_checkable
class Augmentation(NumberedViews, Protocol):
    """Makes numbered views of images that are on the device."""

    def __call__(self, image: Tensor, number: Tensor) -> Tensor:
        """Make one view of each image.

        Args:
            image: (N,3,H,W), uint8.
            number: (N,), view numbers in [0, num_views), on the same device.

        Returns:
            (N,3,H,W), of the image's type.
        """


@runtime_checkable
class PerImage(Protocol):
    """An augmentation whose views also depend on the number of the image."""

    @property
    def per_image(self) -> bool:
        """True."""

    def __call__(self, image: Tensor, number: Tensor, index: Tensor) -> Tensor:
        """As `Augmentation.__call__`; `index` (N,) are the numbers of the images in their set."""


def make_views(
    augmentation: Augmentation | PerImage, image: Tensor, number: Tensor, index: Tensor
) -> Tensor:
    """One view (N,3,H,W) of each image.

    Args:
        augmentation: it gets the index if it has a true attribute `per_image`.
        image: (N,3,H,W), uint8.
        number: (N,), view numbers.
        index: (N,), image numbers.
    """
    if getattr(augmentation, "per_image", False):
        return augmentation(image, number, index)  # type: ignore[call-arg]
    return augmentation(image, number)  # type: ignore[call-arg]


def check_augmentation(name: str, augmentation: Any) -> None:
    """Raise UserError if an object is not a usable `Augmentation`.

    Args:
        name: of the view, for messages.
    """
    kind = type(augmentation).__name__
    what = f"the augmentation {kind} of the view {name!r}"
    if not isinstance(augmentation, Augmentation):
        raise UserError(
            f"{what} needs num_views, identity() and __call__(image, number); see "
            "edkd.dataset.augment.Augmentation"
        )

    kinds = type(augmentation).__mro__
    caller = next(each for each in kinds if "__call__" in vars(each))
    namer = next(each for each in kinds if "identity" in vars(each))
    if kinds.index(namer) > kinds.index(caller):
        raise UserError(
            f"{what} defines __call__ but inherits identity() from {namer.__name__}; define both"
        )

    num_views = augmentation.num_views
    if not isinstance(num_views, int) or num_views < 1:
        raise UserError(f"{what} has num_views {num_views!r}; it must be a positive integer")

    identity = augmentation.identity()
    if not isinstance(identity, str) or not identity or has_address(identity):
        raise UserError(
            f"{what} has the identity {identity!r}; identity() must return a text with all "
            "parameters, and no memory address, as that differs between processes"
        )


def has_address(text: str) -> bool:
    """Whether a text contains a memory address, which differs between processes."""
    return _ADDRESS.search(text) is not None


@dataclass(frozen=True)
class CropFlip:
    """Pad with zeros, crop to the image's own size, optionally flip.

    View number = (top * side + left) * flips + is_flipped, where side = 2 * padding + 1, and flips
    is 2 with `flip` and 1 without.

    Args:
        padding: pixels on each side.
        flip: whether half of the views are mirrored.
    """

    padding: int = 4
    flip: bool = True

    @property
    def num_views(self) -> int:
        """Number of views of an image: 162 for padding 4 with flips."""
        return self.side**2 * self.flips

    @property
    def side(self) -> int:
        """Number of offsets in one direction."""
        return 2 * self.padding + 1

    @property
    def flips(self) -> int:
        """2 with flips, 1 without."""
        return 2 if self.flip else 1

    def identity(self) -> str:
        """The parameters as text."""
        return f"{type(self).__name__}(padding={self.padding}, flip={self.flip})"

    def __call__(self, image: Tensor, number: Tensor) -> Tensor:
        """Make one view of each image.

        Args:
            image: (N,3,H,W).
            number: (N,), in [0, num_views).

        Returns:
            (N,3,H,W), of the image's type.
        """
        offset = number // self.flips
        is_flipped = (number % self.flips).bool()
        top = offset // self.side
        left = offset % self.side

        # All crops of each image, (N,3,side,side,H,W), without a copy; then one crop of each.
        height, width = image.shape[2:]
        padded = F.pad(image, (self.padding,) * 4)
        crops = padded.unfold(2, height, 1).unfold(3, width, 1)
        row = torch.arange(len(image), device=image.device)
        crop = crops[row, :, top, left]

        return torch.where(is_flipped[:, None, None, None], crop.flip(3), crop)


class Normalize:
    """uint8 (N,3,H,W) in [0, 255] -> float32 (x / 255 - mean) / std, channels last in memory.

    Args:
        mean: one number for each channel, of pixels in [0, 1].
        std: the same.
    """

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
    ) -> None:
        self.device = device
        self.scale = torch.tensor(255.0, device=device)  # a GPU multiplies by 1 / a number
        self.mean = torch.tensor(mean, device=device)[:, None, None]
        self.std = torch.tensor(std, device=device)[:, None, None]

    def __call__(self, image: Tensor) -> Tensor:
        """Normalise a batch."""
        if not image.is_contiguous() and image.is_contiguous(memory_format=torch.channels_last):
            return self._of_channels_last(image)
        scaled = image.float().div_(self.scale)
        normalised = scaled.sub_(self.mean).div_(self.std)
        return normalised.contiguous(memory_format=torch.channels_last)

    def _of_channels_last(self, image: Tensor) -> Tensor:
        """The same in rows of all channels: on a CPU, this takes about half of the time."""
        number, channels, height, width = image.shape
        rows = image.permute(0, 2, 3, 1).view(number, height, width * channels)
        mean = self.mean.view(-1).repeat(width)
        std = self.std.view(-1).repeat(width)

        # A batch of large images is a new block of memory in each step.
        scaled = torch.empty(rows.shape, device=rows.device)
        if rows.device.type == "cpu":
            prefer_huge_pages(scaled.data_ptr(), scaled.nbytes)
        scaled.copy_(rows)

        # x / 255 - mean in one pass over the memory.
        torch.addcdiv(-mean, scaled, torch.full_like(mean, 255), out=scaled)
        return scaled.div_(std).view(number, height, width, channels).permute(0, 3, 1, 2)
