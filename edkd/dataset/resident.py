"""Small images that stay on the device as uint8. Batches are cropped and normalised there."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edkd import world
from edkd.dataset._base import (
    WEAK,
    DataSet,
    Loader,
    NumberedLoader,
    large_batch,
    single_view,
)
from edkd.dataset.augment import Augmentation, Normalize, check_augmentation, make_views
from edkd.dataset.folder_views import check_views
from edkd.dataset.host_augment import check_randaugment
from edkd.dataset.identity import tensor_hash
from edkd.dataset.listing import combined
from edkd.dataset.sampling import epoch_order, hold_out, num_batches, split_batches
from edkd.dataset.strong import with_strong
from edkd.errors import UserError
from edkd.types import Batch, DataInfo, View


@dataclass(frozen=True)
class Images:
    """Labelled images of one size."""

    image: Tensor
    """(N,3,H,W), uint8. The networks of this package take three channels; for gray images, see
    `from_gray`. Other numbers of channels need a network of your own."""
    target: Tensor
    """(N,), class numbers, int64."""
    padded_from: tuple[int, int] | None = None
    """(height, width) before black pixels were added on all sides; None: there are none."""

    def __post_init__(self) -> None:
        shape = tuple(self.image.shape)
        if self.image.dtype != torch.uint8 or len(shape) != 4:
            raise UserError(
                f"images of a data set are {self.image.dtype} of shape {shape}; they must be "
                "torch.uint8 of shape (N,3,H,W)"
            )

        expected = shape[:1]
        if self.target.dtype != torch.int64 or tuple(self.target.shape) != expected:
            raise UserError(
                f"targets of a data set are {self.target.dtype} of shape "
                f"{tuple(self.target.shape)}; they must be torch.int64 of shape {expected}"
            )

    @classmethod
    def from_gray(cls, image: Tensor, target: Tensor, size: int = 0) -> "Images":
        """Gray images, repeated to the three channels that the networks of this package take.

        Args:
            image: (N,H,W) or (N,1,H,W), uint8.
            target: (N,), class numbers, int64.
            size: height and width of the results, in pixels; black pixels are added on all sides.
                0: the images keep their size.

        Raises:
            UserError: the images have another form, or are larger than `size`.

        Example:
            >>> digits = torch.zeros(100, 28, 28, dtype=torch.uint8)
            >>> images = Images.from_gray(digits, torch.arange(100) % 10, size=32)
            >>> images.image.shape
            torch.Size([100, 3, 32, 32])
        """
        if image.ndim == 3:
            image = image[:, None]
        if image.ndim != 4 or image.shape[1] != 1 or image.dtype != torch.uint8:
            raise UserError(
                f"gray images are {image.dtype} of shape {tuple(image.shape)}; they must be "
                "torch.uint8 of shape (N,H,W) or (N,1,H,W)"
            )

        padded = _padded(image, size)
        height, width = image.shape[2:]
        padded_from = (height, width) if padded.shape != image.shape else None
        return cls(padded.expand(-1, 3, -1, -1).contiguous(), target, padded_from)

    def to(self, device: torch.device) -> "Images":
        """A copy on a device."""
        return replace(self, image=self.image.to(device), target=self.target.to(device))


def _padded(image: Tensor, size: int) -> Tensor:
    """(N,C,H,W) with zeros around it up to a size, the odd one below and on the right."""
    height, width = image.shape[2:]
    if not size:
        return image
    if max(height, width) > size:
        raise UserError(f"images of {height}x{width} pixels do not fit into {size}x{size}")

    top = (size - height) // 2
    left = (size - width) // 2
    return F.pad(image, (left, size - width - left, top, size - height - top))


class TrainLoader(NumberedLoader):
    """Training batches, whose order and views (seed, epoch) decides.

    Args:
        images: on the device.
        members: (M,), numbers of the images to train on.
        augmentations: how each view is made, by its name; "weak" is needed.
    """

    augmentations: dict[str, Augmentation]
    is_shared = True

    def __init__(
        self,
        images: Images,
        members: Tensor,
        augmentations: Mapping[str, Augmentation],
        normalize: Normalize,
        batch_size: int,
        seed: int,
    ) -> None:
        if WEAK not in augmentations:
            raise UserError(f"augmentations {list(augmentations)} lack the view {WEAK!r}")
        for name, augmentation in augmentations.items():
            check_augmentation(name, augmentation)

        self.images = images
        self.members = members
        self.augmentations = dict(augmentations)
        self.normalize = normalize
        self.batch_size = batch_size
        self.seed = seed
        self.num_images = len(members)
        self.set_size = len(images.target)
        self.left_out = torch.empty(0, dtype=torch.long)
        """Members that are removed from each epoch. The others keep their order and views."""

    def __len__(self) -> int:
        return num_batches(self.num_images, self.batch_size)

    def order(self, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The image numbers of an epoch, and the number of each image's view, by name."""
        counts = [self.augmentations[name].num_views for name in self.views]
        index, numbers = epoch_order(self.members, self.set_size, counts, self.seed, epoch)
        kept = ~torch.isin(index, self.left_out)
        chosen = [each[kept] for each in numbers]
        return index[kept], dict(zip(self.views, chosen, strict=True))

    def leave_out(self, numbers: Tensor) -> None:
        """Let images take no part, by their numbers (K,), on the CPU; others are ignored."""
        self.left_out = numbers[torch.isin(numbers, self.members)]
        self.num_left_out = len(self.left_out)
        self.num_images = len(self.members) - self.num_left_out

    def inputs(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """The image numbers of each batch, then the view numbers of each view."""
        index, numbers = self.order(epoch)
        device = self.images.image.device
        columns = [column.to(device) for column in (index, *numbers.values())]
        parts = [split_batches(column, self.batch_size)[first:] for column in columns]
        for inputs in zip(*parts, strict=True):
            total = len(inputs[0])
            self.counts = world.counts_of(total)
            rows = world.own_rows(self.counts, total)
            yield tuple(each[rows] for each in inputs)

    def batch(self, index: Tensor, *numbers: Tensor) -> Batch:  # type: ignore[override]
        """These images in these views."""
        views = {
            name: View(self.show(index, number, name), number)
            for name, number in zip(self.views, numbers, strict=True)
        }
        image = views[self.views[0]].image
        return Batch(image, self.images.target[index], index, views=views, counts=self.counts)

    def show(self, index: Tensor, number: Tensor, view: str = WEAK) -> Tensor:
        """Images (N,3,H,W) in their views, normalised."""
        image = self.images.image[index]
        return self.normalize(make_views(self.augmentations[view], image, number, index))

    def fingerprint(self, view: str = WEAK) -> str:
        """A SHA-256 of the images, the augmentation and the normalisation."""
        shape = tuple(self.images.image.shape)
        identity = self.augmentations[view].identity()
        mean = self.normalize.mean.tolist()
        std = self.normalize.std.tolist()

        digest = hashlib.sha256(f"{shape} {identity} {mean} {std}".encode())
        digest.update(self.images.image.cpu().contiguous().numpy().data)
        return digest.hexdigest()


class EvalLoader(Loader):
    """Each member once, in order, without augmentation.

    Args:
        images: on the device.
        members: (M,), numbers of the images that take part. Several processes share them.
    """

    is_shared = True

    def __init__(
        self, images: Images, members: Tensor, normalize: Normalize, batch_size: int
    ) -> None:
        self.images = images
        self.members = members
        self.normalize = normalize
        self.batch_size = batch_size
        self.num_images = len(members)

    def __len__(self) -> int:
        rows = self._own_rows()
        return -(-(rows.stop - rows.start) // self.batch_size)

    def _own_rows(self) -> slice:
        """The members that this process runs."""
        return world.own_rows(world.counts_of(self.num_images), self.num_images)

    def leave_out(self, numbers: Tensor) -> None:
        """Let images take no part, by their numbers (K,), on the CPU; others are ignored."""
        kept = ~torch.isin(self.members, numbers)
        self.num_left_out = int((~kept).sum())
        self.members = self.members[kept]
        self.num_images = len(self.members)

    def inputs(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """The image numbers of each batch, the same in every epoch."""
        members = self.members[self._own_rows()].to(self.images.image.device)
        return zip(members.split(self.batch_size)[first:])

    def batch(self, index: Tensor) -> Batch:  # type: ignore[override]
        """These images."""
        image = self.normalize(self.images.image[index])
        return Batch(image, self.images.target[index], index, views=single_view(image))


def resident_dataset(
    cfg: Any,
    device: torch.device,
    train: Images,
    test: Images,
    augmentations: Mapping[str, Augmentation] | Augmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    class_names: Sequence[str] = (),
    val: Images | None = None,
) -> DataSet:
    """Copy images to the device and make the loaders.

    Args:
        cfg: DATASET.VAL_SPLIT, STRONG_*, RANDAUGMENT and TEST.BATCH_SIZE, SOLVER.BATCH_SIZE and
            SEED are read.
        train: for gray images, see `Images.from_gray`.
        test: as `train`.
        augmentations: the training views by name, "weak" among them; or that one alone. Without
            a view "strong", `StrongViews` makes it of the weak one.
        mean: one number for each channel, of pixels in [0, 1].
        std: the same.
        class_names: by class number; if empty, the classes are counted.
        val: chooses the best epoch; None: the images of DATASET.VAL_SPLIT do.

    Raises:
        UserError: the images, targets, augmentations or DATASET.VAL_SPLIT are not usable, or
            DATASET.RANDAUGMENT is set.

    Example:
        weak = CropFlip(padding=4, flip=True)
        resident_dataset(cfg, device, Images(x, y), Images(x2, y2), weak, mean, std)
    """
    if not isinstance(augmentations, Mapping):
        augmentations = {WEAK: augmentations}
    augmentations = with_strong(augmentations, train.image.shape[1], cfg)
    check_randaugment(None, cfg)
    check_views(cfg)

    parts = {"training images": train, "test images": test}
    if val is not None:
        parts["validation images"] = val

    targets = train.target.cpu()
    info = DataInfo(
        num_classes=_count_classes(list(parts.values()), class_names),
        num_images=len(targets),
        targets=targets,
        image_shape=_image_shape(parts, mean),
        mean=tuple(mean),
        std=tuple(std),
        padded_from=test.padded_from,
        class_names=tuple(class_names),
        identity={name: _hash(part) for name, part in parts.items()},
    )

    members, held_out = hold_out(targets, cfg.DATASET.VAL_SPLIT)
    normalize = Normalize(mean, std, device)
    eval_size = cfg.DATASET.TEST.BATCH_SIZE or large_batch(device)
    train = train.to(device)

    def whole(part: Images) -> EvalLoader:
        everything = torch.arange(len(part.target))
        return EvalLoader(part.to(device), everything, normalize, eval_size)

    chooses = EvalLoader(train, held_out, normalize, eval_size) if len(held_out) else None
    return DataSet(
        train=TrainLoader(
            train, members, augmentations, normalize, cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.SEED
        ),
        val=chooses if val is None else whole(val),
        test=whole(test),
        info=info,
    )


def _hash(images: Images) -> str:
    return combined(tensor_hash(images.image), tensor_hash(images.target))


def _count_classes(parts: Sequence[Images], class_names: Sequence[str]) -> int:
    """Number of classes; UserError if there is a class number outside of it."""
    targets = torch.cat([part.target.cpu() for part in parts])
    if not len(targets):
        raise UserError("the data set has no images")

    lowest, highest = targets.min().item(), targets.max().item()
    num_classes = len(class_names) or int(highest) + 1
    if lowest < 0 or highest >= num_classes:
        raise UserError(
            f"targets of the data set are between {lowest} and {highest}; with {num_classes} "
            f"classes they must be between 0 and {num_classes - 1}"
        )
    return num_classes


def _image_shape(parts: Mapping[str, Images], mean: Sequence[float]) -> tuple[int, int, int]:
    shapes = {name: tuple(part.image.shape[1:]) for name, part in parts.items()}
    (first, shape), *others = shapes.items()
    for name, other in others:
        if other != shape:
            raise UserError(f"{first} have the shape {shape}, {name} {other}; they must be equal")

    channels, height, width = shape
    if len(mean) != channels:
        raise UserError(f"mean has {len(mean)} numbers, but images have {channels} channels")
    return channels, height, width
