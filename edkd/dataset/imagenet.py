"""ImageNet (ILSVRC 2012), or any image folder, at 224x224.

O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015.
"""

from typing import Any

import torch

from edkd.dataset._base import DataSet, register
from edkd.dataset.folder import Preprocessing, folder_dataset
from edkd.dataset.host_augment import with_randaugment

SIZE = 224


@register(
    "imagenet",
    family="imagenet",
    has_published_weights=True,
    image_shape=(3, SIZE, SIZE),
    num_classes=1000,
)
def imagenet(cfg: Any, device: torch.device) -> DataSet:
    """Random resized crops and flips for training; resize to 256 and centre crop for evaluation."""
    from torchvision.transforms import v2

    augment = [v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    preprocessing = Preprocessing(
        train=v2.Compose(with_randaugment(augment, cfg)),
        test=v2.Compose([v2.Resize(256), v2.CenterCrop(SIZE), v2.PILToTensor()]),
        size=SIZE,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        resize=256,
    )
    return folder_dataset(cfg, device, "imagenet", preprocessing)
