"""CIFAR-10: 50,000 + 10,000 images of 3x32x32 in 10 classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, 2009.
"""

from typing import Any

import torch

from edkd.dataset._base import DataSet, register
from edkd.dataset._cifar import load_cifar


@register("cifar10", family="cifar")
def cifar10(cfg: Any, device: torch.device) -> DataSet:
    """Crops with padding 4, and flips; normalised by its own training pixels."""
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    return load_cifar(cfg, device, "CIFAR10", mean, std)
