"""A plugin for tests: 8 images of 3x32x32 in ten classes.

DATASET.TYPE few            with small networks under the names of known ones
DATASET.TYPE few_cifar      with the networks for CIFAR
"""

import torch

from edkd.dataset.augment import CropFlip
from edkd.dataset.resident import Images, resident_dataset
from edkd.registry import DATASETS, MODELS
from tests.small import TinyNet

MEAN = (0.5,) * 3
STD = (0.25,) * 3

CHANNELS = {"ResNet18": 12, "resnet32x4": 12, "resnet8x4": 6, "resnet20": 8, "resnet8": 4}


def load(cfg, device):
    """8 images to train on, and the same to test on."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
    images = Images(image, torch.arange(8) + 2)
    return resident_dataset(cfg, device, images, images, CropFlip(), MEAN, STD)


def network(channels):
    """The constructor of a small network."""
    return lambda num_classes: TinyNet(channels, num_classes)


DATASETS.register("few", family="few")(load)
DATASETS.register("few_cifar", family="cifar")(load)
for name, number in CHANNELS.items():
    MODELS.add(name, network(number), family="few")
