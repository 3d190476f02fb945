"""MNIST: 60,000 + 10,000 handwritten digits of 28x28, gray, in 10 classes.

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document
Recognition", Proceedings of the IEEE, 1998.
"""

from functools import partial
from typing import Any

import torch

from edkd.dataset._base import DataSet, register
from edkd.dataset._torchvision import Published, gray, load, read_mnist
from edkd.dataset.augment import CropFlip

DIGITS = tuple("0123456789")

MNIST = Published(
    "mnist",
    partial(read_mnist, "MNIST", DIGITS),
    mean=gray(0.1307),
    std=gray(0.3081),
    augmentation=CropFlip(flip=False),
)


@register(
    "mnist",
    family="cifar",
    image_shape=(3, 32, 32),
    num_classes=10,
)
def mnist(cfg: Any, device: torch.device) -> DataSet:
    """Padded to 3x32x32 for the networks of CIFAR; crops with padding 4, no flips.

    Mean and std are those of the training pixels before the padding, as in PyTorch's examples. A
    mirrored digit is not a digit.
    """
    return load(cfg, device, MNIST)
