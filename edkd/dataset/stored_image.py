"""An image file that is decoded where its pixels are needed, and only as large as they are needed.

The pixels are those of `edkd.dataset.images.read_image`. JPEG files are decoded by libjpeg-turbo:
at a fraction of their size by PIL, and in full, where that gives the same pixels, by torchvision,
which makes a tensor in about three quarters of the time.
"""

import io
import os
from typing import Any

import torch
from torch import Tensor

from edkd.dataset.images import opened, orientation, upright_rgb

_JPEG_FORMATS = ("JPEG", "MPO")
_DIVISORS = (8, 4, 2)
"""By which a JPEG decoder can divide the size of an image."""

_FIRST_SIDEWAYS = 5
"""From this EXIF orientation on, width and height change places."""


class Undecodable(Exception):
    """The pixels of a file cannot be decoded.

    Args:
        cause: the error of PIL.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class StoredImage:
    """An image file. Formats other than JPEG have no decoder of fractions and are decoded at once.

    Attributes:
        size: width and height of the upright image, in pixels.

    Raises:
        Exception: as `read_image`; for the pixels of a JPEG file see `pixels`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with open(path, "rb") as file:
            self._content = file.read()
        self._decoded: dict[int, Any] = {}
        self._rows: Tensor | None = None

        image = opened(io.BytesIO(self._content))
        self._is_jpeg = image.format in _JPEG_FORMATS
        turn = orientation(image) if self._is_jpeg else 1
        if self._is_jpeg:
            self._image = image
        else:
            self._decoded[1] = image = upright_rgb(image)

        width, height = image.size
        self.size = (height, width) if turn >= _FIRST_SIDEWAYS else (width, height)
        self._is_plain = self._is_jpeg and image.mode == "RGB" and turn == 1

    def divisor(self, most: int) -> int:
        """The largest number, up to `most`, by which the decoder can divide the size."""
        possible = [number for number in _DIVISORS if number <= most] if self._is_jpeg else []
        return max(possible, default=1)

    def pixels(self, divisor: int = 1) -> Any:
        """The image of PIL as from `read_image`, its width and height divided and rounded up.

        Args:
            divisor: from the method `divisor`.

        Raises:
            Undecodable: the file is damaged.
        """
        if divisor not in self._decoded:
            try:
                self._decoded[divisor] = upright_rgb(self._undecoded(), divisor)
            except Exception as error:  # PIL raises almost any exception for damaged files
                raise Undecodable(error) from error
        return self._decoded[divisor]

    def crop(self, box: tuple[int, int, int, int], divisor: int = 1) -> Tensor:
        """A part of `pixels(divisor)` as a tensor, uint8 (3,H,W).

        Args:
            box: left, top, right and bottom edge.
        """
        from torchvision.transforms.v2.functional import pil_to_tensor

        rows = self._tensor() if divisor == 1 and self._is_plain else None
        if rows is None:
            return pil_to_tensor(self.pixels(divisor).crop(box))
        left, top, right, bottom = box
        return rows[top:bottom, left:right].contiguous().permute(2, 0, 1)

    def _tensor(self) -> Tensor | None:
        """All pixels, uint8 (H,W,3); None where torchvision cannot decode, and PIL has to."""
        if self._rows is None:
            from torchvision.io import ImageReadMode, decode_jpeg

            data = torch.frombuffer(bytearray(self._content), dtype=torch.uint8)
            try:
                self._rows = decode_jpeg(data, ImageReadMode.RGB).permute(1, 2, 0)
            except RuntimeError:  # the file is damaged, or torchvision was built without libjpeg
                self._is_plain = False
        return self._rows

    def _undecoded(self) -> Any:
        """The opened image; another one if it is decoded, as its scale cannot be changed then."""
        if self._decoded:
            return opened(io.BytesIO(self._content))
        return self._image
