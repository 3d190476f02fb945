"""Tiny-ImageNet: 200 classes of ImageNet at 64x64, or any image folder.

Y. Le, X. Yang, "Tiny ImageNet Visual Recognition Challenge", Stanford CS 231N, 2015.
"""

from typing import Any

import torch

from edkd.dataset._base import DataSet, register
from edkd.dataset.folder import Preprocessing, folder_dataset

SIZE = 64


@register("tiny_imagenet", family="tiny_imagenet", has_published_weights=True)
def tiny_imagenet(cfg: Any, device: torch.device) -> DataSet:
    """Rotations up to 20 degrees and flips for training, as published.

    Images of another size are resized and cropped to 64x64 first.
    """
    from torchvision.transforms import v2

    resize = [v2.Resize(SIZE), v2.CenterCrop(SIZE)]  # no change to an image of 64x64
    augment = [v2.RandomRotation(20), v2.RandomHorizontalFlip()]
    preprocessing = Preprocessing(
        train=v2.Compose([*resize, *augment, v2.PILToTensor()]),
        test=v2.Compose([*resize, v2.PILToTensor()]),
        size=SIZE,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2302, 0.2265, 0.2262),
        resize=SIZE,
    )
    return folder_dataset(cfg, device, "tiny-imagenet-200", preprocessing)
