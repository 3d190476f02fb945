"""Fashion-MNIST: 60,000 + 10,000 pictures of clothes, 28x28, gray, in 10 classes.

H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms", 2017, arXiv:1708.07747.
"""

from functools import partial
from typing import Any

import torch

from edkd.dataset._base import DataSet, register
from edkd.dataset._torchvision import Published, gray, load, read_mnist
from edkd.dataset.augment import CropFlip

CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

FASHION_MNIST = Published(
    "fashion_mnist",
    partial(read_mnist, "FashionMNIST", CLOTHES),
    mean=gray(0.2860),
    std=gray(0.3530),
    augmentation=CropFlip(),
)


@register(
    "fashion_mnist",
    family="cifar",
    image_shape=(3, 32, 32),
    num_classes=10,
)
def fashion_mnist(cfg: Any, device: torch.device) -> DataSet:
    """Padded to 3x32x32 for the networks of CIFAR; crops with padding 4, and flips.

    Mean and std are those of the training pixels before the padding.
    """
    return load(cfg, device, FASHION_MNIST)
