"""Tiny-ImageNet: 200 classes of ImageNet at 64x64, or any folder of its shape.

Y. Le, X. Yang, "Tiny ImageNet Visual Recognition Challenge", Stanford CS 231N, 2015.
"""

from typing import Any

import torch

from edkd.dataset._base import DataSet, register
from edkd.dataset._folder import folder_dataset


@register("tiny_imagenet", family="tiny_imagenet", has_published_weights=True)
def tiny_imagenet(cfg: Any, device: torch.device) -> DataSet:
    """Rotations up to 20 degrees and flips to train, as published; other sizes are brought to 64x64 first."""
    from torchvision.transforms import v2

    size = [v2.Resize(64), v2.CenterCrop(64)]  # leave an image of 64x64 as it is
    train = v2.Compose([*size, v2.RandomRotation(20), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    test = v2.Compose([*size, v2.PILToTensor()])
    return folder_dataset(
        cfg, device, "tiny-imagenet-200", (train, test), mean=(0.4802, 0.4481, 0.3975), std=(0.2302, 0.2265, 0.2262)
    )
