"""The reader of the CIFAR data sets."""

from pathlib import Path
from typing import Any

import torch

from edkd.dataset._base import DataSet
from edkd.dataset.augment import CropFlip
from edkd.dataset.resident import Images, resident_dataset
from edkd.errors import UserError
from edkd.invocation import command
from edkd.paths import DATA_ROOT


def load_cifar(
    cfg: Any,
    device: torch.device,
    name: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> DataSet:
    """Read an official CIFAR archive after a check of its md5 sums.

    Args:
        name: "CIFAR10" or "CIFAR100", the class of torchvision.datasets that reads it.

    Raises:
        UserError: the folder is missing or damaged.
    """
    import torchvision  # takes seconds to import

    reader = getattr(torchvision.datasets, name)
    root = Path(cfg.DATASET.ROOT or DATA_ROOT / "data").expanduser()
    folder = root / reader.base_folder
    download = f"download it with '{command('download')} {cfg.DATASET.TYPE}'"

    if not folder.is_dir():
        raise UserError(
            f"no data set at {folder}; {download}, or set DATASET.ROOT to its parent folder"
        )
    try:
        train = reader(root, train=True)
        test = reader(root, train=False)
    except RuntimeError:
        raise UserError(
            f"{folder} is damaged (its md5 sums are not the published ones); remove it and "
            f"{download}"
        ) from None

    return resident_dataset(
        cfg, device, _images(train), _images(test), CropFlip(), mean, std, train.classes
    )


def _images(part: Any) -> Images:
    image = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return Images(image, torch.tensor(part.targets))
