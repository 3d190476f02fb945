"""Image folders: the published transforms, the same for any number of workers."""

import os
import time

import pytest
import torch
from PIL import Image
from torchvision import transforms

from edkd.dataset import get_dataset
from edkd.dataset.sampling import seed_for
from edkd.errors import UserError, WorkerError

CPU = torch.device("cpu")

STATISTICS = {
    "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
PUBLISHED_TRAINING = {
    "tiny_imagenet": [transforms.RandomRotation(20), transforms.RandomHorizontalFlip()],
    "imagenet": [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()],
}
PUBLISHED_EVALUATION = {
    "tiny_imagenet": [],
    "imagenet": [transforms.Resize(256), transforms.CenterCrop(224)],
}


@pytest.fixture
def load(config):
    def load(folder, workers=0, kind="tiny_imagenet", **changes):
        cfg = config(
            DATASET__TYPE=kind,
            DATASET__ROOT=str(folder),
            DATASET__NUM_WORKERS=workers,
            SOLVER__BATCH_SIZE=5,
            **changes,
        )
        return get_dataset(cfg, CPU)

    return load


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_number_of_workers_changes_nothing(load, pristine_folder):
    streams = []
    for workers in (0, 1, 2):
        torch.manual_seed(workers)
        train = load(pristine_folder, workers).train
        streams.append([batch for epoch in (1, 2) for batch in train.epoch(epoch)])
        streams[-1] += [train.batch(*inputs) for inputs in train.inputs(2, 1)]

    for other in streams[1:]:
        for a, b in zip(streams[0], other, strict=True):
            assert torch.equal(a.image, b.image)
            assert torch.equal(a.target, b.target)
            assert torch.equal(a.index, b.index)

    # Two epochs of three batches, and the second one from its second batch on.
    index = [batch.index for batch in streams[0]]
    first, second = torch.cat(index[:3]), torch.cat(index[3:6])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12))
    assert not torch.equal(first, second)
    assert all(map(torch.equal, index[4:6], index[6:]))


def test_reading_leaves_the_global_generator_alone(load, pristine_folder):
    train = load(pristine_folder).train
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    list(train.epoch(1))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("kind", STATISTICS)
def test_evaluation_equals_the_published_transforms(load, pristine_folder, kind):
    mean, std = STATISTICS[kind]
    steps = [*PUBLISHED_EVALUATION[kind], transforms.ToTensor(), transforms.Normalize(mean, std)]
    published = transforms.Compose(steps)
    image = torch.cat([batch.image for batch in load(pristine_folder, kind=kind).test.epoch()])

    paths = sorted((pristine_folder / "val").rglob("*.png"))
    expected = torch.stack([published(Image.open(path).convert("RGB")) for path in paths])
    assert torch.equal(image, expected)


@pytest.mark.parametrize("kind", STATISTICS)
def test_training_equals_the_published_transforms(load, pristine_folder, kind):
    """For the same state of the generator, which seed, epoch and image decide."""
    train = load(pristine_folder, kind=kind, DATASET__SCALED_DECODING=False).train
    published = transforms.Compose([*PUBLISHED_TRAINING[kind], transforms.PILToTensor()])
    paths = sorted((pristine_folder / "train").rglob("*.png"))

    for batch in train.epoch(2):
        for image, index in zip(batch.image, batch.index.tolist(), strict=True):
            torch.manual_seed(seed_for(1, 2, index))
            expected = published(Image.open(paths[index]).convert("RGB"))
            assert torch.equal(image, train.normalize(expected[None])[0])


@pytest.mark.parametrize(("kind", "size"), [("tiny_imagenet", 64), ("imagenet", 224)])
def test_facts(load, pristine_folder, kind, size):
    data = load(pristine_folder, kind=kind, DATASET__VAL_SPLIT=0.3)
    assert (data.train.num_images, data.val.num_images, data.test.num_images) == (8, 4, 4)

    info = data.info
    assert (info.num_classes, info.num_images) == (2, 12)
    assert info.targets.tolist() == [0] * 6 + [1] * 6
    assert info.class_names == ("n01", "n02")
    assert (info.mean, info.std) == STATISTICS[kind]
    batch = next(data.train.epoch(1))
    assert info.image_shape == tuple(batch.image.shape[1:]) == (3, size, size)
    assert batch.views["weak"].image is batch.image
    assert batch.views["weak"].number is None
    with pytest.raises(UserError, match="no view 'stronger'"):
        data.train.use_views(("weak", "stronger"))


