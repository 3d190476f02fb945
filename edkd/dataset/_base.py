"""What a data set gives to the engine, and the registry that it enters."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

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


class Loader(Protocol):
    """Batches of a set; the epoch (from 1) decides the order and the views of a training set, and nothing in others."""

    num_images: int

    def __len__(self) -> int: ...

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch."""
        ...


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
