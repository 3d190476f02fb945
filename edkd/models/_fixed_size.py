"""Images for networks of other libraries that take one size, as most vision transformers do."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]


class Resize:
    """A hook before the forward pass: images (N,C,H,W) get a size, bilinearly.

    It is picklable, and is exported with the network.

    Args:
        size: (height, width).
    """

    def __init__(self, size: Size) -> None:
        self.size = size

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs of the network, with resized images."""
        image: Tensor = inputs[0]
        height, width = image.shape[2:]
        if (height, width) == self.size:
            return inputs

        is_smaller = self.size[0] < height or self.size[1] < width
        resized = F.interpolate(
            image, self.size, mode="bilinear", align_corners=False, antialias=is_smaller
        )
        return (resized, *inputs[1:])


def with_fixed_size(network: nn.Module, size: Size | None) -> nn.Module:
    """A network that takes images of one size, made to take all.

    Args:
        network: of another library; it gets the hook, and the attribute `fixed_size`.
        size: (height, width); None where it takes any.
    """
    if size is not None:
        network.fixed_size = size
        network.register_forward_pre_hook(Resize(size))
    return network
