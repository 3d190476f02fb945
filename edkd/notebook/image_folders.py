"""Loaders of small images in folders, for `train_dml`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from edkd.dataset.images import read_image
from edkd.dataset.inspection import dataset_classes, dataset_targets
from edkd.dataset.listing import list_images
from edkd.dataset.readability import bad_image, refuse_unreadable
from edkd.dataset.sampling import stratified_split
from edkd.errors import UserError, warn

SIZE = 32
MEAN = 0.5
STD = 0.25

HELD_OUT = 0.15
"""Share of the images for validation, and for test, where there are no folders for them."""

VALIDATION = ("val", "valid", "validation")
"""Names of the folder for validation."""


def prepare_dataloaders(
    data_dir: str | Path, batch_size: int = 32, augment: bool = False, num_workers: int = 4
) -> tuple[DataLoader, DataLoader, DataLoader | None]:
    """Loaders of an image folder, with images resized to 32x32.

    The layout is `data_dir/{train,val,test}/<class>/*`. Without a validation folder, 15 % of the
    training images of each class are held out. From `data_dir/<class>/*`, 70 % of each class are
    for training, 15 % for validation and 15 % for test. The splits are always the same.

    Args:
        data_dir: a folder.
        batch_size: of all loaders.
        augment: whether training images get random crops (padding 4), flips, rotations up to 15
            degrees and colours.
        num_workers: processes of each loader.

    Returns:
        Loaders for training, validation and test; None in place of the last where there is train/
        but no test/.

    Raises:
        UserError: there are no images, too few to split them, or other classes in another part.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"data_dir: no folder {root}; correct the path")
    train, val, test = _parts(root, augment) if _is_split(root) else _split(root, augment)

    return (
        DataLoader(train, batch_size, shuffle=True, num_workers=num_workers),
        DataLoader(val, batch_size, num_workers=num_workers),
        DataLoader(test, batch_size, num_workers=num_workers) if test else None,
    )


class FolderImages(Dataset):
    """The images of `<folder>/<class>/*`, with the attributes of torchvision's ImageFolder."""

    def __init__(self, folder: Path, transform: Callable[[Any], Tensor]) -> None:
        listing = list_images(folder)
        refuse_unreadable(listing.paths)
        self.root = folder
        self.transform = transform
        self.classes = listing.classes
        self.samples = listing.samples
        self.targets = listing.targets

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, target = self.samples[index]
        try:
            image = read_image(path)
        except Exception as error:  # PIL raises almost any exception for damaged files
            raise UserError(
                f"data_dir: cannot read the image {bad_image(path, error)}; repair or remove it"
            ) from None
        return self.transform(image), target


def _image_folder(root: Path, part: str, augment: bool = False) -> FolderImages:
    from torchvision import transforms

    steps: list[Any] = [transforms.Resize((SIZE, SIZE))]
    if augment:
        steps += [
            transforms.RandomCrop(SIZE, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(15),
            transforms.ColorJitter(0.2, 0.2, 0.2),
        ]
    steps += [transforms.ToTensor(), transforms.Normalize(3 * (MEAN,), 3 * (STD,))]

    folder = root / part
    if not folder.is_dir():
        raise UserError(f"data_dir: no images in {folder}; the layout is {part}/<class>/*")
    return FolderImages(folder, transforms.Compose(steps))


def _is_split(root: Path) -> bool:
    """Whether there are folders for training, validation or test, which have class folders.

    A folder of one of these names that has only images is a class.
    """
    parts = [root / name for name in ("train", *VALIDATION, "test")]
    folders = [part for part in parts if part.is_dir()]
    entries = [entry for folder in folders for entry in folder.iterdir()]
    return any(entry.is_dir() and not entry.name.startswith(".") for entry in entries)


def _parts(root: Path, augment: bool) -> tuple[Any, Any, Any]:
    """Data sets for training, validation and test from their folders; None without test/."""
    train = _image_folder(root, "train", augment)
    test = _image_folder(root, "test") if (root / "test").is_dir() else None
    val = None
    for name in VALIDATION:
        if val is None and (root / name).is_dir():
            val = _image_folder(root, name)

    for part in (val, test):
        if part is not None and part.classes != train.classes:
            raise UserError(f"data_dir: {part.root} has other classes than {train.root}")
    if val is not None:
        return train, val, test

    warn(f"data_dir: no {root / 'val'}; {HELD_OUT:.0%} of the images of train/ take its place")
    rest, held_out = _held_out(train, HELD_OUT)
    plain = _image_folder(root, "train")
    return Subset(train, rest), Subset(plain, held_out), test


def _split(root: Path, augment: bool) -> tuple[Any, Any, Any]:
    """The same from class folders alone."""
    train = _image_folder(root, "", augment)
    plain = _image_folder(root, "")

    rest, for_test = _held_out(train, HELD_OUT)
    among_rest, for_val = _held_out(Subset(train, rest), HELD_OUT / (1 - HELD_OUT))
    for_train = [rest[number] for number in among_rest]
    for_val = [rest[number] for number in for_val]
    return Subset(train, for_train), Subset(plain, for_val), Subset(plain, for_test)


def _held_out(images: Any, share: float) -> tuple[list[int], list[int]]:
    """Numbers of the images that stay, and of a share of each class that is held out."""
    targets = dataset_targets(images)
    assert targets is not None
    rest, held_out = stratified_split(targets, share)
    counts = torch.bincount(targets[held_out], minlength=int(targets.max()) + 1)
    if not counts.all():
        few = int(counts.argmin())
        total = int((targets == few).sum())
        raise UserError(
            f"data_dir: the class {dataset_classes(images)[few]!r} has {total} images for training "
            "and validation, too few to hold some out; add images, or store them as "
            "{train,val,test}/<class>/*"
        )
    return rest.tolist(), held_out.tolist()
