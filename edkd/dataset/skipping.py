"""DATASET.ON_BAD_IMAGE skip: all images are read once, and those that cannot be read are left out.

They keep their numbers, so that the order of the others, the targets and the hashes that --resume
compares do not change.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edkd.dataset.readability import BadImage
from edkd.dataset.readability import left_out as described
from edkd.dataset.scan import in_workers
from edkd.errors import UserError, warn

if TYPE_CHECKING:
    from edkd.dataset.folder import FolderLoader


def leave_out_bad(
    loaders: Sequence["FolderLoader"], classes: Sequence[str], notes: list[str], only_test: bool
) -> None:
    """Read every image of loaders; those that cannot be read take no part from here on.

    Args:
        loaders: that of the test set last.
        classes: their names, by class number.
        notes: gets a line about the images that are left out.
        only_test: whether the test set alone is read, and the line is a warning instead.

    Raises:
        UserError: a class has no image left.
        WorkerError: a worker died or hung.
    """
    chosen = loaders[-1:] if only_test else loaders
    bad: list[BadImage] = []
    for loader in chosen:
        found = _leave_out_bad(loader)
        is_held_out = loader not in (loaders[0], loaders[-1])
        target = torch.tensor([target for _, target in loader.images.samples])
        batches = loader.batches
        check_rest(target[batches.members], target[batches.left_out], found, classes, is_held_out)
        bad += found
    if not bad:
        return

    line = described(bad, sum(loader.num_images + loader.num_left_out for loader in chosen))
    if only_test:
        warn(line)
    else:
        notes.append(f"warning: {line}")


def _leave_out_bad(loader: "FolderLoader") -> list[BadImage]:
    """Read the images as in the first epoch: the transforms may not take some of them."""
    items = loader.batches.all_items(epoch=1)
    reader = loader.loader
    faults = in_workers(loader.images.fault, items, reader.num_workers, reader.timeout)

    numbers = [item.number for item, fault in zip(items, faults, strict=True) if fault is not None]
    loader.leave_out(torch.tensor(numbers, dtype=torch.long))
    return [fault for fault in faults if fault is not None]


def check_rest(
    target: Tensor,
    left_out: Tensor,
    bad: Sequence[BadImage],
    classes: Sequence[str],
    is_held_out: bool,
) -> None:
    """Raise UserError where all images of a class, or all held-out images, are left out.

    Args:
        target: (N,), class numbers of all images.
        left_out: (K,), those of the images that are left out.
        bad: the files of these.
        classes: their names, by class number.
        is_held_out: whether the images only choose the best epoch.
    """
    if is_held_out and len(left_out) < len(target):
        return

    before = torch.bincount(target, minlength=len(classes))
    after = before - torch.bincount(left_out, minlength=len(classes))
    lost = ((before > 0) & (after == 0)).nonzero().flatten().tolist()
    if lost:
        raise UserError(
            f"no image of the class {classes[lost[0]]!r} can be read (first bad file: {bad[0]}); "
            "repair its images, or remove the class from all parts of the data set"
        )
