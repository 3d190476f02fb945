"""CIFAR-100: 50,000 + 10,000 images of 3x32x32 in 100 classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, 2009.
"""

from typing import Any

import torch

from edkd.dataset._base import DataSet, register
from edkd.dataset._cifar import load_cifar


@register("cifar100", family="cifar", has_published_weights=True)
def cifar100(cfg: Any, device: torch.device) -> DataSet:
    """Crops with padding 4, and flips; normalised as for the published teachers."""
    mean = (0.5071, 0.4867, 0.4408)
    std = (0.2675, 0.2565, 0.2761)
    return load_cifar(cfg, device, "CIFAR100", mean, std)
