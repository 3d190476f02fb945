"""The parts of an image folder: images to train on, to choose the best epoch by, and to test on.

Two layouts are known, `{train,val}/<class>/*` and `<class>/*`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from edkd.dataset.folder_checks import check_classes, warn_of_single_class
from edkd.dataset.listing import Listing, combined, is_hidden, list_images, shown
from edkd.dataset.sampling import stratified_split
from edkd.errors import UserError, warn

TRAIN = "train"
VAL = ("val", "valid", "validation")
TEST = "test"
NAMES = (TRAIN, *VAL, TEST)
"""Of the folders of parts; upper and lower case are not told apart."""

_OTHER_NAMES = ("training", "testing", "dev", "eval", "evaluation")
"""Of parts elsewhere; a folder that has nothing else has no classes."""


class Parts(NamedTuple):
    """The images of a data set; all parts have the same classes."""

    train: Listing
    val: Listing | None
    """Images that choose the best epoch; None: those of DATASET.VAL_SPLIT do, else `test`."""
    test: Listing
    is_split: bool = False
    """Whether `test` was taken from the training images."""

    @property
    def learned(self) -> Listing:
        """The images that decide the result of a run: `train` and `val`."""
        train, val = self.train, self.val
        if val is None:
            return train
        return train._replace(
            samples=train.samples + val.samples,
            names=combined(train.names, val.names),
            sizes=combined(train.sizes, val.sizes),
        )


def layout(root: Path) -> str:
    """How the images must be stored, for messages."""
    return (
        f"store the images as {root}/<class>/*, a folder for each class, or as "
        f"{root}/{{train,val}}/<class>/*"
    )


def find_parts(root: Path, fraction: float, seed: int) -> Parts:
    """The images of `{train,val,test}/<class>/*`, or of `<class>/*`.

    - `val` may be called `valid` or `validation`. Where there is one of `val` and `test`, it is
      the test set. Where there are both, `val` chooses the best epoch.
    - Without them, a stratified test set is taken from the training images.

    Args:
        fraction: of the images of each class for that test set.
        seed: of that choice.

    Raises:
        UserError: the folder is missing or has another layout, or parts have different classes.
    """
    if not root.is_dir():
        raise UserError(f"no folder {root}; {layout(root)}, or correct DATASET.ROOT")

    first, *rest = part_folders(root)
    train = list_images(first)
    others = [list_images(folder) for folder in rest]
    for part in others:
        check_classes(root, train, part)
    if not others:
        warn_of_single_class(train)
        return split_parts(train, fraction, seed)
    return Parts(train, others[0] if len(others) > 1 else None, others[-1])


def part_folders(root: Path) -> list[Path]:
    """The folders that hold class folders: `root`, or `train` and those of the other parts.

    Raises:
        UserError: there are none, or two folders name the same part.
    """
    folders = _folders(root)
    found = _folders_by_part(root, folders)
    if TRAIN not in found:
        _check_layout(root, folders)
        return [root]

    _warn_of_others(root, folders)
    return [found[name] for name in (TRAIN, *_evaluated(found))]


def split_parts(listing: Listing, fraction: float, seed: int) -> Parts:
    """A stratified test set from images that are not divided; each class is in both parts.

    Args:
        fraction: of the images of each class.
        seed: of the choice.

    Raises:
        UserError: a class has a single image.
    """
    target = torch.tensor(listing.targets)
    counts = torch.bincount(target, minlength=len(listing.classes)).tolist()
    few = [name for name, count in zip(listing.classes, counts, strict=True) if count < 2]
    if few:
        which = "the class" if len(few) == 1 else "the classes"
        raise UserError(
            f"{listing.folder}: DATASET.TEST_SPLIT needs two images of each class, one to train "
            f"on and one to test on, but there is only one of {which} {shown(few)}; add images, or "
            f"remove {which}"
        )

    rest, held_out = stratified_split(target, fraction, seed, keeps_one=True)
    return Parts(selected(listing, rest), None, selected(listing, held_out), is_split=True)


def selected(listing: Listing, index: Tensor) -> Listing:
    """Some images of a listing."""
    numbers = index.tolist()
    return listing._replace(
        samples=[listing.samples[number] for number in numbers],
        names=combined(listing.names, numbers),
    )


def _folders(root: Path) -> list[str]:
    """The names of the folders that may be parts or classes, sorted."""
    try:
        names = sorted(os.listdir(root))
    except OSError as error:
        raise UserError(f"cannot list the folder {root} ({error.strerror})") from None
    return [name for name in names if not is_hidden(name) and (root / name).is_dir()]


def _folders_by_part(root: Path, folders: Sequence[str]) -> dict[str, Path]:
    """The folders of the parts, by `NAMES`."""
    lower = {name.lower(): root / name for name in folders}
    return {name: lower[name] for name in NAMES if name in lower}


def _check_layout(root: Path, folders: Sequence[str]) -> None:
    """Raise UserError where there are no class folders in `root`."""
    if not folders:
        what = "images, but no folders" if _has_files(root) else "nothing"
        raise UserError(f"the folder {root} has {what} in it; {layout(root)}")

    if {name.lower() for name in folders} <= {*NAMES, *_OTHER_NAMES}:
        raise UserError(f"the folder {root} has {shown(folders)}, but no {TRAIN}; {layout(root)}")


def _warn_of_others(root: Path, folders: Sequence[str]) -> None:
    """Warn of folders beside `train` that have none of the names of parts."""
    others = [name for name in folders if name.lower() not in NAMES]
    if others:
        warn(
            f"{root}: left out beside {TRAIN}: {shown(others)}; to use the images of a folder, "
            f"call it {VAL[0]} or {TEST}"
        )


def _has_files(root: Path) -> bool:
    return any(path.is_file() for path in root.iterdir())


def _evaluated(found: dict[str, Path]) -> list[str]:
    """The parts beside `train`: one, or the one that chooses and the one that reports."""
    val = [name for name in VAL if name in found]
    test = [TEST] if TEST in found else []
    if len(val) > 1:
        paths = [str(found[name]) for name in val]
        raise UserError(f"{' and '.join(paths)} name the same part; keep one of them")

    if val and test and not _is_labelled(found[TEST], _folders(found[TRAIN])):
        warn(
            f"{found[TEST]} is not used, as its images are not in class folders; "
            f"{found[val[0]]} is the test set"
        )
        test = []
    return [*val, *test]


def _is_labelled(folder: Path, classes: Sequence[str]) -> bool:
    """Whether there are class folders; competitions publish test images without them."""
    names = _folders(folder)
    return len(names) > 1 or names == classes
