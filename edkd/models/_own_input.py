"""Runs a network on data that are prepared in another way than those it was trained on."""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edkd.errors import UserError
from edkd.models._wrapping import Wrapper
from edkd.types import InputSpec


class OwnInput(Wrapper):
    """A network that gets the images of a batch in its own normalisation and size.

    `forward(x: (N,C,H,W)) -> (logits, features)`, as the network's own. Attributes and the state
    dict are the network's. Images are resized on the device, with antialiasing.

    Args:
        module: the network, under the contract of `Network`.
        own: how images are prepared for it.
        data: how those of a batch are prepared.

    Raises:
        UserError: both have different numbers of channels.
    """

    scale: Tensor
    shift: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, module: nn.Module, own: InputSpec, data: InputSpec) -> None:
        super().__init__(module)
        if own.image_shape[0] != data.image_shape[0]:
            raise UserError(
                f"a network takes images of {channels(own.image_shape)}, but those of the data "
                f"have {channels(data.image_shape)}; choose another network, or convert the images"
            )
        self.own = own
        self.data = data
        self.size = own.image_shape[1:]

        # (x * std + mean) are pixels in [0, 1]; normalised in the network's way they are
        # x * scale + shift. 0 and 1 become low and high.
        mean = _column(own.mean)
        std = _column(own.std)
        values = {
            "scale": _column(data.std) / std,
            "shift": (_column(data.mean) - mean) / std,
            "low": (0 - mean) / std,
            "high": (1 - mean) / std,
        }

        for name, value in values.items():
            self.register_buffer(name, value.float(), persistent=False)

    @property
    def prepares(self) -> str:
        """How images are changed, as part of the identity of a teacher."""
        return f"{self.own} {self.data}"

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The network's output for images (N,C,H,W) of the data."""
        x = x * self.scale.to(x.dtype) + self.shift.to(x.dtype)
        if x.shape[2:] != self.size:
            x = self._resized(x)
        return self.module(x, *args, **kwargs)

    def _resized(self, x: Tensor) -> Tensor:
        mode = self.own.interpolation
        if mode == "nearest":
            return F.interpolate(x, self.size, mode=mode)

        x = F.interpolate(x, self.size, mode=mode, align_corners=False, antialias=True)

        if mode != "bicubic":
            return x

        # Between dark and bright pixels, bicubic values leave the range of pixels.
        low = self.low.to(x.dtype)
        high = self.high.to(x.dtype)
        return torch.clamp(x, low, high)


def prepared_alike(one: InputSpec, other: InputSpec) -> bool:
    """Whether images of two kinds have one size and one normalisation."""
    if one.image_shape != other.image_shape:
        return False

    there = one.mean + one.std
    here = other.mean + other.std
    return all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(there, here, strict=True))


def preparation(own: InputSpec, data: InputSpec) -> str:
    """What `OwnInput` changes, for a line of the log."""
    changes = []

    if own.image_shape[1:] != data.image_shape[1:]:
        changes.append(
            f"resized from {size_of(data.image_shape)} to {size_of(own.image_shape)} "
            f"({own.interpolation})"
        )

    if not prepared_alike(replace(own, image_shape=data.image_shape), data):
        mean = _listed(own.mean)
        std = _listed(own.std)
        changes.append(f"normalised with its mean ({mean}) and std ({std})")
    return " and ".join(changes)


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def size_of(image_shape: tuple[int, int, int]) -> str:
    """Height and width, as "32x32"."""
    return f"{image_shape[1]}x{image_shape[2]}"


def channels(image_shape: tuple[int, int, int]) -> str:
    """The number of channels, as "1 channel"."""
    number = image_shape[0]
    return f"{number} channel" if number == 1 else f"{number} channels"


def _column(values: tuple[float, ...]) -> Tensor:
    """(C,1,1)."""
    return torch.tensor(values, dtype=torch.float64)[:, None, None]
