"""Image folders `{train,val}/<class>/*`, streamed by a DataLoader as uint8 and normalised on the device."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from edkd.dataset._base import Batch, DataSet, Loader
from edkd.dataset.augment import Normalize
from edkd.dataset.sampling import epoch_order, hold_out, seed_for
from edkd.errors import UserError, WorkerError
from edkd.paths import DATA_ROOT
from edkd.stop import after_hold


class Item(NamedTuple):
    """Which image, and the seed of its random transforms (None: they are not random)."""

    number: int
    seed: int | None


class BadImage(NamedTuple):
    """What a worker returns for a file that cannot be read; an exception would lose its text on the way."""

    path: str
    reason: str


class FolderImages(TorchDataset):
    """The images of a folder, by Item.

    Args:
        samples: (path, class number) of each image.
        transform: PIL image -> uint8 (3,H,W); draws from torch's global generator.
    """

    def __init__(self, samples: list[tuple[str, int]], transform: Callable[[Any], Tensor]) -> None:
        self.samples, self.transform = samples, transform

    def __getitem__(self, item: Item) -> tuple[Tensor, int, int] | BadImage:
        from torchvision.datasets.folder import pil_loader

        path, target = self.samples[item.number]
        with torch.random.fork_rng(devices=[]):
            if item.seed is not None:
                torch.default_generator.manual_seed(item.seed)  # the CPU's alone: fork_rng restores no other
            try:
                return self.transform(pil_loader(path)), target, item.number
            except Exception as error:  # there is hardly one that a damaged file cannot make PIL raise
                return BadImage(path, str(error))


class Batches:
    """The batches of Items of an epoch; `epoch` and the number of the `first` batch are set before each pass."""

    def __init__(self, members: Tensor, num_images: int, batch_size: int, seed: int | None) -> None:
        self.members, self.num_images, self.batch_size, self.seed = members, num_images, batch_size, seed
        self.epoch, self.first = 0, 0

    def __len__(self) -> int:
        return -(-len(self.members) // self.batch_size)

    def __iter__(self) -> Iterator[list[Item]]:
        index = self.members
        if self.seed is not None:
            index, _ = epoch_order(index, self.num_images, 1, self.seed, self.epoch)
        for batch in index.split(self.batch_size)[self.first :]:
            yield [Item(i, None if self.seed is None else seed_for(self.seed, self.epoch, i)) for i in batch.tolist()]


class FolderLoader(Loader):
    """Batches of a folder's images; the same whatever the number of workers.

    Args:
        members: (M,), numbers of the images that take part.
        seed: of the order and the random transforms; None: in order, without randomness.
    """

    def __init__(
        self,
        images: FolderImages,
        members: Tensor,
        normalize: Normalize,
        batch_size: int,
        num_workers: int,
        timeout: float,
        seed: int | None = None,
    ) -> None:
        self.num_images = len(members)
        self.normalize, self.device = normalize, normalize.mean.device
        self.batches = Batches(members, len(images.samples), batch_size, seed)
        self.loader = DataLoader(
            images,
            batch_sampler=self.batches,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            timeout=timeout if num_workers else 0,
            worker_init_fn=leave_the_group,
            pin_memory=self.device.type == "cuda",
            collate_fn=collate,
            generator=torch.Generator(),  # else each pass draws a number from the global one
        )

    def __len__(self) -> int:
        return len(self.batches)

    def inputs(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Images as bytes, targets and numbers of each batch of an epoch (from 1 for a training set)."""
        self.batches.epoch, self.batches.first = epoch, first
        try:
            batches = iter(self.loader)
            watch_workers()
            for batch in batches:
                if isinstance(batch, BadImage):
                    raise UserError(f"cannot read the image {batch.path} ({batch.reason}); repair or remove it")
                yield tuple(part.to(self.device, non_blocking=True) for part in batch)
        except WorkerError:
            raise
        except Exception as error:  # the loader raises a worker's own anew, whatever its type
            if "DataLoader worker process" in str(error):
                reason = f"raised {str(error).splitlines()[-1]}"
            elif "DataLoader timed out" in str(error):
                reason = f"sent nothing for {self.loader.timeout:g} s (DATASET.WORKER_TIMEOUT)"
            elif "DataLoader worker" in str(error) or "Pin memory thread" in str(error):
                reason = f"died: {error}"
            else:
                raise
            raise WorkerError(f"a data worker {reason}; try DATASET.NUM_WORKERS 0") from error

    def batch(self, image: Tensor, target: Tensor, index: Tensor) -> Batch:  # type: ignore[override]
        """Normalise."""
        return Batch(self.normalize(image), target, index)


