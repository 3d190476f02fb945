"""Image folders, streamed: the published transforms, whatever the number of workers."""

import os
import time

import pytest
import torch
from PIL import Image
from torchvision import transforms

from edkd.dataset import get_dataset
from edkd.dataset.sampling import seed_for
from edkd.engine.load_cfg import load_cfg
from edkd.errors import UserError, WorkerError

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    """Two classes, 6 + 2 images of 64x64 each, one of them grayscale."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 6), ("val", 2)):
        for name in ("n01", "n02"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(256, (64, 64, 3), generator=generator, dtype=torch.uint8).numpy()
                image = Image.fromarray(pixels).convert("L" if i == 0 else "RGB")
                image.save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def load(folder, *opts, kind="tiny_imagenet"):
    opts = ["DATASET.TYPE", kind, "DATASET.ROOT", str(folder), "SOLVER.BATCH_SIZE", "5", *opts]
    return get_dataset(load_cfg(opts=[*opts, "DISTILLER.STUDENT", "ResNet18"]), CPU)


@pytest.mark.parametrize("kind", ["tiny_imagenet", "imagenet"])
def test_the_number_of_workers_changes_nothing(folder, kind):
    streams = []
    for workers in ("0", "2"):
        torch.manual_seed(int(workers))
        data = load(folder, "DATASET.NUM_WORKERS", workers, kind=kind)
        streams.append([batch for epoch in (1, 2) for batch in data.train.epoch(epoch)])
    for a, b in zip(*streams, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.target, b.target)
        assert torch.equal(a.index, b.index)
    first, second = streams[0][:3], streams[0][3:]
    order = [torch.cat([batch.index for batch in epoch]) for epoch in (first, second)]
    assert sorted(order[0].tolist()) == sorted(order[1].tolist()) == list(range(12))
    assert not torch.equal(*order)


def test_reading_leaves_the_generator_alone(folder):
    data = load(folder, "DATASET.NUM_WORKERS", "0")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    list(data.train.epoch(1))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("kind", "mean", "std", "published"),
    [
        ("tiny_imagenet", (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262), []),
        (
            "imagenet",
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
            [transforms.Resize(256), transforms.CenterCrop(224)],
        ),
    ],
)
def test_evaluation_equals_the_published_transforms(folder, kind, mean, std, published):
    chain = transforms.Compose([*published, transforms.ToTensor(), transforms.Normalize(mean, std)])
    data = load(folder, "DATASET.NUM_WORKERS", "0", kind=kind)
    image = torch.cat([batch.image for batch in data.test.epoch()])
    paths = sorted((folder / "val").rglob("*.png"))
    expected = torch.stack([chain(Image.open(path).convert("RGB")) for path in paths])
    assert torch.equal(image, expected)


@pytest.mark.parametrize(
    ("kind", "published"),
    [
        ("tiny_imagenet", [transforms.RandomRotation(20), transforms.RandomHorizontalFlip()]),
        ("imagenet", [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]),
    ],
)
def test_training_equals_the_published_transforms(folder, kind, published):
    """For the same state of the generator, which image, seed and epoch decide."""
    data = load(folder, "DATASET.NUM_WORKERS", "0", kind=kind)
    paths = sorted((folder / "train").rglob("*.png"))
    for batch in data.train.epoch(2):
        for image, index in zip(batch.image, batch.index.tolist(), strict=True):
            torch.manual_seed(seed_for(1, 2, index))
            chain = transforms.Compose([*published, transforms.PILToTensor()])
            expected = data.train.normalize(chain(Image.open(paths[index]).convert("RGB"))[None])
            assert torch.equal(image, expected[0])


def test_val_split_is_evaluated_without_augmentation(folder):
    data = load(folder, "DATASET.VAL_SPLIT", "0.3", "DATASET.NUM_WORKERS", "0")
    assert (data.train.num_images, data.val.num_images, data.test.num_images) == (8, 4, 4)
    first, again = ([batch.image for batch in data.val.epoch(epoch)] for epoch in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("damage", ["truncated", "text"])
def test_a_bad_image_is_named(folder, damage, workers):
    bad = folder / "train" / "n02" / "3.png"
    bad.write_bytes(bad.read_bytes()[:300] if damage == "truncated" else b"no image at all")
    with pytest.raises(UserError, match=rf"cannot read the image {bad} \(.*\)"):
        list(load(folder, "DATASET.NUM_WORKERS", workers).train.epoch(1))


def test_a_dead_worker_is_named(folder, monkeypatch):
    data = load(folder, "DATASET.NUM_WORKERS", "1")
    monkeypatch.setattr(data.train.loader.dataset, "transform", lambda image: os._exit(1))
    with pytest.raises(WorkerError, match=r"a data worker died: .*try DATASET.NUM_WORKERS 0"):
        list(data.train.epoch(1))


@pytest.mark.filterwarnings("ignore:Exception ignored")
def test_a_hanging_worker_is_named(folder, monkeypatch):
    data = load(folder, "DATASET.NUM_WORKERS", "1", "DATASET.WORKER_TIMEOUT", "1")
    monkeypatch.setattr(data.train.loader.dataset, "transform", lambda image: time.sleep(30))
    with pytest.raises(WorkerError, match=r"sent nothing for 1 s \(DATASET.WORKER_TIMEOUT\); try"):
        list(data.train.epoch(1))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_epoch_can_begin_in_its_middle(folder, workers):
    data = load(folder, "DATASET.NUM_WORKERS", workers)
    whole = list(data.train.inputs(4))
    rest = list(data.train.inputs(4, 1))
    assert len(rest) == len(whole) - 1 == 2
    for a, b in zip(whole[1:], rest, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "val").rename(root / "test"), r"no folder .*val; lay the images out"),
        (lambda root: (root / "train" / "n02").rename(root / "train" / "n03"), "only one holds 'n02'"),
        (lambda root: [p.unlink() for p in (root / "train" / "n01").iterdir()], "n01"),
    ],
)
def test_a_folder_of_another_shape_is_refused(folder, break_it, message):
    break_it(folder)
    with pytest.raises(UserError, match=message):
        load(folder)


@pytest.mark.needs("data/tiny-imagenet-40")
def test_real_images(real_data):
    data = load(real_data / "data/tiny-imagenet-40", "DATASET.NUM_WORKERS", "0")
    assert (data.num_classes, data.train.num_images, data.test.num_images) == (40, 6000, 2000)
    batch = next(data.train.epoch(1))
    assert batch.image.shape == (5, 3, 64, 64)
