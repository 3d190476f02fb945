"""Small images that live on the device as uint8; a batch is gathered, cropped, flipped and normalised there."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edkd.dataset._base import Batch, DataSet
from edkd.dataset.augment import CropFlip, Normalize
from edkd.dataset.sampling import epoch_order, hold_out


@dataclass(frozen=True)
class Images:
    """A set of labelled images of one size.

    image: (N,3,H,W), uint8; target: (N,), int64.
    """

    image: Tensor
    target: Tensor

    def to(self, device: torch.device) -> "Images":
        """The same on a device."""
        return Images(self.image.to(device), self.target.to(device))


class TrainLoader:
    """Training batches: order and views come from (seed, epoch) alone. The last batch may be smaller.

    Args:
        images: on the device.
        members: (M,), numbers of the images to train on.
    """

    def __init__(
        self, images: Images, members: Tensor, views: CropFlip, normalize: Normalize, batch_size: int, seed: int
    ) -> None:
        self.images, self.members, self.views, self.normalize = images, members, views, normalize
        self.batch_size, self.seed = batch_size, seed
        self.num_images = len(members)

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (from 1)."""
        device = self.images.image.device
        order = epoch_order(self.members, len(self.images.target), self.views.num_views, self.seed, epoch)
        index, view = (numbers.to(device) for numbers in order)
        for index_batch, view_batch in zip(index.split(self.batch_size), view.split(self.batch_size), strict=True):
            image = self.normalize(self.views(self.images.image[index_batch], view_batch))
            yield Batch(image, self.images.target[index_batch], index_batch)


class EvalLoader:
    """Every member once, in order, as it is."""

    def __init__(self, images: Images, members: Tensor, normalize: Normalize, batch_size: int) -> None:
        self.images, self.members, self.normalize, self.batch_size = images, members, normalize, batch_size
        self.num_images = len(members)

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches, the same in every epoch."""
        for index in self.members.to(self.images.image.device).split(self.batch_size):
            yield Batch(self.normalize(self.images.image[index]), self.images.target[index], index)


def resident_dataset(
    cfg: Any,
    device: torch.device,
    train: Images,
    test: Images,
    num_classes: int,
    views: CropFlip,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> DataSet:
    """Put the images on the device, hold out DATASET.VAL_SPLIT of the training images, and make the loaders."""
    members, held = hold_out(train.target, cfg.DATASET.VAL_SPLIT)
    normalize = Normalize(mean, std, device)
    train, test = train.to(device), test.to(device)
    eval_size = cfg.DATASET.TEST.BATCH_SIZE
    return DataSet(
        num_classes=num_classes,
        train=TrainLoader(train, members, views, normalize, cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.SEED),
        val=EvalLoader(train, held, normalize, eval_size) if len(held) else None,
        test=EvalLoader(test, torch.arange(len(test.target)), normalize, eval_size),
    )
