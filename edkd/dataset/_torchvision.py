"""Small published data sets: files checked, read (most by torchvision), held on the device."""

import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch

from edkd.archive import is_whole
from edkd.catalogue import CATALOGUE, CIFAR
from edkd.dataset._base import DataSet
from edkd.dataset.augment import CropFlip
from edkd.dataset.resident import Images, resident_dataset
from edkd.errors import UserError
from edkd.invocation import command
from edkd.paths import DATA_ROOT


class Parts(NamedTuple):
    """What a reader returns."""

    train: Images
    test: Images
    class_names: Sequence[str]


class Published(NamedTuple):
    """A data set of `edkd.catalogue`."""

    name: str
    """Key of the catalogue."""
    read: Callable[[Path], Parts]
    """Reads the files below DATASET.ROOT, whose md5 sums are right."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    augmentation: CropFlip


def load(cfg: Any, device: torch.device, published: Published) -> DataSet:
    """Read a published data set after a check of its md5 sums.

    Raises:
        UserError: files are missing or damaged.
    """
    root = Path(cfg.DATASET.ROOT or DATA_ROOT / "data").expanduser()
    _check_files(published.name, root)
    train, test, names = published.read(root)

    mean = published.mean
    std = published.std
    return resident_dataset(cfg, device, train, test, published.augmentation, mean, std, names)


def gray(value: float) -> tuple[float, float, float]:
    """The mean or std of a gray image that was repeated to three channels."""
    return value, value, value


# Readers.


def read_cifar(name: str, root: Path) -> Parts:
    """CIFAR-10 or CIFAR-100, in the form for Python: pickled pixels and labels.

    Args:
        name: key of `edkd.catalogue.CIFAR`.
        root: the folder that holds cifar-*/.
    """
    cifar = CIFAR[name]
    folder = root / cifar.folder

    def images(files: Iterable[str]) -> Images:
        batches = [_unpickled(folder / file) for file in files]
        pixels = np.concatenate([batch["data"] for batch in batches])
        labels = [label for batch in batches for label in _labels(batch)]
        return Images(torch.from_numpy(pixels).view(-1, 3, 32, 32), torch.tensor(labels))

    (meta,) = cifar.meta
    facts = _unpickled(folder / meta)
    names = facts.get("fine_label_names") or facts["label_names"]
    return Parts(images(cifar.train), images(cifar.test), names)


def _unpickled(path: Path) -> dict[str, Any]:
    """The content of a file of CIFAR, whose md5 sum is right."""
    with open(path, "rb") as file:
        return pickle.load(file, encoding="latin1")


def _labels(batch: dict[str, Any]) -> list[int]:
    """The class numbers: of the fine classes in CIFAR-100."""
    return batch["fine_labels"] if "fine_labels" in batch else batch["labels"]


def read_mnist(reader: str, class_names: Sequence[str], root: Path) -> Parts:
    """MNIST or Fashion-MNIST: 28x28 gray pixels, padded to 32x32 and repeated to three channels.

    Args:
        reader: the class of torchvision.datasets, whose name the folder has.
        class_names: by class number.
        root: the folder that holds MNIST/ or FashionMNIST/.
    """
    from torchvision.datasets import mnist

    # The class would prefer files in processed/ of its earlier versions, which have no sum.
    folder = root / reader / "raw"

    def images(part: str) -> Images:
        image = mnist.read_image_file(str(folder / f"{part}-images-idx3-ubyte"))
        target = mnist.read_label_file(str(folder / f"{part}-labels-idx1-ubyte"))
        return Images.from_gray(image, target, size=32)

    return Parts(images("train"), images("t10k"), class_names)


def read_labelled(reader: Any, class_names: Sequence[str], root: Path) -> Parts:
    """SVHN or STL-10: (N,3,H,W) in `data`, class numbers in `labels`.

    Args:
        reader: a class of torchvision.datasets.
        class_names: by class number.
        root: as that class takes it.
    """

    def images(part: Any) -> Images:
        image = torch.from_numpy(part.data).contiguous()
        return Images(image, torch.from_numpy(part.labels).long())

    train = reader(root, split="train")
    test = reader(root, split="test")
    return Parts(images(train), images(test), class_names)


# Files.


def _check_files(name: str, root: Path) -> None:
    """Raise UserError where a file is missing or damaged."""
    for source in CATALOGUE[name]():
        below = PurePosixPath(source.folder).relative_to("data")
        for file, check in source.files.items():
            _check_file(name, root, below / file, check)


def _check_file(name: str, root: Path, file: PurePosixPath, check: str) -> None:
    """The same for one file, given by its path below the root."""
    path = root / file
    folder = path.parent
    download = f"download it with '{command('download')} {name}'"

    if root.is_file():
        raise UserError(
            f"DATASET.ROOT {root} is a file; set it to the folder that holds {file.parts[0]}/"
        )
    if not folder.is_dir():
        raise UserError(f"no data set at {folder}; {download}, or set {_other_root(root, file)}")

    if not path.is_file():
        packed = path.with_name(f"{path.name}.gz")
        unpack = f"unpack {packed.name} there, or " if packed.is_file() else ""
        raise UserError(f"{folder} is damaged: {path.name} is missing; {unpack}{download}")

    if not is_whole(path, check):
        raise UserError(
            f"{folder} is damaged: the md5 sum of {path.name} is not the published one; remove "
            f"that file and {download}"
        )


def _other_root(root: Path, file: PurePosixPath) -> str:
    """The folder that a user may have meant, one below or up to two above."""
    for other in [root / "data", *list(root.absolute().parents)[:2]]:
        if (other / file).is_file():
            return f"DATASET.ROOT to {other}"
    return f"DATASET.ROOT to the folder that holds {file.parts[0]}/"
