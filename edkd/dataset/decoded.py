"""Image files as resident images: read once, in threads, and brought to one size."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edkd.dataset._base import REPLACE, STOP, DataSet
from edkd.dataset.augment import Augmentation
from edkd.dataset.folder import Preprocessing
from edkd.dataset.folder_checks import check_files, identity_of, probe_parts
from edkd.dataset.images import read_image
from edkd.dataset.listing import Listing, in_threads
from edkd.dataset.parts import Parts
from edkd.dataset.readability import BadImage, bad_image, left_out, not_transformed, refusal
from edkd.dataset.resident import Images, resident_dataset
from edkd.dataset.skipping import check_rest
from edkd.errors import UserError, warn


class Decoded(NamedTuple):
    """The images of a part."""

    images: Images
    """Black where a file cannot be read."""
    bad: dict[int, BadImage]
    """The files that cannot be read, by the number of the image."""


def decoded_dataset(
    cfg: Any,
    device: torch.device,
    parts: Parts,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
) -> DataSet:
    """The images of a listing, decoded now and kept on the device.

    Args:
        cfg: as for `resident_dataset`, and DATASET.ON_BAD_IMAGE.
        preprocessing: its `test` brings all images to one size.
        augmentation: the training view.

    Raises:
        UserError: DATASET.VAL_SPLIT leaves a part empty; or, with DATASET.ON_BAD_IMAGE replace,
            no image of a class can be read. The check of the result refuses bad files.
    """
    train = decode(parts.train, preprocessing)
    val = decode(parts.val, preprocessing) if parts.val else None
    test = decode(parts.test, preprocessing)
    if cfg.DATASET.ON_BAD_IMAGE == REPLACE:
        for part in (train, test) if val is None else (train, val, test):
            _replace_bad(part)

    data = resident_dataset(
        cfg,
        device,
        train.images,
        test.images,
        augmentation,
        preprocessing.mean,
        preprocessing.std,
        parts.train.classes,
        val.images if val else None,
    )

    # The files decide whether these are the same data, as for images that are read from them.
    files = probe_parts(parts.learned, parts.test)
    info = replace(
        data.info,
        resize=preprocessing.resize,
        interpolation=preprocessing.interpolation,
        identity=identity_of(parts.learned, parts.test, files),
    )
    # Without the decoded pixels, which the check would keep beside those on the device.
    loaders = [_Members.of(data.train, train), _Members.of(data.test, test)]
    if data.val is not None:
        loaders.insert(1, _Members.of(data.val, val or train, is_held_out=True))

    def check(only_test: bool) -> None:
        policy = cfg.DATASET.ON_BAD_IMAGE
        if policy != REPLACE:
            line = _without_bad(loaders[-1:] if only_test else loaders, policy, parts.train.classes)
            _report(line, data.notes, only_test)
        check_files(files, accepts_bad=True, only_test=only_test)

    return replace(data, info=info, check=check)


def decode(part: Listing, preprocessing: Preprocessing) -> Decoded:
    """Read all images of a part, in several threads."""
    size = preprocessing.size
    pixels = torch.zeros(len(part.samples), 3, size, size, dtype=torch.uint8)
    fill = partial(_fill, pixels, part, preprocessing.test)

    faults = in_threads(fill, range(len(part.samples)))
    bad = {number: fault for number, fault in enumerate(faults) if fault is not None}
    return Decoded(Images(pixels, torch.tensor(part.targets)), bad)


def _fill(
    pixels: Tensor, part: Listing, transform: Callable[[Any], Tensor], number: int
) -> BadImage | None:
    """Read one image into its row; what is wrong with its file, if it cannot be read."""
    path, _ = part.samples[number]
    try:
        image = read_image(path)
    except Exception as error:  # PIL raises almost any exception for damaged files
        return bad_image(path, error)

    try:
        pixels[number] = transform(image)
    except Exception as error:  # as for a size that the transforms do not take
        return not_transformed(path, image.size, error)
    return None


# Files that cannot be read.


class _Members(NamedTuple):
    """A loader, and the images of which its own are a part."""

    loader: Any
    """A TrainLoader or an EvalLoader."""
    target: Tensor
    """Class numbers of all these images."""
    all_bad: dict[int, BadImage]
    """As `Decoded.bad`."""
    is_held_out: bool
    """Whether the images only choose the best epoch."""

    @classmethod
    def of(cls, loader: Any, found: Decoded, is_held_out: bool = False) -> "_Members":
        """The members of a loader among images that were decoded."""
        return cls(loader, found.images.target, found.bad, is_held_out)

    def bad(self) -> list[int]:
        """The numbers of its images whose files cannot be read."""
        members = set(self.loader.members.tolist())
        return [number for number in self.all_bad if number in members]


def _replace_bad(found: Decoded) -> None:
    """Fill the row of each bad image with the next readable one of its class, cyclically.

    Raises:
        UserError: a class has no readable image.
    """
    image, target = found.images.image, found.images.target
    for number, bad in found.bad.items():
        same = (target == target[number]).nonzero().flatten().tolist()
        place = same.index(number)
        others = [other for other in same[place:] + same[:place] if other not in found.bad]
        if not others:
            raise UserError(f"cannot read {bad}, nor another image of its class; repair them")

        image[number] = image[others[0]]
        warn(f"cannot read the image {bad}; another image of its class replaces it")


def _without_bad(loaders: Sequence[_Members], policy: str, classes: Sequence[str]) -> str:
    """Refuse bad files (stop), or leave them out (skip); a line about those, or ""."""
    bad = [each.all_bad[number] for each in loaders for number in each.bad()]
    total = sum(len(each.loader.members) for each in loaders)
    if not bad:
        return ""
    if policy == STOP:
        raise refusal(bad, total)

    for each in loaders:
        numbers = torch.tensor(each.bad(), dtype=torch.long)
        target = each.target
        of_loader = [each.all_bad[number] for number in numbers.tolist()]
        members = target[each.loader.members]
        check_rest(members, target[numbers], of_loader, classes, each.is_held_out)
        each.loader.leave_out(numbers)
    return left_out(bad, total)


def _report(line: str, notes: list[str], only_test: bool) -> None:
    """Write a line in the log of the run, or on standard error where there is no run."""
    if line and only_test:
        warn(line)
    elif line:
        notes.append(f"warning: {line}")
