"""What is in an image folder, and what is wrong with it: every image is read and decoded once."""

import hashlib
import io
import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from edkd.dataset.images import decode
from edkd.dataset.listing import Listing, describe_skipped, empty_classes, shown, survey
from edkd.dataset.parts import part_folders
from edkd.dataset.readability import BadImage, bad_image
from edkd.dataset.scan import in_workers
from edkd.errors import UserError

TIMEOUT = 300.0
"""Seconds in which a process must read a few files."""


class Image(NamedTuple):
    """A file that was read."""

    path: str
    bad: BadImage | None
    """Why it cannot be used; None: it can."""
    digest: bytes = b""
    """A hash of its bytes."""
    width: int = 0
    """In pixels, as stored: before the EXIF orientation."""
    height: int = 0
    mode: str = ""
    """As stored, in the terms of PIL."""


class Part(NamedTuple):
    """A folder of class folders."""

    name: str
    """Of that folder; "" for a data set that is one such folder."""
    listing: Listing
    images: Sequence[Image]
    """In the order of `listing.samples`."""


class Report(NamedTuple):
    """What was found."""

    parts: Sequence[Part]
    faults: Mapping[str, Sequence[str]]
    """Lines about what is wrong, by a noun for a summary."""


def report_on(root: Path, num_workers: int) -> Report:
    """Read every image of the folders of `part_folders`.

    Args:
        num_workers: processes that read; 0: this process.

    Raises:
        UserError: there is no such folder, or it has another layout.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root}; correct the path")
    listings = [survey(folder) for folder in part_folders(root)]
    paths = [path for listing in listings for path in listing.paths]

    images = iter(in_workers(read, paths, num_workers, TIMEOUT))
    parts = []
    for listing in listings:
        name = "" if listing.folder == root else listing.folder.name
        own = [next(images) for _ in listing.samples]
        parts.append(Part(name, listing, own))
    return Report(parts, _faults(parts))


def read(path: str) -> Image:
    """Read and decode a file."""
    import PIL.Image

    try:
        content = Path(path).read_bytes()
        decode(io.BytesIO(content))
    except Exception as error:  # PIL raises almost any exception for damaged files
        return Image(path, bad_image(path, error))

    digest = hashlib.blake2b(content, digest_size=16).digest()
    with PIL.Image.open(io.BytesIO(content)) as image:
        width, height = image.size
        return Image(path, None, digest, width, height, image.mode)


def describe(part: Part) -> Iterator[str]:
    """Lines about a part: classes, sizes, modes, files that are skipped."""
    listing = part.listing
    counts = Counter(listing.targets)
    numbers = [counts[number] for number in range(len(listing.classes))]
    lowest = min(numbers)
    highest = max(numbers)

    name = part.name or str(listing.folder)
    images = len(listing.samples)
    classes = len(listing.classes)
    yield f"{name}: {images} images in {classes} classes, {lowest} to {highest} in a class"

    good = [image for image in part.images if image.bad is None]
    if good:
        widths = _spread([image.width for image in good])
        heights = _spread([image.height for image in good])
        yield f"  width {widths}, height {heights} (minimum, median, maximum)"

        modes = Counter(image.mode for image in good)
        by_count = [f"{count} {mode}" for mode, count in modes.most_common()]
        yield f"  modes: {', '.join(by_count)}"
    if listing.skipped:
        yield f"  {describe_skipped(listing.skipped)}"


def _spread(values: Sequence[int]) -> str:
    return f"{min(values)} / {statistics.median_low(values)} / {max(values)}"


# Faults.


def _faults(parts: Sequence[Part]) -> dict[str, list[str]]:
    shared: list[str] = []
    for one, other in itertools.combinations(parts, 2):
        shared += _shared(one, other)

    ambiguous: list[str] = []
    for part in parts:
        ambiguous += _under_two_classes(part)

    found = {
        "unreadable images": list(_unreadable(parts)),
        "empty classes": list(_without_images(parts)),
        "classes with a single image": list(_single_images(parts)),
        "classes that differ": list(_other_classes(parts)),
        "images under two classes": ambiguous,
        "images in two parts": shared,
    }
    return {noun: lines for noun, lines in found.items() if lines}


def _unreadable(parts: Sequence[Part]) -> Iterator[str]:
    for part in parts:
        for image in part.images:
            if image.bad is not None:
                yield f"cannot read {image.bad}"


def _without_images(parts: Sequence[Part]) -> Iterator[str]:
    for part in parts:
        for name in empty_classes(part.listing):
            yield f"no images in {part.listing.folder / name}"


def _single_images(parts: Sequence[Part]) -> Iterator[str]:
    """A line for each class that cannot be divided into training and test images."""
    if len(parts) > 1:
        return

    listing = parts[0].listing
    counts = Counter(listing.targets)
    for number, name in enumerate(listing.classes):
        if counts[number] == 1:
            folder = listing.folder / name
            yield f"one image in {folder}, two are needed"


def _other_classes(parts: Sequence[Part]) -> Iterator[str]:
    """A line for each class that one part lacks."""
    everywhere = {name for part in parts for name in part.listing.classes}
    for part in parts:
        for name in sorted(everywhere - set(part.listing.classes)):
            yield f"no class {name!r} in {part.listing.folder}"


def _under_two_classes(part: Part) -> list[str]:
    """Lines about images of equal bytes with different labels."""
    groups: defaultdict[bytes, dict[int, str]] = defaultdict(dict)
    for image, (path, target) in zip(part.images, part.listing.samples, strict=True):
        if image.bad is None:
            groups[image.digest].setdefault(target, path)

    found = []
    for paths in groups.values():
        if len(paths) > 1:
            names = shown(list(paths.values()))
            found.append(f"the same image under two classes: {names}")
    return found


def _shared(one: Part, other: Part) -> Iterator[str]:
    """Lines about images of a part that are in another one, too."""
    path_of = {}
    for image in one.images:
        if image.bad is None:
            path_of[image.digest] = image.path

    for image in other.images:
        if image.bad is None and image.digest in path_of:
            yield f"the same image in two parts: {path_of[image.digest]}, {image.path}"
