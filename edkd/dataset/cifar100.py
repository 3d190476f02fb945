"""CIFAR-100: 50,000 + 10,000 images of 3x32x32 in 100 classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, 2009.
"""

from functools import partial
from typing import Any

import torch

from edkd.dataset._base import DataSet, register
from edkd.dataset._torchvision import Published, load, read_cifar
from edkd.dataset.augment import CropFlip

CIFAR100 = Published(
    "cifar100",
    partial(read_cifar, "cifar100"),
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    augmentation=CropFlip(),
)


@register(
    "cifar100",
    family="cifar",
    has_published_weights=True,
    image_shape=(3, 32, 32),
    num_classes=100,
)
def cifar100(cfg: Any, device: torch.device) -> DataSet:
    """Crops with padding 4, and flips; normalised as for the published teachers."""
    return load(cfg, device, CIFAR100)
