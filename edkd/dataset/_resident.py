"""Small images that live on the device as uint8; a batch is gathered, cropped, flipped and normalised there."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edkd.dataset._base import Batch, DataSet, Loader, NumberedLoader, large_batch
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


class TrainLoader(NumberedLoader):
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
        self.num_images, self.set_size, self.num_views = len(members), len(images.target), views.num_views

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def order(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The image numbers and the views of an epoch, (num_images,) each, on the CPU."""
        return epoch_order(self.members, self.set_size, self.num_views, self.seed, epoch)

    def show(self, index: Tensor, view: Tensor) -> Tensor:
        """Images (N,3,H,W) in their views, normalised."""
        return self.normalize(self.views(self.images.image[index], view))

    def batch(self, index: Tensor, view: Tensor) -> Batch:  # type: ignore[override]
        """These images in these views."""
        return Batch(self.show(index, view), self.images.target[index], index)

    def inputs(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The image numbers and the views of each batch."""
        device, start = self.images.image.device, first * self.batch_size
        index, view = (numbers[start:].to(device) for numbers in self.order(epoch))
        if not len(index):
            return iter(())
        return zip(index.split(self.batch_size), view.split(self.batch_size), strict=True)

    def fingerprint(self) -> str:
        """A SHA-256 of the images and of how they are shown."""
        shape, mean, std = tuple(self.images.image.shape), self.normalize.mean, self.normalize.std
        digest = hashlib.sha256(f"{shape} {self.views} {mean.tolist()} {std.tolist()}".encode())
        digest.update(self.images.image.cpu().contiguous().numpy().data)
        return digest.hexdigest()


class EvalLoader(Loader):
    """Every member once, in order, as it is."""

    def __init__(self, images: Images, members: Tensor, normalize: Normalize, batch_size: int) -> None:
        self.images, self.members, self.normalize, self.batch_size = images, members, normalize, batch_size
        self.num_images = len(members)

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def inputs(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor]]:
        """The image numbers of each batch, the same in every epoch."""
        return zip(self.members.to(self.images.image.device).split(self.batch_size)[first:])

    def batch(self, index: Tensor) -> Batch:  # type: ignore[override]
        """These images as they are."""
        return Batch(self.normalize(self.images.image[index]), self.images.target[index], index)


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
    eval_size = cfg.DATASET.TEST.BATCH_SIZE or large_batch(device)
    return DataSet(
        num_classes=num_classes,
        train=TrainLoader(train, members, views, normalize, cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.SEED),
        val=EvalLoader(train, held, normalize, eval_size) if len(held) else None,
        test=EvalLoader(test, torch.arange(len(test.target)), normalize, eval_size),
    )
