"""Image folders `{train,val}/<class>/*`, read by a DataLoader and normalised on the device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from edkd.dataset._base import DataSet, Loader, single_view
from edkd.dataset.augment import Normalize
from edkd.dataset.sampling import epoch_order, hold_out, seed_for
from edkd.dataset.workers import start_worker, supervise
from edkd.errors import UserError
from edkd.paths import DATA_ROOT
from edkd.types import Batch, DataInfo

Transform = Callable[[Any], Tensor]
"""PIL image -> uint8 (3,H,W); draws from torch's global generator on the CPU."""

EVAL_BATCH_SIZE = 64


@dataclass(frozen=True)
class Preprocessing:
    """How the images of a folder become tensors of one size."""

    train: Transform
    test: Transform
    size: int
    """Height and width of the results, in pixels."""
    mean: tuple[float, ...]
    """One number for each channel, of pixels in [0, 1]."""
    std: tuple[float, ...]


class Item(NamedTuple):
    """An image to read."""

    number: int
    seed: int | None
    """Of its random transforms; None: they are not random."""


class BadImage(NamedTuple):
    """The result for a file that cannot be read; an exception in a worker would lose its text."""

    path: str
    reason: str


class FolderImages(TorchDataset):
    """The images of a folder, by Item.

    Args:
        samples: (path, class number) of each image.
    """

    def __init__(self, samples: list[tuple[str, int]], transform: Transform) -> None:
        self.samples = samples
        self.transform = transform

    def __getitem__(self, item: Item) -> tuple[Tensor, int, int] | BadImage:
        from torchvision.datasets.folder import pil_loader

        path, target = self.samples[item.number]
        with torch.random.fork_rng(devices=[]):
            if item.seed is not None:
                # The CPU's generator alone: fork_rng restores no other one here.
                torch.default_generator.manual_seed(item.seed)
            try:
                image = self.transform(pil_loader(path))
            except Exception as error:  # PIL raises almost any exception for damaged files
                return BadImage(path, str(error))
        return image, target, item.number


