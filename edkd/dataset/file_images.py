"""Images of files, read one by one in data workers, and how they become a batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import default_collate

from edkd.dataset._base import REPLACE, STOP
from edkd.dataset.folder_views import Item
from edkd.dataset.images import read_image
from edkd.dataset.readability import BadImage, bad_image, not_transformed
from edkd.dataset.scaled import ScaledTransform
from edkd.dataset.stored_image import StoredImage, Undecodable
from edkd.dataset.strong import strengthened

Transform = Callable[[Any], Tensor]
"""PIL image -> uint8 (3,H,W); draws from torch's global generator on the CPU."""


class ReadImage(NamedTuple):
    """An image that was read."""

    image: Tensor
    """(3,H,W), uint8; (V,3,H,W) of V views."""
    target: int
    number: int
    replaced: BadImage | None
    """The file that could not be read; then `image` is another one of its class."""


class FolderImages(TorchDataset):
    """The images of a folder, by Item.

    A file that cannot be read gives a BadImage: an exception in a worker would lose its text.

    Args:
        samples: (path, class number) of each image.
        on_bad: DATASET.ON_BAD_IMAGE; with "replace", another image of the same class takes the
            place of an unreadable one.
    """

    def __init__(
        self, samples: list[tuple[str, int]], transform: Transform, on_bad: str = STOP
    ) -> None:
        self.samples = samples
        self.transform = transform
        self.on_bad = on_bad
        self.open = StoredImage if isinstance(transform, ScaledTransform) else read_image
        self.strong_form = ""
        """Of a second, strong view, see `randaugment.draw`; "": there is none."""

    def __getitem__(self, item: Item) -> ReadImage | BadImage:
        image = self._read(item.number, item.seed)
        if isinstance(image, BadImage):
            return self._instead_of(item, image) if self.on_bad == REPLACE else image
        return ReadImage(image, self.samples[item.number][1], item.number, None)

    def fault(self, item: Item) -> BadImage | None:
        """The image if it cannot be read and transformed, else None."""
        image = self._read(item.number, item.seed)
        return image if isinstance(image, BadImage) else None

    def _read(self, number: int, seed: int | None) -> Tensor | BadImage:
        path, _ = self.samples[number]
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                # The CPU's generator alone: fork_rng restores no other one here.
                torch.default_generator.manual_seed(seed)
            try:
                image = self.open(path)
            except Exception as error:  # PIL raises almost any exception for damaged files
                return bad_image(path, error)

            try:
                return self._views(image, seed)
            except Undecodable as error:
                return bad_image(path, error.cause)
            except Exception as error:  # as for an image that is smaller than the crop
                return not_transformed(path, image.size, error)

    def _views(self, image: Any, seed: int | None) -> Tensor:
        """The weak view, or both: the strong one has a crop of its own."""
        weak = self.transform(image)
        if not self.strong_form or seed is None:
            return weak
        return torch.stack([weak, strengthened(self.transform(image), seed, self.strong_form)])

    def _instead_of(self, item: Item, bad: BadImage) -> ReadImage | BadImage:
        """The next readable image of the same class, after the last one the first."""
        _, target = self.samples[item.number]
        same = [number for number, (_, other) in enumerate(self.samples) if other == target]
        place = same.index(item.number)

        for number in same[place + 1 :] + same[:place]:
            image = self._read(number, item.seed)
            if not isinstance(image, BadImage):
                return ReadImage(image, target, item.number, bad)
        return bad


def collate(
    items: list[ReadImage | BadImage],
) -> tuple[Tensor, Tensor, Tensor, list[BadImage]] | BadImage:
    """Stack the images of a batch; the first bad image stands for the whole batch.

    Returns:
        Images, targets, image numbers, and the files that others replace.
    """
    images: list[Tensor] = []
    targets: list[int] = []
    numbers: list[int] = []
    replaced: list[BadImage] = []

    for item in items:
        if isinstance(item, BadImage):
            return item
        images.append(item.image)
        targets.append(item.target)
        numbers.append(item.number)
        if item.replaced is not None:
            replaced.append(item.replaced)

    # Channels last in memory, as they were decoded and as they are normalised.
    # In a worker, `default_collate` stacks into shared memory.
    image = default_collate([each.movedim(-3, -1) for each in images]).movedim(-1, -3)
    return image, torch.tensor(targets), torch.tensor(numbers), replaced
