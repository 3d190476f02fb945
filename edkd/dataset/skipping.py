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
    bad = [image for loader in chosen for image in _leave_out_bad(loader, classes)]
    if not bad:
        return

    line = described(bad, sum(loader.num_images + loader.num_left_out for loader in chosen))
    if only_test:
        warn(line)
    else:
        notes.append(f"warning: {line}")


def _leave_out_bad(loader: "FolderLoader", classes: Sequence[str]) -> list[BadImage]:
    # As in the first epoch, so that images which the transforms do not take are found, too.
    items = loader.batches.all_items(epoch=1)
    reader = loader.loader
    faults = in_workers(
        loader.images.fault, items, reader.num_workers, reader.timeout, "reading all images"
    )

    found = [item.number for item, fault in zip(items, faults, strict=True) if fault is not None]
    numbers = torch.tensor(found, dtype=torch.long)
    loader.leave_out(numbers)
    bad = [fault for fault in faults if fault is not None]
    targets = torch.tensor([target for _, target in loader.images.samples])
    check_classes_left(targets[loader.batches.members], targets[numbers], bad, classes)
    return bad


def check_classes_left(
    target: Tensor, left_out: Tensor, bad: Sequence[BadImage], classes: Sequence[str]
) -> None:
    """Raise UserError where all images of a class are left out.

    Args:
        target: (N,), class numbers of all images.
        left_out: (K,), those of the images that are left out.
        bad: the files of these.
        classes: their names, by class number.
    """
    before = torch.bincount(target, minlength=len(classes))
    after = before - torch.bincount(left_out, minlength=len(classes))
    lost = ((before > 0) & (after == 0)).nonzero().flatten().tolist()
    if lost:
        raise UserError(
            f"the class {classes[lost[0]]!r} has no image that can be read, as {bad[0]}; repair "
            "its images, or remove the class from all parts of the data set"
        )