def test_held_out_images_are_not_augmented(load, pristine_folder):
    val = load(pristine_folder, DATASET__VAL_SPLIT=0.3).val
    first, again = ([batch.image for batch in val.epoch(epoch)] for epoch in (1, 2))
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("content", [b"", b"no image at all", None], ids=["empty", "text", "cut"])
def test_a_bad_image_is_named(load, folder, content):
    bad = folder / "train" / "n02" / "3.png"
    bad.write_bytes(bad.read_bytes()[:300] if content is None else content)
    message = rf"cannot read 1 of 16 images: {bad} \(.*\); repair or remove them, or set DATASET"
    with pytest.raises(UserError, match=message):
        load(folder).check(False)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_later_is_named(load, folder, workers):
    train = load(folder, workers).train
    bad = [folder / "val" / "n01" / "0.png", folder / "train" / "n02" / "3.png"]
    for path in bad:
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=rf"2 of 16 images: {bad[1]} \(.*\), {bad[0]} \("):
        list(train.epoch(1))


@pytest.mark.parametrize("workers", [0, 1])
def test_another_image_of_the_class_replaces_a_bad_one(load, folder, workers, capsys):
    sound = {
        index: image
        for batch in load(folder).train.epoch(1)
        for index, image in zip(batch.index.tolist(), batch.image, strict=True)
    }
    for number in (4, 5):
        (folder / "train" / "n02" / f"{number}.png").write_bytes(b"")
    train = load(folder, workers, DATASET__ON_BAD_IMAGE="replace").train
    batches = [batch for epoch in (1, 2) for batch in train.epoch(epoch)]

    # The same order; the images 10 and 11 show the first one of their class, number 6.
    for batch in batches[:3]:
        for index, target, image in zip(
            batch.index.tolist(), batch.target, batch.image, strict=True
        ):
            assert target == index // 6
            assert torch.equal(image, sound[index]) == (index < 10)
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split(" (")[0][-5:] for line in lines) == ["4.png", "5.png"]


def test_without_a_readable_image_of_the_class_nothing_replaces(load, folder):
    for path in (folder / "train" / "n02").iterdir():
        path.write_bytes(b"")
    train = load(folder, DATASET__ON_BAD_IMAGE="replace").train
    with pytest.raises(UserError, match="nor another image of its class"):
        list(train.epoch(1))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda image: os._exit(1), r"died: .*; try DATASET.NUM_WORKERS 0"),
        (lambda image: time.sleep(0.4), r"sent nothing for 0.5 s \(DATASET.WORKER_TIMEOUT\); try"),
    ],
    ids=["dies", "hangs"],
)
@pytest.mark.filterwarnings("ignore:Exception ignored")
def test_a_failing_worker_is_named(load, pristine_folder, fault, message):
    data = load(pristine_folder, 1, DATASET__WORKER_TIMEOUT=0.5)
    data.train.loader.dataset.transform = fault
    if "died" in message:
        data.train.loader.timeout = 20
    with pytest.raises(WorkerError, match=f"a data worker {message}"):
        list(data.train.epoch(1))


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_settings_of_workers(load, pristine_folder, workers, monkeypatch):
    monkeypatch.setattr("edkd.dataset.cores.available_cores", lambda: 4)
    data = load(pristine_folder, workers, DATASET__WORKER_TIMEOUT=7.5)
    for part in (data.train, data.test):
        assert part.loader.num_workers == workers
        assert part.loader.timeout == (7.5 if workers else 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "val").rename(root / "test"), "no folder .*val; store the images as"),
        (
            lambda root: (root / "train/n02").rename(root / "train/n03"),
            "only train has 'n03' and only val has 'n02'; add, rename",
        ),
        (lambda root: [path.unlink() for path in (root / "train/n01").iterdir()], "n01"),
    ],
)
def test_a_folder_of_another_form_is_refused(load, folder, change, message):
    change(folder)
    with pytest.raises(UserError, match=message):
        load(folder)


@pytest.mark.needs("data/tiny-imagenet-40")
def test_real_images(load, real_data):
    data = load(real_data / "data/tiny-imagenet-40")
    assert (data.num_classes, data.train.num_images, data.test.num_images) == (40, 6000, 2000)
    assert next(data.train.epoch(1)).image.shape == (5, 3, 64, 64)