def watch_workers() -> None:
    """Where a worker dies torch raises, wherever the main thread is; let it wait for a `hold`, and say what it is."""
    handler: Any = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    if callable(handler) and not hasattr(handler, "is_watch") and threading.current_thread() is threading.main_thread():

        def watch(number: int, frame: Any) -> None:
            after_hold(partial(_raise_worker_error, handler, number, frame))

        watch.is_watch = True  # type: ignore[attr-defined]
        signal.signal(signal.SIGCHLD, watch)


def _raise_worker_error(handler: Callable[[int, Any], None], number: int, frame: Any) -> None:
    try:
        handler(number, frame)
    except RuntimeError as error:
        raise WorkerError(f"a data worker died: {error}; try DATASET.NUM_WORKERS 0") from error


def leave_the_group(worker: int) -> None:
    """Ctrl-C goes to the whole group of processes, and must not end a worker before the run has saved."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def collate(items: list[tuple[Tensor, int, int] | BadImage]) -> tuple[Tensor, Tensor, Tensor] | BadImage:
    """Stack the images of a batch, or hand on the first bad one."""
    if bad := next((item for item in items if isinstance(item, BadImage)), None):
        return bad
    image, target, index = zip(*items, strict=True)
    return torch.stack(image), torch.tensor(target), torch.tensor(index)


def folder_dataset(
    cfg: Any,
    device: torch.device,
    folder: str,
    transforms: tuple[Callable[[Any], Tensor], Callable[[Any], Tensor]],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> DataSet:
    """Serve `{train,val}/<class>/*` below DATASET.ROOT (default: `data/<folder>`); `val` is what is reported on.

    Args:
        transforms: for training and for evaluation, PIL image -> uint8 (3,H,W) of one size.

    Raises:
        UserError: a folder is absent, empty, or the two hold different classes.
    """
    from torchvision.datasets import ImageFolder

    root = Path(cfg.DATASET.ROOT or DATA_ROOT / "data" / folder).expanduser()
    parts = []
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise UserError(
                f"no folder {root / part}; lay the images out as {root}/{{train,val}}/<class>/*, or set DATASET.ROOT"
            )
        try:
            parts.append(ImageFolder(root / part))
        except FileNotFoundError as error:
            raise UserError(f"{root / part}: {error}") from None
    train, test = parts
    if odd := set(train.classes) ^ set(test.classes):
        raise UserError(f"{root}: train and val must hold the same classes; only one holds {sorted(odd)[0]!r}")
    members, held = hold_out(torch.tensor(train.targets), cfg.DATASET.VAL_SPLIT)
    normalize = Normalize(mean, std, device)
    eval_size, workers = cfg.DATASET.TEST.BATCH_SIZE or 64, cfg.DATASET.NUM_WORKERS
    timeout = cfg.DATASET.WORKER_TIMEOUT
    augmented, plain = (FolderImages(train.samples, transform) for transform in transforms)
    test_images = FolderImages(test.samples, transforms[1])
    return DataSet(
        num_classes=len(train.classes),
        train=FolderLoader(augmented, members, normalize, cfg.SOLVER.BATCH_SIZE, workers, timeout, cfg.SOLVER.SEED),
        val=FolderLoader(plain, held, normalize, eval_size, workers, timeout) if len(held) else None,
        test=FolderLoader(test_images, torch.arange(len(test.samples)), normalize, eval_size, workers, timeout),
    )
