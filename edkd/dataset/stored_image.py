"""An image file that is decoded when its pixels are needed, and only as large as needed.

libjpeg-turbo decodes JPEG files: at a fraction of their size by PIL; in full by torchvision, which
gives the same pixels as a tensor in less time. torchvision will give up its decoder for another
package. PIL takes its place where it is missing.
"""

import functools
import io
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edkd.dataset.images import opened, orientation, upright_rgb

_JPEG_FORMATS = ("JPEG", "MPO")
_DIVISORS = (8, 4, 2)
"""By which a JPEG decoder can divide the size of an image."""

_FIRST_SIDEWAYS = 5
"""From this EXIF orientation on, width and height change places."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom edge of a part of an image, in pixels."""


class Undecodable(Exception):
    """The pixels of a file cannot be decoded.

    Args:
        cause: the error of PIL.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class StoredImage:
    """An image file. JPEG files are decoded when their pixels are needed, others immediately.

    Attributes:
        size: width and height of the upright image, in pixels.

    Raises:
        Exception: as `read_image`; for the pixels of a JPEG file see `pixels`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with open(path, "rb") as file:
            self._content = file.read()
        self._decoded: dict[int, Any] = {}

        image = opened(io.BytesIO(self._content))
        self._is_jpeg = image.format in _JPEG_FORMATS
        turn = orientation(image) if self._is_jpeg else 1
        self._image: Any = image if self._is_jpeg else None
        if not self._is_jpeg:
            self._decoded[1] = image = upright_rgb(image)
        self.size = image.size[::-1] if turn >= _FIRST_SIDEWAYS else image.size

        is_plain = self._is_jpeg and image.mode == "RGB" and turn == 1
        self._to_tensor = _jpeg_decoder() if is_plain else None
        self._rows: Tensor | None = None

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

    def crop(self, box: Box, divisor: int = 1) -> Tensor:
        """A part of `pixels(divisor)` as a tensor, uint8 (3,H,W).

        Raises:
            Undecodable: the file is damaged.
        """
        from torchvision.transforms.v2.functional import pil_to_tensor

        if divisor > 1 or not self._decode_rows():
            return pil_to_tensor(self.pixels(divisor).crop(box))
        assert self._rows is not None
        left, top, right, bottom = box
        return self._rows[top:bottom, left:right].contiguous().permute(2, 0, 1)

    def _decode_rows(self) -> bool:
        """Decode all pixels to a tensor (H,W,3), once; False where PIL has to decode."""
        if self._rows is None and self._to_tensor is not None:
            try:
                data = torch.frombuffer(bytearray(self._content), dtype=torch.uint8)
                self._rows = self._to_tensor(data).permute(1, 2, 0)
            except RuntimeError:  # the file is damaged, and PIL tells how; or there is no libjpeg
                self._to_tensor = None
        return self._rows is not None

    def _undecoded(self) -> Any:
        """An opened image that was not used: the scale of one cannot be changed again."""
        image = self._image or opened(io.BytesIO(self._content))
        self._image = None
        return image


@functools.cache
def _jpeg_decoder() -> Callable[[Tensor], Tensor] | None:
    """torchvision's decoder of JPEG data to RGB, uint8 (3,H,W); None where it has none."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:
        return None
    warnings.filterwarnings("ignore", "The image decoding and encoding", DeprecationWarning)
    return functools.partial(decode_jpeg, mode=ImageReadMode.RGB)
