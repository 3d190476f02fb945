"""Image files as resident images: read once, in threads, and brought to one size."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edkd.dataset._base import REPLACE, STOP, DataSet
from edkd.dataset.augment import Augmentation
from edkd.dataset.folder import Preprocessing
from edkd.dataset.folder_checks import Probed, check_files, identity_of, probe_parts
from edkd.dataset.images import read_image
from edkd.dataset.listing import Listing, in_threads
from edkd.dataset.parts import Parts
from edkd.dataset.readability import BadImage, bad_image, not_transformed, refusal
from edkd.dataset.resident import Images, resident_dataset
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
        cfg: as for `resident_dataset`, and DATASET.UNREADABLE.
        preprocessing: its `test` brings all images to one size.
        augmentation: the training view.

    Raises:
        UserError: DATASET.VAL_SPLIT leaves a part empty; or, with DATASET.UNREADABLE replace, no
            image of a class can be read. The check of the result refuses unreadable files.
    """
    read = {"train": parts.train, "test": parts.test}
    if parts.val is not None:
        read["val"] = parts.val
    found = {name: _decode(part, preprocessing) for name, part in read.items()}

    if cfg.DATASET.UNREADABLE == REPLACE:
        for name, part in read.items():
            _replace_bad(part, found[name])

    images = {name: each.images for name, each in found.items()}
    data = resident_dataset(
        cfg,
        device,
        images["train"],
        images["test"],
        augmentation,
        preprocessing.mean,
        preprocessing.std,
        parts.train.classes,
        images.get("val"),
    )

    # The files decide whether these are the same data, as for images that are read from them.
    files = probe_parts(parts.learned, parts.test)
    info = replace(
        data.info,
        resize=preprocessing.resize,
        interpolation=preprocessing.interpolation,
        identity=identity_of(parts.learned, parts.test, files),
    )
    refuses = cfg.DATASET.UNREADABLE == STOP
    bad = {name: list(each.bad.values()) if refuses else [] for name, each in found.items()}
    return replace(data, info=info, check=partial(_check, bad, parts, files))


def _decode(part: Listing, preprocessing: Preprocessing) -> Decoded:
    """Read all images of a part, with all that the machine has to read them at once."""
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


def _replace_bad(part: Listing, found: Decoded) -> None:
    """Put the next readable image of its class, after the last one the first, in a bad one's row.

    Raises:
        UserError: a class has no readable image.
    """
    target = found.images.target
    for number, bad in found.bad.items():
        same = (target == target[number]).nonzero().flatten().tolist()
        place = same.index(number)
        others = [other for other in same[place:] + same[:place] if other not in found.bad]
        if not others:
            raise UserError(f"cannot read {bad}, nor another image of its class; repair them")

        found.images.image[number] = found.images.image[others[0]]
        warn(f"cannot read the image {bad}; another image of its class replaces it")


def _check(bad: Mapping[str, list[BadImage]], parts: Parts, files: Probed, only_test: bool) -> None:
    """Raise UserError for the files that cannot be read; warn if parts share images."""
    refused = [
        image for name, each in bad.items() if name == "test" or not only_test for image in each
    ]
    if refused:
        total = len(parts.test.samples) + (0 if only_test else len(parts.learned.samples))
        raise refusal(refused, total)
    check_files(files, replaces=True, only_test=only_test)
