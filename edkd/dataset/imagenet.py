"""ImageNet (ILSVRC 2012), or any folder of its shape, at 224x224.

O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015.
"""

from typing import Any

import torch

from edkd.dataset._base import DataSet, register
from edkd.dataset._folder import folder_dataset


@register("imagenet", family="imagenet", has_published_weights=True)
def imagenet(cfg: Any, device: torch.device) -> DataSet:
    """Random resized crops and flips to train; resized to 256 and cropped in the centre to evaluate."""
    from torchvision.transforms import v2

    train = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    test = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
    return folder_dataset(cfg, device, "imagenet", (train, test), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
