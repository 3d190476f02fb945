"""STL-10: 5,000 + 8,000 photographs of 3x96x96 in 10 classes.

A. Coates, H. Lee, A. Y. Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature
Learning", AISTATS 2011.
"""

from pathlib import Path
from typing import Any

import torch

from edkd.dataset._base import DataSet, register
from edkd.dataset._torchvision import Parts, Published, load, read_labelled
from edkd.dataset.augment import CropFlip

CLASSES = (
    *("airplane", "bird", "car", "cat", "deer"),
    *("dog", "horse", "monkey", "ship", "truck"),
)


def read_stl10(root: Path) -> Parts:
    """The two parts that have labels."""
    import torchvision.datasets

    class Labelled(torchvision.datasets.STL10):
        """Without the check of the images that have no labels, 2.8 GB that need not be there."""

        train_list = [
            entry
            for entry in torchvision.datasets.STL10.train_list
            if not entry[0].startswith("unlabeled")
        ]

    return read_labelled(Labelled, CLASSES, root)


STL10 = Published(
    "stl10",
    read_stl10,
    mean=(0.4467, 0.4398, 0.4066),
    std=(0.2603, 0.2566, 0.2713),
    augmentation=CropFlip(padding=12),
)


@register(
    "stl10",
    family="tiny_imagenet",
    image_shape=(3, 96, 96),
    num_classes=10,
)
def stl10(cfg: Any, device: torch.device) -> DataSet:
    """Crops with padding 12, and flips; normalised by its own training pixels.

    The networks for Tiny-ImageNet suit 96x96: their last map has 12x12 or 13x13 positions, where
    the networks for ImageNet leave 3x3. The 100,000 images without labels are not used.
    """
    return load(cfg, device, STL10)
