"""Data sets and published teachers that can be downloaded: their servers, files and sums."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from edkd.archive import TORCH
from edkd.errors import UserError
from edkd.signals import hold


class Source(NamedTuple):
    """A file on a server: an archive or a single file.

    A check is "md5:<hex>", "sha256:<start of the hex>", TORCH, or "" where nothing is published.
    """

    url: str
    folder: str
    """Folder below the data root; an archive is unpacked there."""
    files: Mapping[str, str]
    """The check of each expected file below `folder`; the archive itself is not among them."""
    check: str
    """The check of the file that the server sends."""
    arrange: Callable[[Path], None] | None = None
    """Moves the files of an unpacked archive below a folder to where they are read. It does nothing
    where they are in place, and continues where it was interrupted."""


def _torchvision(dataset: str) -> Any:
    """The class of a data set. torchvision is slow to import; a signal must not interrupt that."""
    with hold():
        import torchvision.datasets

    return getattr(torchvision.datasets, dataset)


def _md5(sums: list[tuple[str, str]], folder: str) -> dict[str, str]:
    return {f"{folder}/{name}": f"md5:{md5}" for name, md5 in sums}


class Cifar(NamedTuple):
    """The files of CIFAR-10 or CIFAR-100 for Python: the md5 sum of each by its name."""

    folder: str
    """Below data/; that of the unpacked archive."""
    archive: str
    """Its file name on the server."""
    md5: str
    """Of the archive."""
    train: Mapping[str, str]
    test: Mapping[str, str]
    meta: Mapping[str, str]
    """The class names."""


CIFAR = {
    "cifar10": Cifar(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
    ),
    "cifar100": Cifar(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
    ),
}
"""The sums that torchvision has; reading these files does not need it."""


def _cifar(name: str) -> list[Source]:
    cifar = CIFAR[name]
    sums = {**cifar.train, **cifar.test, **cifar.meta}
    files = _md5(list(sums.items()), cifar.folder)
    url = f"https://www.cs.toronto.edu/~kriz/{cifar.archive}"
    return [Source(url, "data", files, f"md5:{cifar.md5}")]


MNIST_FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""The md5 sums of MNIST's unpacked files; torchvision has those of the packed ones."""

FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
"""The same for Fashion-MNIST, whose files have the same names."""


def _mnist(dataset: str, unpacked: Mapping[str, str]) -> list[Source]:
    mnist = _torchvision(dataset)
    folder = f"data/{dataset}/raw"
    sources = []
    for name, md5 in mnist.resources:
        file = name.removesuffix(".gz")
        files = {file: f"md5:{unpacked[file]}"}
        sources.append(Source(f"{mnist.mirrors[0]}{name}", folder, files, f"md5:{md5}"))
    return sources


def _svhn() -> list[Source]:
    """The standard training and test parts, without the 531,131 extra images."""
    parts = _torchvision("SVHN").split_list
    sources = []
    for part in ("train", "test"):
        url, name, md5 = parts[part]
        check = f"md5:{md5}"
        sources.append(Source(url, "data/svhn", {name: check}, check))
    return sources


def _stl10() -> list[Source]:
    """One archive; its 100,000 images without labels may be deleted."""
    stl10 = _torchvision("STL10")
    labelled = [(name, md5) for name, md5 in stl10.train_list if not name.startswith("unlabeled")]
    files = _md5([*labelled, *stl10.test_list], stl10.base_folder)
    return [Source(stl10.url, "data", files, f"md5:{stl10.tgz_md5}")]


TINY_IMAGENET = "tiny-imagenet-200"
_ANNOTATIONS = "val_annotations.txt"


def sort_tiny_imagenet(folder: Path) -> None:
    """Move `val/images/<file>` of an unpacked Tiny-ImageNet to `val/<class>/<file>`.

    At the end, the annotations move out of val/. As long as they are there, files may be unsorted.

    Raises:
        UserError: the annotations have another form.
    """
    root = folder / TINY_IMAGENET
    annotations = root / "val" / _ANNOTATIONS
    if not annotations.is_file():
        return

    unsorted = root / "val" / "images"
    for line in annotations.read_text(encoding="utf-8").splitlines():
        name, class_name, *_ = [*line.split("\t"), ""]
        if not _is_plain(name) or not _is_plain(class_name):
            raise UserError(f"{annotations} is damaged (line {line!r}); unpack the archive again")
        if (unsorted / name).is_file():
            (root / "val" / class_name).mkdir(exist_ok=True)
            os.replace(unsorted / name, root / "val" / class_name / name)

    if unsorted.is_dir() and not any(unsorted.iterdir()):
        unsorted.rmdir()
    os.replace(annotations, root / _ANNOTATIONS)


def _is_plain(name: str) -> bool:
    """Whether a word is the name of a file or folder, and no path."""
    return name not in ("", ".", "..") and name == os.path.basename(name)


def _tiny_imagenet() -> list[Source]:
    # Stanford publishes no sum; others have used this one for years, as the library Avalanche. The
    # files here are the last ones that are moved into place.
    names = (_ANNOTATIONS, "wnids.txt", "words.txt")
    files = {f"{TINY_IMAGENET}/{name}": "" for name in names}
    url = f"http://cs231n.stanford.edu/{TINY_IMAGENET}.zip"
    check = "md5:90528d7ca1a48142e341f4ef8d21d0de"
    return [Source(url, "data", files, check, sort_tiny_imagenet)]


def _teachers() -> list[Source]:
    releases = "https://github.com/megvii-research/mdistiller/releases/download"
    names = ("resnet56", "resnet110", "resnet32x4", "ResNet50", "wrn_40_2", "vgg13")
    files = {f"cifar_teachers/{name}_vanilla/ckpt_epoch_240.pth": TORCH for name in names}

    # No sum of the archive is published.
    return [Source(f"{releases}/checkpoints/cifar_teachers.tar", "download_ckpts", files, "")]


def _imagenet_teachers() -> list[Source]:
    folder = "download_ckpts/imagenet_teachers"
    names = (
        "resnet18-5c106cde",
        "resnet34-333f7ec4",
        "resnet50-19c8e357",
        "resnet101-5d3b4d8f",
    )
    sources = []
    for name in names:
        file = f"{name}.pth"
        check = f"sha256:{name.split('-')[1]}"
        url = f"https://download.pytorch.org/models/{file}"
        sources.append(Source(url, folder, {file: check}, check))
    return sources


CATALOGUE: dict[str, Callable[[], list[Source]]] = {
    "cifar100": partial(_cifar, "cifar100"),
    "cifar10": partial(_cifar, "cifar10"),
    "mnist": partial(_mnist, "MNIST", MNIST_FILES),
    "fashion_mnist": partial(_mnist, "FashionMNIST", FASHION_MNIST_FILES),
    "svhn": _svhn,
    "stl10": _stl10,
    "tiny_imagenet": _tiny_imagenet,
    "teachers": _teachers,
    "imagenet_teachers": _imagenet_teachers,
}
"""Sources by name, for `edkd.download.fetch`. A data set has the name of its DATASET.TYPE."""
