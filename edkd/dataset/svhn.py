"""SVHN: 73,257 + 26,032 digits of house numbers, 3x32x32, in 10 classes.

Y. Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", NIPS
Workshop on Deep Learning and Unsupervised Feature Learning, 2011.
"""

from pathlib import Path
from typing import Any

import torch

from edkd.dataset._base import DataSet, register
from edkd.dataset._torchvision import Parts, Published, load, read_labelled
from edkd.dataset.augment import CropFlip
from edkd.errors import UserError

DIGITS = tuple("0123456789")


def read_svhn(root: Path) -> Parts:
    """The two parts; class 0 is the digit 0, which has the label 10 in the files.

    Raises:
        UserError: scipy is not installed.
    """
    import torchvision.datasets

    try:
        return read_labelled(torchvision.datasets.SVHN, DIGITS, root / "svhn")
    except ImportError:
        raise UserError("DATASET.TYPE svhn needs the package scipy: pip install scipy") from None


SVHN = Published(
    "svhn",
    read_svhn,
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.1980, 0.2010, 0.1970),
    augmentation=CropFlip(flip=False),
)


@register(
    "svhn",
    family="cifar",
    image_shape=(3, 32, 32),
    num_classes=10,
)
def svhn(cfg: Any, device: torch.device) -> DataSet:
    """Crops with padding 4, no flips; normalised by its own training pixels.

    The 531,131 further images of the set are not used. A mirrored digit is not a digit.
    """
    return load(cfg, device, SVHN)
