"""Image files: which ones are read, and how each kind becomes 8-bit RGB.

Training, evaluation and the notebooks' loaders read images here, so that they see the same pixels:

- Of several frames or pages, the first one is read.
- Images of more pixels than PIL's limit for one that may be meant to exhaust the memory (twice
  `PIL.Image.MAX_IMAGE_PIXELS`, 179 million) are refused.
- The EXIF orientation is applied, as viewers do.
- Transparent parts show white. An image that is transparent everywhere keeps its colours.
- 16-bit and 12-bit gray values are scaled by the range of their type: 65535 becomes 255.
- 32-bit integers, floating-point numbers, signed integers and CIELAB have no fixed scale or no
  plain conversion. They are refused.
"""

import functools
import os
import warnings
from contextlib import suppress
from typing import IO, Any

WHITE = (255, 255, 255, 255)

_EXTENSIONS = (
    *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".ico"),
    *(".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".jxl"),
    *(".mpo", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".qoi", ".sgi", ".tga"),
    *(".tif", ".tiff", ".webp"),
)
"""Of image files. Which of them are read depends on the installed PIL."""

_TRANSPARENT_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_DEEP_FORMATS = ("PNG", "PPM")
"""Formats whose mode I holds 16-bit numbers."""

_ORIENTATION = 274
_TURNED = range(2, 9)
"""EXIF orientations of images that are not upright."""

# Tags of a TIFF file.
_BITS = 258
_PHOTOMETRIC = 262
_SAMPLE_FORMAT = 339
_WHITE_IS_ZERO = 0
_SIGNED = 2


# Which files.


@functools.cache
def readable_extensions() -> frozenset[str]:
    """The extensions, in lower case with the dot, of images that the installed PIL reads."""
    from PIL import Image

    _prepare_pil()
    formats = Image.registered_extensions()
    readable = {*Image.OPEN, "MPO"}  # an MPO file is a JPEG file with further images
    return frozenset(name for name in _EXTENSIONS if formats.get(name) in readable)


@functools.cache
def _prepare_pil() -> None:
    """Read HEIC where the package for it is installed; no warnings about odd metadata."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()


def extension(name: str) -> str:
    """The end of a file's name, in lower case with the dot; "" where there is none."""
    return os.path.splitext(name)[1].lower()


# Pixels.


def read_image(path: str | os.PathLike[str]) -> Any:
    """Read a file as an upright, opaque PIL image in mode RGB.

    Raises:
        ValueError: the pixels have no fixed scale; the message says how to convert the file.
        Exception: of almost any type, from PIL, where the file is damaged.
    """
    with open(path, "rb") as file:
        return decode(file)


def decode(file: IO[bytes]) -> Any:
    """`read_image` for an open file."""
    with opened(file) as image:
        return upright_rgb(image)


def opened(content: IO[bytes]) -> Any:
    """The image of PIL in a file, which is decoded when its pixels are read."""
    from PIL import Image

    _prepare_pil()
    return Image.open(content)


def upright_rgb(image: Any, divisor: int = 1) -> Any:
    """The pixels of an opened image that is not decoded yet, as from `read_image`.

    Args:
        divisor: 1, or for a JPEG image 2, 4 or 8: its size is divided by it, rounded up.
    """
    check_scale(image)
    if divisor > 1:
        image.draft(None, (image.width // divisor, image.height // divisor))
    image.load()
    _turn_upright(image)
    opaque = _opaque(_eight_bit(image))
    return opaque if opaque.mode == "RGB" else opaque.convert("RGB")


def max_pixels() -> int | None:
    """The number of pixels up to which PIL opens an image; None: no limit."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    return None if limit is None else 2 * limit


def check_scale(image: Any) -> None:
    """Raise ValueError for an opened PIL image whose pixels cannot become 8-bit RGB."""
    mode = image.mode
    if mode == "LAB":
        raise ValueError("its colours are CIELAB; convert it to RGB")
    if mode == "F":
        raise ValueError(
            "floating-point pixels have no fixed scale; convert it to 8-bit or 16-bit integers"
        )

    is_deep = mode in _DEEP_MODES or (mode == "I" and image.format in _DEEP_FORMATS)
    if mode.startswith("I") and not is_deep:
        raise ValueError(
            "32-bit or signed integers have no fixed scale; convert it to 8-bit or unsigned "
            "16-bit integers"
        )
    if _SIGNED in _tag(image, _SAMPLE_FORMAT):
        raise ValueError("signed integers have no fixed scale; convert it to unsigned integers")


def orientation(image: Any) -> int:
    """The EXIF orientation of an opened JPEG image, 1 to 8; 1 where it is upright."""
    with suppress(Exception):
        found = image.getexif().get(_ORIENTATION)
        if found in _TURNED:
            return int(found)
    return 1


def _turn_upright(image: Any) -> None:
    """Apply the EXIF orientation, in place; unreadable EXIF data do not count."""
    from PIL import ImageOps

    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def _eight_bit(image: Any) -> Any:
    """A 16-bit or 12-bit gray image as mode L; others unchanged."""
    import numpy as np
    from PIL import Image

    if not image.mode.startswith("I"):
        return image

    # The high byte, which is also what PIL keeps of 16-bit colours.
    bits = (*_tag(image, _BITS), 16)[0]
    values = np.asarray(image).astype(np.int64) >> (bits - 8)
    if _WHITE_IS_ZERO in _tag(image, _PHOTOMETRIC):
        values = 255 - values
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _opaque(image: Any) -> Any:
    """An image with transparency on white; others unchanged."""
    from PIL import Image

    if image.mode not in _TRANSPARENT_MODES and "transparency" not in image.info:
        return image
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode != "RGBA":
        image = image.convert("RGBA")

    _, highest = image.getchannel("A").getextrema()
    if highest == 0:
        return image
    white = Image.new("RGBA", image.size, WHITE)
    return Image.alpha_composite(white, image)


def _tag(image: Any, number: int) -> tuple[int, ...]:
    """The values of a TIFF tag; empty for other formats."""
    values = getattr(image, "tag_v2", {}).get(number, ())
    return values if isinstance(values, tuple) else (values,)
