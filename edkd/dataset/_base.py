"""What a data set gives to the engine, and the registry that it enters."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch on the device."""

    image: Tensor
    """(N,3,H,W), float32, normalised."""
    target: Tensor
    """(N,), class numbers."""
    index: Tensor
    """(N,), numbers of the images in their set."""


class Loader(ABC):
    """Batches of a set, each made in two steps: what the host hands over, and what the device makes of it.

    The epoch (from 1) decides the order and the views of a training set, and nothing in others.
    """

    num_images: int

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch; the last one may be smaller."""

    @abstractmethod
    def inputs(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """What makes each batch of an epoch, from the batch number `first` on, on the device."""

    @abstractmethod
    def batch(self, *inputs: Tensor) -> Batch:
        """The batch: a function of tensors on the device that never waits for it."""

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch."""
        for inputs in self.inputs(epoch):
            yield self.batch(*inputs)


class NumberedLoader(Loader):
    """A loader whose random views of an image can be told apart by a number, and shown again."""

    set_size: int
    """Images in the whole set: `index` is below it, also where only some of them take part."""
    num_views: int
    """Views an image has: `view` is below it."""

    @abstractmethod
    def order(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The image numbers and the views of an epoch, (num_images,) each, on the CPU."""

    @abstractmethod
    def show(self, index: Tensor, view: Tensor) -> Tensor:
        """Images (N,3,H,W) in their views, as in a Batch; the numbers (N,) lie on the device."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of all that decides what `show` returns."""


def large_batch(device: torch.device) -> int:
    """Small images in a batch of forward passes alone, where a device is fastest: past 128, a CPU's caches are full."""
    return 128 if device.type == "cpu" else 2048


@dataclass(frozen=True)
class DataSet:
    """Batches to train on, to choose the model by (None: there is no held-out split), and to report on."""

    num_classes: int
    train: Loader
    val: Loader | None
    test: Loader


class DataSetSpec(NamedTuple):
    """An entry of `dataset_dict`."""

    family: str
    """The dictionary of models for images of this size: "cifar", "tiny_imagenet" or "imagenet"."""
    has_published_weights: bool
    """Whether that family's published weights were trained on this set."""
    load: Callable[[Any, torch.device], DataSet]
    """(cfg, device) -> DataSet. Raises UserError where the data are absent or damaged."""


dataset_dict: dict[str, DataSetSpec] = {}
"""DATASET.TYPE -> how to load it."""


def register(
    name: str, family: str, has_published_weights: bool = False
) -> Callable[[Callable[[Any, torch.device], DataSet]], Any]:
    """Function decorator: enter a loading function into `dataset_dict`."""

    def enter(load: Callable[[Any, torch.device], DataSet]) -> Callable[[Any, torch.device], DataSet]:
        dataset_dict[name] = DataSetSpec(family, has_published_weights, load)
        return load

    return enter
