"""Checks of an image folder: its classes, files that cannot be read, images in both parts."""

import filecmp
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edkd.dataset.listing import Listing, combined, in_threads, printable, shown
from edkd.dataset.readability import LIMIT, Probe, contents, decode_suspects, probe, refusal
from edkd.errors import UserError, warn

_COMPARED = 20
"""Pairs of files that seem equal which are compared as a whole."""


# Classes.


def check_classes(root: Path, train: Listing, test: Listing) -> None:
    """Raise UserError unless the folders of two parts have the same classes."""
    differences = [*_only(train, test), *_only(test, train)]
    if differences:
        remedy = _remedy(train, test)
        raise UserError(
            f"{root}: {train.folder.name} and {test.folder.name} must have the same classes, but "
            f"{' and '.join(differences)}; {remedy}"
        )
    warn_of_single_class(train)


def warn_of_single_class(train: Listing) -> None:
    """Warn where there are no classes to tell apart."""
    if len(train.classes) == 1:
        (name,) = train.classes
        warn(
            f"{train.folder} has a single class, {name!r}, so there is nothing to tell apart; the "
            f"images of all folders within {train.folder / name} belong to it"
        )


def _only(part: Listing, other: Listing) -> list[str]:
    """A text about the classes that one part has and another lacks, if there are any."""
    names = sorted(set(part.classes) - set(other.classes))
    if not names:
        return []
    quoted = [repr(name) for name in names]
    return [f"only {part.folder.name} has {shown(quoted)}"]


def _remedy(train: Listing, test: Listing) -> str:
    """What to do about classes that differ."""
    if len(test.classes) == 1 and len(train.classes) > 1:
        folder = f"{test.folder.name}/{printable(test.classes[0])}"
        return f"sort the images of {folder} into one folder per class"

    for form, kind in ((_composed, "Unicode form"), (str.casefold, "case")):
        forms = [set(map(form, part.classes)) for part in (train, test)]
        if forms[0] == forms[1]:
            return f"the names differ in {kind} alone: rename these folders"

    return "add, rename or remove these folders"


def _composed(name: str) -> str:
    """A name in one of the forms that look the same; operating systems use different ones."""
    return unicodedata.normalize("NFC", name)


# Files.


class Probed(NamedTuple):
    """The files of train/ and val/ that were probed: all, or the first of each class."""

    train: Sequence[str]
    test: Sequence[str]
    train_probes: Sequence[Probe]
    test_probes: Sequence[Probe]


def probe_parts(train: Listing, test: Listing) -> Probed:
    """Probe all files, unless there are too many."""
    files = [train.paths, test.paths]
    if sum(map(len, files)) > LIMIT:
        files = [_first_of_each_class(part) for part in (train, test)]
    probes = [in_threads(probe, part) for part in files]
    return Probed(files[0], files[1], probes[0], probes[1])


def identity_of(train: Listing, test: Listing, files: Probed) -> dict[str, str]:
    """`DataInfo.identity`."""
    return {
        "names of the training images": train.names,
        "files of the training images": combined(train.sizes, contents(files.train_probes)),
        "names of the test images": test.names,
        "files of the test images": combined(test.sizes, contents(files.test_probes)),
    }


def check_files(files: Probed, accepts_bad: bool, only_test: bool) -> None:
    """Raise UserError for the files that cannot be read, unless the run accepts them."""
    if not accepts_bad:
        bad = decode_suspects(files.test, files.test_probes)
        total = len(files.test)
        if not only_test:
            bad += decode_suspects(files.train, files.train_probes)
            total += len(files.train)
        if bad:
            raise refusal(bad, total)

    if not only_test:
        _warn_about_shared(files)


def _warn_about_shared(files: Probed) -> None:
    """Warn if most test images are training images, too: their accuracy says little."""

    # Pairs with equal starts and ends.
    by_checksum = dict(
        zip([found.checksum for found in files.train_probes], files.train, strict=True)
    )
    pairs = [
        (path, by_checksum[found.checksum])
        for path, found in zip(files.test, files.test_probes, strict=True)
        if found.is_complete and found.checksum in by_checksum
    ]

    # Most of them, and equal as a whole?
    if 2 * len(pairs) > len(files.test) and all(_are_equal(*pair) for pair in pairs[:_COMPARED]):
        path, twin = pairs[0]
        warn(
            f"{len(pairs)} of {len(files.test)} test images are training images, too "
            f"({printable(path)} equals {printable(twin)}): the accuracy on them says nothing "
            "about new images; use other test images"
        )


def _are_equal(path: str, other: str) -> bool:
    try:
        return filecmp.cmp(path, other, shallow=False)
    except OSError:
        return False


def _first_of_each_class(part: Listing) -> list[str]:
    first: dict[int, str] = {}
    for path, target in part.samples:
        first.setdefault(target, path)
    return list(first.values())
