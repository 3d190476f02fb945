"""Makes the epochs of a loader of the user reproducible.

Whatever the loader draws from random generators depends on (seed, epoch) alone: not on the number
of workers, nor on what a method draws, nor on whether the run was resumed. Covered are the global
generators of torch (CPU), NumPy and Python, attributes `generator`, and `set_epoch`; a generator
that a data set keeps to itself is not.
"""

import itertools
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from edkd.dataset.sampling import RandomStream, seed_for
from edkd.dataset.workers import start_worker, supervise
from edkd.errors import UserError

SETTINGS = {"count": "num_workers", "timeout": "timeout of the DataLoader"}
"""How the user of a DataLoader sets what DATASET.* sets elsewhere, for messages."""

_END = object()


class Numbered(NamedTuple):
    """A batch as the user's loader yields it."""

    batch: Any
    image_index: Tensor | None = None
    """(num_items,), numbers of its items in the data set; None if they are not known."""
    num_items: int | None = None
    """Items that it was made of; None if this is not known."""


class Source(ABC):
    """The batches of a loader of the user, by epoch.

    Args:
        name: of the loader, for messages.
    """

    def __init__(self, name: str, loader: Any, seed: int) -> None:
        self.name = name
        self.loader = loader
        self.seed = seed

    @abstractmethod
    def batches(self, epoch: int, first: int = 0) -> Iterator[Numbered]:
        """The batches of an epoch from the number `first` on."""

    def start(self, epoch: int) -> RandomStream:
        """Tell the loader's parts the epoch, and seed their own generators.

        Returns:
            The random numbers of the epoch.
        """
        batch_sampler = getattr(self.loader, "batch_sampler", None)
        parts = [self.loader, batch_sampler, getattr(batch_sampler, "sampler", None)]
        for name in ("dataset", "sampler"):
            parts.append(getattr(self.loader, name, None))

        for part in parts:
            generator = getattr(part, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed_for(self.seed, epoch))
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        return RandomStream(seed_for(self.seed, epoch))


class Job(NamedTuple):
    """A batch to read."""

    keys: list[Any]
    """What the batch sampler yielded: keys of items in the data set."""
    seed: int
    """Of random transforms and of a random `collate_fn`."""


class BatchReader(TorchDataset):
    """Reads batches of a data set, by Job; used in the workers.

    Args:
        collate: a list of items -> a batch.
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset = dataset
        self.collate = collate

    def __getitem__(self, job: Job) -> Numbered:
        with RandomStream(job.seed).active():
            batch = self.collate(self._items(job.keys))
        return Numbered(batch, _as_index(job.keys), len(job.keys))

    def _items(self, keys: list[Any]) -> list[Any]:
        read_all = getattr(self.dataset, "__getitems__", None)
        if read_all is not None:
            return read_all(keys)
        return [self.dataset[key] for key in keys]


class Jobs:
    """A sampler: the jobs of the current pass.

    It is apart from the source: a reference cycle around a DataLoader would delay the end of its
    workers by seconds.
    """

    def __init__(self) -> None:
        self.current: list[Job] = []

    def __iter__(self) -> Iterator[Job]:
        return iter(self.current)

    def __len__(self) -> int:
        return len(self.current)


class MapSource(Source):
    """A DataLoader over a data set whose items have keys.

    It is rebuilt around the same data set, samplers, `collate_fn` and worker settings. The order of
    an epoch is drawn first; so batches have an index, and a resumed epoch skips without reading.
    """

    def __init__(self, name: str, loader: DataLoader, seed: int, epoch: int) -> None:
        super().__init__(name, loader, seed)
        order = self._draw(epoch)
        self.num_batches = len(order)
        self.num_images = sum(len(keys) for keys in order)

        self.jobs = Jobs()
        self.rebuilt = DataLoader(
            BatchReader(loader.dataset, loader.collate_fn),
            batch_size=None,
            sampler=self.jobs,
            collate_fn=_unchanged,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=partial(_start_worker, loader.worker_init_fn),
            multiprocessing_context=loader.multiprocessing_context,
            generator=torch.Generator(),
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
        )

    def batches(self, epoch: int, first: int = 0) -> Iterator[Numbered]:
        """The batches of an epoch from the number `first` on."""
        order = self._draw(epoch)
        if len(order) != self.num_batches:
            raise UserError(
                f"the batch sampler of {self.name} yields {len(order)} batches in epoch {epoch}, "
                f"but {self.num_batches} before; each epoch must have the same number"
            )

        numbered = enumerate(order[first:], first)
        self.jobs.current = [
            Job(keys, seed_for(self.seed, epoch, number)) for number, keys in numbered
        ]
        yield from supervise(self.rebuilt, **SETTINGS)

    def image_index(self, epoch: int) -> Tensor | None:
        """The numbers of the items of an epoch, in order; None if they are not known."""
        return _as_index(list(itertools.chain.from_iterable(self._draw(epoch))))

    def _draw(self, epoch: int) -> list[list[Any]]:
        """The keys of each batch of an epoch."""
        sampler = self.loader.batch_sampler

        if not hasattr(sampler, "__len__"):
            raise UserError(f"the batch sampler of {self.name} has no length; give it __len__")
        try:
            limit = len(sampler) + 1
        except TypeError:
            raise UserError(f"the sampler of {self.name} has no length; give it __len__") from None

        with self.start(epoch).active():
            return [list(keys) for keys in itertools.islice(sampler, limit)]


class IterableSource(Source):
    """Any other iterable of batches.

    Its random numbers are a stream of their own, as long as it draws them in this process from the
    global generators of torch, NumPy and Python.
    """

    def __init__(self, name: str, loader: Iterable[Any], seed: int) -> None:
        super().__init__(name, loader, seed)
        if hasattr(loader, "__next__"):
            raise UserError(
                f"{name} is an iterator, which can be read once; give a DataLoader or a list of "
                "batches"
            )

    def batches(self, epoch: int, first: int = 0) -> Iterator[Numbered]:
        """The batches of an epoch from the number `first` on; earlier ones are read and dropped."""
        random_numbers = self.start(epoch)
        with random_numbers.active():
            iterator = self._iterator()

        for number in itertools.count():
            with random_numbers.active():
                batch = next(iterator, _END)
            if batch is _END:
                return
            if number >= first:
                yield Numbered(batch)

    def _iterator(self) -> Iterator[Any]:
        if isinstance(self.loader, DataLoader):
            return supervise(self.loader, **SETTINGS)
        return iter(self.loader)


def has_keys(loader: Any) -> bool:
    """Whether a loader is a plain DataLoader that reads items of a data set by their keys."""
    if not isinstance(loader, DataLoader) or type(loader).__iter__ is not DataLoader.__iter__:
        return False
    return loader.batch_sampler is not None and not isinstance(loader.dataset, IterableDataset)


def _as_index(keys: list[Any]) -> Tensor | None:
    try:
        return torch.tensor([operator.index(key) for key in keys])
    except TypeError:
        return None


def _unchanged(batch: Any) -> Any:
    return batch


def _start_worker(init: Callable[[int], None] | None, worker: int) -> None:
    start_worker(worker)
    if init is not None:
        init(worker)
