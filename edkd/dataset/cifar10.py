"""CIFAR-10: 50,000 + 10,000 images of 3x32x32 in 10 classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, 2009.
"""

from functools import partial
from typing import Any

import torch

from edkd.dataset._base import DataSet, register
from edkd.dataset._torchvision import Published, load, read_cifar
from edkd.dataset.augment import CropFlip

CIFAR10 = Published(
    "cifar10",
    partial(read_cifar, "cifar10"),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    augmentation=CropFlip(),
)


@register(
    "cifar10",
    family="cifar",
    image_shape=(3, 32, 32),
    num_classes=10,
)
def cifar10(cfg: Any, device: torch.device) -> DataSet:
    """Crops with padding 4, and flips; normalised by its own training pixels."""
    return load(cfg, device, CIFAR10)
