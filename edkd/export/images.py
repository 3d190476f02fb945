"""Images for checks, calibration and prediction: of a data set, of files, or random ones."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from edkd.dataset import Loader
from edkd.dataset.augment import Normalize
from edkd.dataset.images import extension, read_image, readable_extensions
from edkd.dataset.listing import images_below, in_threads, shown
from edkd.dataset.preparing import evaluation_transform
from edkd.dataset.readability import BadImage, bad_image
from edkd.errors import UserError
from edkd.types import InputSpec

CPU = torch.device("cpu")


class Prepared(NamedTuple):
    """A batch of image files."""

    paths: list[str]
    image: Tensor
    """(N,3,H,W), float32, normalised, on the CPU; N is the number of paths."""
    bad: list[BadImage]
    """Files of this part that cannot be read."""


def image_files(paths: Sequence[str]) -> list[str]:
    """The image files among paths and below folders, each once.

    Raises:
        UserError: a path does not exist, is no image by its extension, or a folder has no images.
    """
    found: dict[str, str] = {}
    for path in paths:
        files = [path]
        if os.path.isdir(path):
            files = images_below(Path(path))
            if not files:
                raise UserError(f"no images in {path} or the folders in it")
        elif not os.path.lexists(path):
            raise UserError(f"no image and no folder at {path}")
        elif extension(path) not in readable_extensions():
            kinds = shown(sorted(readable_extensions()), 4)
            raise UserError(f"{path} does not have the extension of an image (known: {kinds})")

        for file in files:
            found.setdefault(os.path.abspath(file), file)
    return list(found.values())


def prepared(files: Sequence[str], spec: InputSpec, batch_size: int) -> Iterator[Prepared]:
    """Image files as batches, prepared as in evaluation."""
    transform = evaluation_transform(spec)
    normalize = Normalize(spec.mean, spec.std, CPU)

    def read(path: str) -> Tensor | BadImage:
        try:
            return transform(read_image(path))
        except Exception as error:  # PIL raises almost any exception for damaged files
            return bad_image(path, error)

    for start in range(0, len(files), batch_size):
        part = files[start : start + batch_size]
        results = in_threads(read, part)
        good = [
            (path, item)
            for path, item in zip(part, results, strict=True)
            if isinstance(item, Tensor)
        ]
        images = [item for _, item in good]
        yield Prepared(
            [path for path, _ in good],
            normalize(torch.stack(images)) if images else torch.empty(0, *spec.image_shape),
            [item for item in results if isinstance(item, BadImage)],
        )


def spread(loader: Loader, number: int) -> Iterator[Tensor]:
    """About `number` images of a set, in batches that are evenly spaced in it.

    Image folders are in the order of their classes, so the first images would be of one class.
    """
    per_batch = -(-loader.num_images // len(loader))
    wanted = min(len(loader), -(-number // per_batch))
    left = number

    for place in range(wanted):
        first = place * len(loader) // wanted
        inputs = next(iter(loader.inputs(0, first)))
        image = loader.batch(*inputs).image[:left]
        left -= len(image)
        if len(image):
            yield image


def random_images(spec: InputSpec, number: int) -> Iterator[Tensor]:
    """Normalised noise, the same in each call, where there are no images."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(0, number, 16):
        yield torch.randn(16, *spec.image_shape, generator=generator)
