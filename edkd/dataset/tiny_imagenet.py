"""Tiny-ImageNet: 200 classes of ImageNet at 64x64, or any image folder.

Y. Le, X. Yang, "Tiny ImageNet Visual Recognition Challenge", Stanford CS 231N, 2015.
"""

from pathlib import Path
from typing import Any

import torch

from edkd.dataset._base import DataSet, register
from edkd.dataset.folder import Preprocessing, folder_dataset
from edkd.dataset.host_augment import with_randaugment
from edkd.errors import UserError
from edkd.invocation import command
from edkd.paths import DATA_ROOT

SIZE = 64
FOLDER = "tiny-imagenet-200"


@register(
    "tiny_imagenet",
    family="tiny_imagenet",
    has_published_weights=True,
    image_shape=(3, SIZE, SIZE),
    num_classes=200,
)
def tiny_imagenet(cfg: Any, device: torch.device) -> DataSet:
    """Rotations up to 20 degrees and flips for training, as published.

    Images of another size are resized and cropped to 64x64 first.
    """
    from torchvision.transforms import v2

    _check_folder(Path(cfg.DATASET.ROOT or DATA_ROOT / "data" / FOLDER).expanduser())
    resize = [v2.Resize(SIZE), v2.CenterCrop(SIZE)]  # no change to an image of 64x64
    augment = [v2.RandomRotation(20), v2.RandomHorizontalFlip()]
    preprocessing = Preprocessing(
        train=v2.Compose(with_randaugment([*resize, *augment, v2.PILToTensor()], cfg)),
        test=v2.Compose([*resize, v2.PILToTensor()]),
        size=SIZE,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2302, 0.2265, 0.2262),
        resize=SIZE,
    )
    return folder_dataset(cfg, device, FOLDER, preprocessing)


def _check_folder(root: Path) -> None:
    """Raise UserError where there is no folder, or val/ is as the archive has it."""
    download = f"'{command('download')} tiny_imagenet'"
    if not root.exists():
        raise UserError(
            f"no data set at {root}; download it with {download}, or set DATASET.ROOT to a folder "
            "with {train,val}/<class>/*"
        )
    if (root / "val" / "val_annotations.txt").is_file() and (root / "val" / "images").is_dir():
        raise UserError(
            f"{root / 'val'} has all images in one folder; {download} moves those of the data "
            "folder to val/<class>/, or move them as val_annotations.txt says"
        )
