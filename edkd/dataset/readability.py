"""Finds image files that cannot be read, without decoding all of them.

`probe` reads the start and the end of a file. A file that does not end as its format requires is
suspect, and only suspects are decoded. So a sound file is never refused, and a truncated, empty or
foreign one is found in some 50 microseconds. Damage in the middle of a file is not found. A large
file is opened, too, for the number of its pixels.
"""

import os
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from edkd.dataset.images import check_scale, max_pixels, read_image
from edkd.dataset.listing import combined, in_threads, printable, shown
from edkd.errors import UserError, warn

LIMIT = 120_000
"""Images up to which all files of a data set are probed before training."""

SHOWN = 3
"""Files that a message names; more are listed on standard error."""

REMEDY = (
    "repair or remove them, or set DATASET.ON_BAD_IMAGE skip to leave them out, or replace to read "
    "other images of their classes; for --resume, leave the files in place and set that key"
)

_HEAD = 4096
_TAIL = 256

_LARGE = 2**19
"""Bytes of a file from which on it may hold more pixels than PIL opens."""

_PNG = b"\x89PNG\r\n\x1a\n"

_ENDS = {
    b"\xff\xd8\xff": b"\xff\xd9",  # JPEG
    _PNG: b"IEND",
}
"""The first bytes of a file -> bytes that must be among its last ones."""

# Tags of a TIFF file.
_OFFSETS = (273, 324)
_COUNTS = (279, 325)


class BadImage(NamedTuple):
    """An image file that cannot be read."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.path)} ({self.reason})"


class Probe(NamedTuple):
    """What the start and the end of a file tell."""

    is_complete: bool
    checksum: int


def probe(path: str) -> Probe:
    """Read the start and the end of a file."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _TAIL, 0))
            tail = file.read()
    except OSError:
        return Probe(False, 0)
    is_sound = _is_complete(path, head, tail, size) and not _may_be_gigantic(path, head, size)
    return Probe(is_sound, zlib.crc32(tail, zlib.crc32(head)))


def unreadable(paths: Sequence[str]) -> list[BadImage]:
    """The files that are suspect and cannot be decoded."""
    probes = in_threads(probe, paths)
    return decode_suspects(paths, probes)


def decode_suspects(paths: Sequence[str], probes: Sequence[Probe]) -> list[BadImage]:
    """The files that cannot be decoded, among those that are not complete."""
    pairs = zip(paths, probes, strict=True)
    suspects = [path for path, found in pairs if not found.is_complete]
    return [bad for bad in in_threads(_fault, suspects) if bad is not None]


def contents(probes: Iterable[Probe]) -> str:
    """A hash of what files contain, as far as it was read."""
    return combined([found.checksum for found in probes])


def bad_image(path: str, error: Exception) -> BadImage:
    """The file, and in one line why it cannot be read."""
    if isinstance(error, OSError) and error.strerror:
        return BadImage(path, error.strerror)
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return BadImage(path, "the file is empty")

    pixels = re.search(r"Image size \((\d+) pixels\) exceeds limit", str(error))
    if pixels:
        return BadImage(path, f"its {pixels[1]} pixels are more than {max_pixels()}; scale it down")

    lines = str(error).splitlines() or [type(error).__name__]
    is_unknown = lines[0].startswith("cannot identify image file")
    return BadImage(path, "no image that the installed Pillow can read" if is_unknown else lines[0])


def not_transformed(path: str, size: tuple[int, int], error: Exception) -> BadImage:
    """A sound file whose image the transforms of the data set do not take.

    Args:
        size: width and height of the image.
    """
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    width, height = size
    return BadImage(
        path, f"the transforms of the data set fail for its {width}x{height} pixels: {reason}"
    )


def refusal(bad: Sequence[BadImage], num_images: int, remedy: str = REMEDY) -> UserError:
    """The error for images that cannot be read; many are listed on standard error.

    Args:
        bad: those found, in any order; repeated ones count once.
        num_images: files among which they were found.
        remedy: how to continue.
    """
    found = sorted({image.path: image for image in bad}.values())
    if len(found) > SHOWN:
        for image in found:
            warn(f"cannot read the image {image}")

    named = shown([str(image) for image in found], SHOWN)
    return UserError(f"cannot read {len(found)} of {num_images} images: {named}; {remedy}")


def left_out(bad: Sequence[BadImage], num_images: int) -> str:
    """A line about the images that take no part in training and evaluation."""
    named = shown([str(image) for image in bad], SHOWN)
    return (
        f"{len(bad)} of {num_images} images cannot be read and are left out "
        f"(DATASET.ON_BAD_IMAGE skip): {named}"
    )


def refuse_unreadable(paths: Sequence[str]) -> None:
    """Raise UserError for all unreadable files among up to LIMIT ones, without a DATASET key."""
    bad = unreadable(paths) if len(paths) <= LIMIT else []
    if bad:
        raise refusal(bad, len(paths), "repair or remove them")


def _fault(path: str) -> BadImage | None:
    try:
        read_image(path)
    except Exception as error:  # PIL raises almost any exception for damaged files
        return bad_image(path, error)
    return None


def _is_complete(path: str, head: bytes, tail: bytes, size: int) -> bool:
    """Whether a file starts and ends as its format requires."""
    for start, end in _ENDS.items():
        if head.startswith(start):
            return end in tail

    if head.startswith(b"GIF8"):
        return tail.rstrip(b"\0").endswith(b";")
    if head.startswith(b"RIFF"):
        return size >= 8 + int.from_bytes(head[4:8], "little")
    if head.startswith(b"BM"):
        return size >= int.from_bytes(head[2:6], "little")
    return _has_its_pixels(path, size)


def _may_be_gigantic(path: str, head: bytes, size: int) -> bool:
    """Whether PIL refuses to open a file, which it does for more pixels than `max_pixels`."""
    if head.startswith(_PNG):
        width = int.from_bytes(head[16:20], "big")
        height = int.from_bytes(head[20:24], "big")
        return width * height > (max_pixels() or width * height)
    return size >= _LARGE and not _has_its_pixels(path, size)


def _has_its_pixels(path: str, size: int) -> bool:
    """Whether a file of another format has a header that is understood, and pixels up to its end.

    Args:
        size: of the file, in bytes.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            check_scale(image)
            return _end_of_pixels(image) <= size
    except Exception:  # PIL raises almost any exception for damaged files
        return False


def _end_of_pixels(image: Any) -> int:
    """The size that a file must have at least."""
    tags = getattr(image, "tag_v2", {})
    offsets = [offset for tag in _OFFSETS for offset in tags.get(tag, ())]
    counts = [count for tag in _COUNTS for count in tags.get(tag, ())]
    ends = [offset + count for offset, count in zip(offsets, counts, strict=False)]

    # PPM: the pixels follow the header, one byte for each channel.
    if image.format == "PPM" and image.mode in ("L", "RGB"):
        for tile in image.tile:
            if tile[0] == "raw":
                width, height = image.size
                ends.append(tile[2] + width * height * len(image.mode))
    return max(ends, default=0)
