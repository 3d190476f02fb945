"""The reader that the CIFAR sets share."""

from pathlib import Path
from typing import Any

import torch

from edkd.dataset._base import DataSet
from edkd.dataset._resident import Images, resident_dataset
from edkd.dataset.augment import CropFlip
from edkd.errors import UserError
from edkd.paths import DATA_ROOT


def load_cifar(cfg: Any, device: torch.device, name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> DataSet:
    """Read an official CIFAR archive, whose md5 sums are checked before it is believed.

    Args:
        name: "CIFAR10" or "CIFAR100", the class of torchvision.datasets that reads it.

    Raises:
        UserError: the folder is absent or damaged.
    """
    import torchvision  # here, as it takes seconds

    reader = getattr(torchvision.datasets, name)
    root = Path(cfg.DATASET.ROOT or DATA_ROOT / "data").expanduser()
    folder = root / reader.base_folder
    fetch = (
        f"fetch it with 'python tools/download.py {cfg.DATASET.TYPE}', or set DATASET.ROOT to the folder that holds it"
    )
    if not folder.is_dir():
        raise UserError(f"no data set at {folder}; {fetch}")
    try:
        train, test = (_read(reader(root, train=part)) for part in (True, False))
    except RuntimeError:
        raise UserError(
            f"{folder} is damaged (its md5 sums are not the published ones); remove it and {fetch}"
        ) from None
    return resident_dataset(cfg, device, train, test, len(set(test.target.tolist())), CropFlip(), mean, std)


def _read(part: Any) -> Images:
    image = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return Images(image, torch.tensor(part.targets))
