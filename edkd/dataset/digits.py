"""Handwritten digits: the 1797 images of 8x8 in scikit-learn, enlarged to 3x32x32; no download.

E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998.
"""

from typing import Any

import torch
import torch.nn.functional as F

from edkd.dataset._base import DataSet, register
from edkd.dataset.augment import CropFlip
from edkd.dataset.resident import Images, resident_dataset
from edkd.dataset.sampling import stratified_split
from edkd.errors import UserError

TEST_FRACTION = 0.5

MEAN = (0.306,) * 3
STD = (0.324,) * 3


@register(
    "digits",
    family="cifar",
    image_shape=(3, 32, 32),
    num_classes=10,
)
def digits(cfg: Any, device: torch.device) -> DataSet:
    """A fixed stratified split into halves; crops with padding 4, no flips.

    A mirrored digit is not a digit.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "DATASET.TYPE digits needs scikit-learn: pip install scikit-learn"
        ) from None

    pixels, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(pixels).view(-1, 1, 8, 8).float() * (255 / 16)
    large = F.interpolate(small, size=32, mode="bilinear")
    image = large.round().byte().repeat(1, 3, 1, 1)
    target = torch.from_numpy(labels).long()

    train_index, test_index = stratified_split(target, TEST_FRACTION)
    train = Images(image[train_index], target[train_index])
    test = Images(image[test_index], target[test_index])
    names = [str(digit) for digit in range(10)]
    return resident_dataset(cfg, device, train, test, CropFlip(flip=False), MEAN, STD, names)
