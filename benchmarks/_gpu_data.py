"""Random images in the shapes of CIFAR; also a plugin, for commands that run in other processes.

The brightness of an image shows its class, so that networks can learn it.
"""

import functools
from typing import Any

import torch

from edkd.dataset import DataSet
from edkd.dataset.augment import CropFlip
from edkd.dataset.resident import Images, resident_dataset
from edkd.registry import DATASETS

SIZES = {
    "random_few": (40, 20, 10),
    "random_some": (520, 256, 10),
    "random_cifar100": (50_000, 10_000, 100),
}
"""Images for training and testing, and classes, by the name of the data set."""

MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)


def random_images(number: int, num_classes: int, seed: int) -> Images:
    """Images (number,3,32,32) of noise, brighter by the number of the class."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(number) % num_classes
    image = torch.randint(0, 156, (number, 3, 32, 32), dtype=torch.uint8, generator=generator)
    brightness = (target * (100 / num_classes)).to(torch.uint8)
    return Images(image + brightness[:, None, None, None], target)


def load(name: str, cfg: Any, device: torch.device) -> DataSet:
    """A data set of SIZES."""
    train, test, num_classes = SIZES[name]
    parts = (random_images(train, num_classes, 0), random_images(test, num_classes, 1))
    names = [str(number) for number in range(num_classes)]
    return resident_dataset(cfg, device, *parts, CropFlip(), MEAN, STD, names)


def register() -> None:
    """Register the data sets."""
    for name, (_, _, num_classes) in SIZES.items():
        DATASETS.add(
            name,
            LOADERS[name],
            family="cifar",
            image_shape=(3, 32, 32),
            num_classes=num_classes,
        )


LOADERS = {name: functools.partial(load, name) for name in SIZES}
register()
