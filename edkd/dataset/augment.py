"""Batched augmentation on the device, equal pixel by pixel to torchvision's transforms for the same offsets."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class CropFlip:
    """Pad with zeros, crop back to the image's own size, perhaps flip; each outcome is a numbered view.

    View number = (top * side + left) * flips + flip, with side = 2 * padding + 1 and flips = 2 if `flip` else 1.

    Args:
        padding: pixels on each side.
        flip: whether half of the views are mirrored.
    """

    padding: int = 4
    flip: bool = True

    @property
    def num_views(self) -> int:
        """Views an image has: 162 for padding 4 with flips."""
        return (2 * self.padding + 1) ** 2 * (1 + self.flip)

    def __call__(self, image: Tensor, view: Tensor) -> Tensor:
        """Show each image in its view.

        Args:
            image: (N,3,H,W).
            view: (N,), in [0, num_views).

        Returns:
            (N,3,H,W), of the image's type.
        """
        offset, flipped = view // (1 + self.flip), view % (1 + self.flip)
        side, height, width = 2 * self.padding + 1, *image.shape[2:]
        top, left = offset // side, offset % side
        padded = F.pad(image, (self.padding,) * 4)
        crops = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N,3,side,side,H,W), a view of `padded`
        crop = crops[torch.arange(len(image), device=image.device), :, top, left]
        return torch.where(flipped.bool()[:, None, None, None], crop.flip(3), crop)


class Normalize:
    """uint8 (N,3,H,W) in [0, 255] -> float32 (x / 255 - mean) / std, channels last in memory.

    Args:
        mean, std: one number a channel, of pixels in [0, 1].
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        self.mean = torch.tensor(mean, device=device)[:, None, None]
        self.std = torch.tensor(std, device=device)[:, None, None]

    def __call__(self, image: Tensor) -> Tensor:
        """Normalise a batch."""
        return image.float().div_(255).sub_(self.mean).div_(self.std).contiguous(memory_format=torch.channels_last)
