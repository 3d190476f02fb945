"""A data set of some digits, and teachers for them with random weights."""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edkd.dataset import DataSet
from edkd.dataset.digits import digits
from edkd.dataset.resident import Images, resident_dataset
from edkd.engine.checkpoint import save_checkpoint
from edkd.engine.config.load import load_config
from edkd.models import get_model
from edkd.registry import DATASETS

NAME = "few_digits"
PER_CLASS = 2
"""Images of each of the ten classes."""


def register_few_digits() -> None:
    """Register the data set."""
    DATASETS.add(NAME, few_digits, family="cifar", image_shape=(3, 32, 32), num_classes=10)


def few_digits(cfg: Any, device: torch.device) -> DataSet:
    """Some images of each class, the same for training and testing, with the views of digits."""
    whole = all_digits()
    loader: Any = whole.train
    images = loader.images
    chosen = [torch.nonzero(images.target == c)[:PER_CLASS, 0] for c in range(whole.num_classes)]
    index = torch.cat(chosen)
    few = Images(images.image[index], images.target[index])
    info = whole.info
    return resident_dataset(
        cfg, device, few, few, loader.augmentations, info.mean, info.std, info.class_names
    )


@functools.cache
def all_digits() -> DataSet:
    """All digits, on the CPU."""
    cfg = load_config(opts=["DATASET.TYPE=digits", "SOLVER.BATCH_SIZE=64"])
    return digits(cfg, torch.device("cpu"))


def teacher_file(name: str, folder: Path) -> Path:
    """Random weights of a network, with the batch statistics of digits; made where it is absent."""
    path = folder / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        network = get_model("cifar", name, 10)
        _take_statistics(network)
        save_checkpoint({"model": network.state_dict()}, path)
    return path


@torch.no_grad()
def _take_statistics(network: nn.Module) -> None:
    """Set the statistics of batch norms; the activations of random weights explode without them."""
    batch = next(iter(all_digits().train.epoch(1)))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches, of which there is one
    network.train()(batch.image)