class Batches:
    """The Items of each batch of an epoch. Set `epoch` and `first` before each pass.

    Args:
        members: (M,), numbers of the images that take part.
        num_images: images in the whole set.
        seed: of the order and the random transforms; None: in order, without randomness.
    """

    def __init__(self, members: Tensor, num_images: int, batch_size: int, seed: int | None) -> None:
        self.members = members
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.first = 0
        """Number of the first batch of the pass."""

    def __len__(self) -> int:
        return -(-len(self.members) // self.batch_size)

    def __iter__(self) -> Iterator[list[Item]]:
        index = self.members
        if self.seed is not None:
            index, _ = epoch_order(index, self.num_images, (1,), self.seed, self.epoch)

        for numbers in index.split(self.batch_size)[self.first :]:
            yield [Item(number, self._seed_of(number)) for number in numbers.tolist()]

    def _seed_of(self, number: int) -> int | None:
        return None if self.seed is None else seed_for(self.seed, self.epoch, number)


class FolderLoader(Loader):
    """Batches of a folder's images, the same for any number of workers.

    Args:
        batches: which images, and their order.
        num_workers: processes that read; 0: this process reads.
        timeout: in seconds, after which a worker counts as hanging.
    """

    def __init__(
        self,
        images: FolderImages,
        batches: Batches,
        normalize: Normalize,
        num_workers: int,
        timeout: float,
    ) -> None:
        self.num_images = len(batches.members)
        self.normalize = normalize
        self.device = normalize.device
        self.batches = batches
        self.loader = DataLoader(
            images,
            batch_sampler=batches,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            timeout=timeout if num_workers else 0,
            worker_init_fn=start_worker,
            pin_memory=self.device.type == "cuda",
            collate_fn=collate,
            generator=torch.Generator(),  # without one, each pass draws from the global generator
        )

    def __len__(self) -> int:
        return len(self.batches)

    def inputs(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Images as uint8, targets and image numbers of each batch.

        Raises:
            UserError: an image cannot be read.
            WorkerError: a worker died or hung.
        """
        self.batches.epoch = epoch
        self.batches.first = first
        for batch in supervise(self.loader):
            if isinstance(batch, BadImage):
                raise UserError(
                    f"cannot read the image {batch.path} ({batch.reason}); repair or remove it"
                )
            yield tuple(part.to(self.device, non_blocking=True) for part in batch)

    def batch(  # type: ignore[override]
        self, image: Tensor, target: Tensor, index: Tensor
    ) -> Batch:
        """Normalise the images."""
        image = self.normalize(image)
        return Batch(image, target, index, views=single_view(image))


def collate(
    items: list[tuple[Tensor, int, int] | BadImage],
) -> tuple[Tensor, Tensor, Tensor] | BadImage:
    """Stack the images of a batch; the first bad image stands for the whole batch."""
    images: list[Tensor] = []
    targets: list[int] = []
    numbers: list[int] = []

    for item in items:
        if isinstance(item, BadImage):
            return item
        image, target, number = item
        images.append(image)
        targets.append(target)
        numbers.append(number)

    return torch.stack(images), torch.tensor(targets), torch.tensor(numbers)


def folder_dataset(
    cfg: Any, device: torch.device, folder: str, preprocessing: Preprocessing
) -> DataSet:
    """The images of `{train,val}/<class>/*`; `val` becomes the test set.

    Args:
        cfg: DATASET.* but TYPE, SOLVER.BATCH_SIZE and SOLVER.SEED are read.
        folder: below data/, where DATASET.ROOT names none.

    Raises:
        UserError: a folder is missing or empty, or the two have different classes.
    """
    root = Path(cfg.DATASET.ROOT or DATA_ROOT / "data" / folder).expanduser()
    train = _image_folder(root, "train")
    test = _image_folder(root, "val")
    different = set(train.classes) ^ set(test.classes)
    if different:
        raise UserError(
            f"{root}: train and val must have the same classes; only one of them has "
            f"{min(different)!r}"
        )

    targets = torch.tensor(train.targets)
    members, held_out = hold_out(targets, cfg.DATASET.VAL_SPLIT)
    normalize = Normalize(preprocessing.mean, preprocessing.std, device)

    def make(images: FolderImages, index: Tensor, size: int, seed: int | None) -> FolderLoader:
        batches = Batches(index, len(images.samples), size, seed)
        workers = cfg.DATASET.NUM_WORKERS
        return FolderLoader(images, batches, normalize, workers, cfg.DATASET.WORKER_TIMEOUT)

    augmented = FolderImages(train.samples, preprocessing.train)
    plain = FolderImages(train.samples, preprocessing.test)
    test_images = FolderImages(test.samples, preprocessing.test)
    everything = torch.arange(len(test.samples))
    eval_size = cfg.DATASET.TEST.BATCH_SIZE or EVAL_BATCH_SIZE

    return DataSet(
        train=make(augmented, members, cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.SEED),
        val=make(plain, held_out, eval_size, None) if len(held_out) else None,
        test=make(test_images, everything, eval_size, None),
        info=DataInfo(
            num_classes=len(train.classes),
            num_images=len(targets),
            targets=targets,
            image_shape=(len(preprocessing.mean), preprocessing.size, preprocessing.size),
            mean=preprocessing.mean,
            std=preprocessing.std,
            class_names=tuple(train.classes),
        ),
    )


def _image_folder(root: Path, part: str) -> Any:
    """torchvision's ImageFolder of a part; UserError if it is missing or empty."""
    from torchvision.datasets import ImageFolder

    folder = root / part
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}; store the images as {root}/{{train,val}}/<class>/*, or set "
            "DATASET.ROOT"
        )
    try:
        return ImageFolder(folder)
    except FileNotFoundError as error:
        raise UserError(f"{folder}: {error}") from None
