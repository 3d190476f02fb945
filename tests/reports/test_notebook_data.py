"""`prepare_dataloaders` and the layouts of image folders that other systems document."""

import pytest
import torch

from edkd.errors import UserError
from edkd.notebook import prepare_dataloaders


@pytest.fixture
def classes(tmp_path):
    """Class folders without train/, val/ and test/: 20 images of a, 40 of b, each of its grey."""
    return make(tmp_path / "data", {"a": 20, "b": 40})


def make(root, counts):
    from PIL import Image

    for number, (name, count) in enumerate(counts.items()):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i, 100 * number, 0)).save(folder / f"{i:02}.png")
    return root


def paths(loader):
    dataset = loader.dataset
    return [dataset.dataset.samples[number][0] for number in dataset.indices]


def test_class_folders_alone_are_split(classes):
    """A documented example of mutual learning: prepare_dataloaders("data", ...) on an ImageFolder.

    Right: 70 % of each class for training, 15 % for validation, 15 % for test; each image in one
    part; the same parts at each call, with and without augmentation.
    """
    loaders = prepare_dataloaders(str(classes), batch_size=32, augment=True, num_workers=0)
    parts = [paths(loader) for loader in loaders]
    assert [len(part) for part in parts] == [42, 9, 9]
    assert len({path for part in parts for path in part}) == 60
    for part, of_a in zip(parts, (14, 3, 3), strict=True):
        assert sum("/a/" in path for path in part) == of_a

    again = prepare_dataloaders(str(classes), batch_size=8, num_workers=0)
    assert [paths(loader) for loader in again] == parts
    image, target = next(iter(loaders[0]))
    assert image.shape == (32, 3, 32, 32)
    assert set(target.tolist()) == {0, 1}
    assert loaders[0].dataset.dataset.classes == ["a", "b"]

    # Only the images for training are augmented.
    for loader, is_same in zip(loaders, (False, True, True), strict=True):
        first, second = (torch.stack([image for image, _ in loader.dataset]) for _ in range(2))
        assert torch.equal(first, second) == is_same


def test_a_class_may_be_called_train(tmp_path):
    """For example in a data set of vehicles."""
    root = make(tmp_path / "vehicles", {"bus": 8, "train": 8})
    train, val, test = prepare_dataloaders(root, num_workers=0)
    assert train.dataset.dataset.classes == ["bus", "train"]
    assert [len(loader.dataset) for loader in (train, val, test)] == [12, 2, 2]


def test_a_training_folder_without_one_for_validation(tmp_path, capsys):
    """Right: a part of the training images takes its place, and a line says so."""
    make(tmp_path / "train", {"a": 20, "b": 20})
    make(tmp_path / "test", {"a": 4, "b": 4})
    train, val, test = prepare_dataloaders(tmp_path, num_workers=0)
    assert [len(loader.dataset) for loader in (train, val, test)] == [34, 6, 8]
    assert not set(paths(train)) & set(paths(val))
    assert "15% of the images of train/ take its place" in capsys.readouterr().err


def test_too_few_images_to_split_them(tmp_path):
    make(tmp_path, {"a": 20, "b": 3})
    with pytest.raises(UserError, match="the class 'b' has 3 images .*, too few to hold some out"):
        prepare_dataloaders(tmp_path, num_workers=0)
