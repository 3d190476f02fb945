"""Loaders of small images in folders, for `train_dml`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edkd.dataset.images import read_image
from edkd.dataset.listing import list_images
from edkd.dataset.readability import bad_image, refuse_unreadable
from edkd.errors import UserError

SIZE = 32
MEAN = 0.5
STD = 0.25


def prepare_dataloaders(
    data_dir: str | Path, batch_size: int = 32, augment: bool = False, num_workers: int = 4
) -> tuple[DataLoader, DataLoader, DataLoader | None]:
    """Loaders of `data_dir/{train,val,test}/<class>/*`, with images resized to 32x32.

    Args:
        data_dir: a folder.
        batch_size: of all loaders.
        augment: whether training images get random crops (padding 4), flips, rotations up to 15
            degrees and colours.
        num_workers: processes of each loader.

    Returns:
        Loaders for training, validation and test; None in place of the last without test/.

    Raises:
        UserError: train/ or val/ is absent or empty, or they have different classes.
    """
    root = Path(data_dir).expanduser()
    train = _image_folder(root, "train", augment)
    val = _image_folder(root, "val")
    test = _image_folder(root, "test") if (root / "test").is_dir() else None

    for part in (val, test):
        if part is not None and part.classes != train.classes:
            raise UserError(f"data_dir: {part.root} has other classes than {train.root}")

    return (
        DataLoader(train, batch_size, shuffle=True, num_workers=num_workers),
        DataLoader(val, batch_size, num_workers=num_workers),
        DataLoader(test, batch_size, num_workers=num_workers) if test else None,
    )


class FolderImages(Dataset):
    """The images of `<folder>/<class>/*`, with the attributes of torchvision's ImageFolder."""

    def __init__(self, folder: Path, transform: Callable[[Any], Tensor]) -> None:
        listing = list_images(folder)
        refuse_unreadable([path for path, _ in listing.samples])
        self.root = folder
        self.transform = transform
        self.classes = listing.classes
        self.samples = listing.samples
        self.targets = [target for _, target in listing.samples]

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
