"""The images in class folders, `<folder>/<class>/**/*`, in the order of torchvision's ImageFolder.

Left out are hidden entries and what operating systems leave behind. Links to folders are followed,
but each folder is read once for a class. Other files are left out with a warning that names them.
"""

import hashlib
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from edkd.dataset.images import extension, readable_extensions
from edkd.errors import UserError, warn

THREADS = 8
_PART = 64

_LEFT_BEHIND = (
    *("__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information"),
    *("lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
)
"""Names, in lower case, of what operating systems and Python leave in folders."""

_ABOUT_IMAGES = (
    *(".csv", ".db", ".html", ".ini", ".json", ".log", ".md", ".md5", ".py", ".sha256"),
    *(".tsv", ".txt", ".url", ".xml", ".yaml", ".yml"),
)
"""Extensions of notes and labels, which stand beside images and are left out silently."""

_NEEDS_A_PACKAGE = (".heic", ".heif", ".hif")

_SHOWN = 3
"""Names that a message lists."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Listing(NamedTuple):
    """The images of a folder."""

    folder: Path
    classes: list[str]
    """By class number."""
    samples: list[tuple[str, int]]
    """The path and the class number of each image."""
    names: str
    """A hash of the paths below the folder."""
    sizes: str
    """A hash of the sizes of the files."""
    skipped: tuple[str, ...] = ()
    """Paths below the folder of files that are no images by their names, notes aside."""

    @property
    def paths(self) -> list[str]:
        """The paths of the images."""
        return [path for path, _ in self.samples]

    @property
    def targets(self) -> list[int]:
        """The class numbers of the images."""
        return [target for _, target in self.samples]


class _ClassImages(NamedTuple):
    files: list[str]
    """Paths below the class folder."""
    sizes: list[int]
    """In bytes; -1: unknown, as of a broken link."""
    skipped: list[str]
    """Paths below the class folder of files that are not read."""


def list_images(folder: Path) -> Listing:
    """The images of `<folder>/<class>/**/*`; a warning names files that are skipped.

    Raises:
        UserError: there is no class folder, a class has no image, or a folder cannot be read.
    """
    listing = survey(folder)
    if listing.skipped:
        warn(f"{folder}: {describe_skipped(listing.skipped)}")

    for name in empty_classes(listing):
        skipped = [path for path in listing.skipped if path.startswith(f"{name}/")]
        raise UserError(_no_images(folder / name, skipped))
    return listing


def empty_classes(listing: Listing) -> list[str]:
    """The names of classes without images."""
    used = set(listing.targets)
    return [name for number, name in enumerate(listing.classes) if number not in used]


def survey(folder: Path) -> Listing:
    """The same as `list_images`, also where a class has no image, and without a warning."""
    classes = _class_names(folder)
    found = in_threads(lambda name: _images_of(folder, name), classes)

    samples: list[tuple[str, int]] = []
    skipped: list[str] = []
    names = hashlib.sha256()
    sizes = hashlib.sha256()
    for number, (name, images) in enumerate(zip(classes, found, strict=True)):
        skipped += [f"{name}/{file}" for file in images.skipped]
        root = os.path.join(folder, name)
        samples += [(os.path.join(root, file), number) for file in images.files]
        names.update(portable([name, *images.files]))
        sizes.update(repr(images.sizes).encode())

    hashes = names.hexdigest(), sizes.hexdigest()
    return Listing(folder, classes, samples, *hashes, tuple(skipped))


def images_below(folder: Path) -> list[str]:
    """Paths of all images in a folder and in those below it, in the order of `list_images`.

    Raises:
        UserError: a folder cannot be read.
    """
    whole = Path(os.path.abspath(folder))
    found = _images_of(whole.parent, whole.name)
    if found.skipped:
        warn(f"{folder}: {describe_skipped(found.skipped)}")
    return [os.path.join(folder, file) for file in found.files]


def in_threads(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """The results for all items; in this thread alone where no other can be started.

    Items are handed out in parts: to hand out a single one takes longer than to read a small file.
    """
    parts = [items[start : start + _PART] for start in range(0, len(items), _PART)]
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            done = list(pool.map(lambda part: [function(item) for item in part], parts))
    except RuntimeError:
        return [function(item) for item in items]
    return [result for part in done for result in part]


def shown(names: Sequence[str], limit: int = _SHOWN) -> str:
    """The first names of many, for a message."""
    text = ", ".join(printable(name) for name in names[:limit])
    more = len(names) - limit
    return f"{text} and {more} more" if more > 0 else text


def printable(name: str) -> str:
    """A file's name for a message of one line: in quotes if it has a line break or the like."""
    return name if name.isprintable() else repr(name)


def portable(names: Sequence[str]) -> bytes:
    """Names as bytes that are the same on every operating system."""
    text = "\n".join(names).replace(os.sep, "/")
    return unicodedata.normalize("NFC", text).encode("utf-8", "surrogateescape")


def combined(*values: Any) -> str:
    """A hash of several values."""
    return hashlib.sha256(repr(values).encode("utf-8", "surrogateescape")).hexdigest()


# Folders.


def _class_names(folder: Path) -> list[str]:
    """The names of the class folders, sorted."""
    above = _folders_above(folder)
    classes: list[str] = []
    loops: list[str] = []
    for entry in _visible(folder):
        if not _is_folder(entry):
            continue
        is_loop = _identity(entry.path) in above
        (loops if is_loop else classes).append(entry.name)

    if loops:
        warn(f"{folder}: skipped as a class, for it links to a folder around it: {shown(loops)}")
    if not classes:
        raise UserError(
            f"no class folders in {folder}; store the images as {folder}/<class>/*, a folder for "
            "each class"
        )
    return sorted(classes)


def _images_of(folder: Path, name: str) -> _ClassImages:
    """The images of a class in torchvision's order: folder by folder, each sorted by name."""
    root = os.path.join(folder, name)
    visited = _folders_above(folder)
    by_folder = dict(_walk(root, visited))

    known = readable_extensions()
    found = _ClassImages([], [], [])
    for path in sorted(by_folder):
        for entry in by_folder[path]:
            name = entry.path[len(root) + 1 :]
            kind = extension(name)
            size = _size(entry) if kind in known else None
            if size is not None:
                found.files.append(name)
                found.sizes.append(size)
            elif kind not in _ABOUT_IMAGES:
                found.skipped.append(name)
    return found


def _size(entry: os.DirEntry[str]) -> int | None:
    """The size of a file; -1 for a broken link; None for a pipe, a device and the like."""
    try:
        about = entry.stat()
    except OSError:
        return -1
    return about.st_size if stat.S_ISREG(about.st_mode) else None


def _walk(
    folder: str, visited: set[tuple[int, int]]
) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Each folder below one, with its sorted files; those in `visited` are left out."""
    identity = _identity(folder)
    if identity in visited:
        return
    visited.add(identity)

    files: list[os.DirEntry[str]] = []
    folders: list[os.DirEntry[str]] = []
    for entry in sorted(_visible(folder), key=attrgetter("name")):
        (folders if _is_folder(entry) else files).append(entry)

    yield folder, files
    for entry in folders:
        yield from _walk(entry.path, visited)


def _visible(folder: str | Path) -> Iterable[os.DirEntry[str]]:
    """The entries of a folder that are not hidden."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        raise UserError(f"cannot list the folder {folder} ({error.strerror})") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_hidden(name: str) -> bool:
    """Whether an entry of a folder is hidden, or left behind by an operating system."""
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def _identity(folder: str | Path) -> tuple[int, int]:
    """A folder's number, the same through every link."""
    about = os.stat(folder)
    return about.st_dev, about.st_ino


def _folders_above(folder: Path) -> set[tuple[int, int]]:
    """The identities of a folder and of all that contain it."""
    path = folder.resolve()
    return {_identity(each) for each in (path, *path.parents)}


# Messages.


def _no_images(folder: Path, skipped: Sequence[str]) -> str:
    reason = f"; {describe_skipped(skipped)}" if skipped else ""
    return (
        f"the class folder {folder} has no images{reason}; add images to it, or remove it from "
        "all parts of the data set"
    )


def describe_skipped(names: Sequence[str]) -> str:
    """Describes files that are not read, and how to have them read."""
    count = Counter(extension(name) or "no extension" for name in names)
    kinds = ", ".join(f"{number} with {kind}" for kind, number in count.most_common(_SHOWN))
    is_one = len(names) == 1
    which = "1 file is" if is_one else f"{len(names)} files are"
    remedy = "convert images among them to PNG or JPEG"
    if any(kind in _NEEDS_A_PACKAGE for kind in count):
        remedy += ", or run 'pip install pillow-heif'"
    return f"{which} skipped ({kinds}): {shown(names)}; {remedy}"
