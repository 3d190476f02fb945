"""An image file that is decoded when its pixels are needed, and only as large as needed."""

import io
import os
from typing import Any

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

        image = opened(io.BytesIO(self._content))
        self._is_jpeg = image.format in _JPEG_FORMATS
        if self._is_jpeg:
            self._image = image
            is_sideways = orientation(image) >= _FIRST_SIDEWAYS
            self.size = image.size[::-1] if is_sideways else image.size
        else:
            self._decoded[1] = upright_rgb(image)
            self.size = self._decoded[1].size

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

    def _undecoded(self) -> Any:
        """The opened image; another one if it is decoded, as its scale cannot be changed then."""
        if self._decoded:
            return opened(io.BytesIO(self._content))
        return self._image
