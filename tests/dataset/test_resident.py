"""Images on the device, in one view or several; the built-in data sets of this kind."""

import pytest
import torch

from edkd.dataset import get_dataset
from edkd.dataset.augment import CropFlip
from edkd.dataset.resident import Images, resident_dataset
from edkd.errors import UserError

CPU = torch.device("cpu")


def make_images(count: int = 20, classes: int = 4, size: int = 8) -> Images:
    generator = torch.Generator().manual_seed(count)
    shape = (count, 3, size, size)
    image = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return Images(image, torch.arange(count) % classes)


def make(config, augmentations=None, train=None, test=None, names=(), **changes):
    cfg = config(SOLVER__BATCH_SIZE=8, **changes)
    views = augmentations or CropFlip(padding=1)
    train = train or make_images()
    test = test or make_images(12)
    return resident_dataset(cfg, CPU, train, test, views, (0.5,) * 3, (0.2,) * 3, names)


def stream(loader, epoch):
    batches = list(loader.epoch(epoch))
    return torch.cat([b.index for b in batches]), torch.cat([b.image for b in batches])


def test_an_epoch_has_each_image_once_with_its_target(config):
    data = make(config)
    batches = list(data.train.epoch(3))
    index = torch.cat([batch.index for batch in batches])
    assert sorted(index.tolist()) == list(range(20))
    assert [len(batch.target) for batch in batches] == [8, 8, 4]
    assert len(data.train) == 3
    target = torch.cat([batch.target for batch in batches])
    assert torch.equal(target, data.info.targets[index])


def test_the_order_depends_on_seed_and_epoch_alone(config):
    torch.manual_seed(5)
    index, image = stream(make(config).train, 2)
    for same in (make(config), make(config, DATASET__TEST__BATCH_SIZE=5)):
        torch.manual_seed(6)
        assert all(map(torch.equal, stream(same.train, 2), (index, image)))

    for data, epoch in ((make(config, SOLVER__SEED=2), 2), (make(config), 3)):
        other_index, other_image = stream(data.train, epoch)
        assert not torch.equal(index, other_index)
        assert not torch.equal(image[index.argsort()], other_image[other_index.argsort()])


@pytest.mark.parametrize("first", [0, 1, 3])
def test_an_epoch_can_start_at_any_batch(config, first):
    train = make(config).train
    rest = list(train.inputs(2, first))
    for a, b in zip(list(train.inputs(2))[first:], rest, strict=True):
        assert all(map(torch.equal, a, b))


def test_several_views(config):
    augmentations = {"weak": CropFlip(padding=1), "strong": CropFlip(padding=3, flip=False)}
    one = make(config).train
    train = make(config, augmentations).train
    assert train.views == ("weak",)

    train.use_views(("weak", "strong"))
    index, numbers = train.order(4)
    assert list(numbers) == ["weak", "strong"]
    assert torch.equal(index, one.order(4)[0])
    assert torch.equal(numbers["weak"], one.order(4)[1]["weak"])

    inputs = list(train.inputs(4))
    assert [len(each) for each in inputs] == [3, 3, 3]
    batch = train.batch(*inputs[1])
    strong = batch.views["strong"]
    assert torch.equal(strong.number, numbers["strong"][8:16])
    assert torch.equal(strong.image, train.show(batch.index, strong.number, "strong"))
    assert batch.image is batch.views["weak"].image
    assert torch.equal(batch.image, one.batch(*list(one.inputs(4))[1]).image)


def test_an_unknown_view_is_refused(config):
    data = make(config)
    with pytest.raises(UserError, match=r"no view 'Weak', did you mean 'weak'.*another DATASET"):
        data.train.use_views(("Weak", "strong"))
    with pytest.raises(UserError, match="no view 'strong'"):
        data.test.use_views(("strong",))
    with pytest.raises(UserError, match="lack the view 'weak'"):
        make(config, {"strong": CropFlip()})


def test_a_split_for_validation(config):
    data = make(config, DATASET__VAL_SPLIT=0.2)
    other = make(config, DATASET__VAL_SPLIT=0.2, SOLVER__SEED=9)
    assert data.val.num_images == 4
    assert torch.equal(data.val.members, other.val.members)
    assert not set(data.val.members.tolist()) & set(data.train.members.tolist())
    assert data.train.num_images == 16
    assert data.info.num_images == data.train.set_size == 20
    assert make(config).val is None


def test_evaluation_has_each_image_as_it_is(config):
    test = make_images(12)
    data = make(config, test=test, DATASET__TEST__BATCH_SIZE=5)
    index, image = stream(data.test, 0)
    assert index.tolist() == list(range(12))
    assert torch.equal(image, data.train.normalize(test.image))
    assert len(data.test) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(names=["a", "b"]), "between 0 and 3; with 2 classes"),
        (dict(test=make_images(size=9)), "training images have the shape"),
        (dict(train=make_images(0), test=make_images(0)), "no images"),
    ],
)
def test_an_unusable_data_set_is_refused(config, changes, message):
    with pytest.raises(UserError, match=message):
        make(config, **changes)


def test_unusable_images_are_refused():
    with pytest.raises(UserError, match=r"torch.float32 .*must be torch.uint8 of shape \(N,3,H,W"):
        Images(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UserError, match=r"targets .* must be torch.int64 of shape \(2,\)"):
        Images(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))


# The built-in data sets.


def test_digits(config):
    data = get_dataset(config(DATASET__TYPE="digits"), CPU)
    assert (data.train.num_images, data.test.num_images, data.num_classes) == (899, 898, 10)
    assert data.info.class_names == tuple("0123456789")
    assert data.info.image_shape == (3, 32, 32)
    assert data.train.augmentations["weak"].num_views == 81

    pixels = data.train.images.image.float() / 255
    assert pixels.mean().item() == pytest.approx(data.info.mean[0], abs=1e-3)
    assert pixels.std().item() == pytest.approx(data.info.std[0], abs=1e-3)


@pytest.mark.needs("data/cifar-100-python")
def test_cifar100(config, real_data):
    data = get_dataset(config(DATASET__ROOT=str(real_data / "data")), CPU)
    assert (data.num_classes, data.train.num_images, data.test.num_images) == (100, 50_000, 10_000)
    assert data.info.class_names[:2] == ("apple", "aquarium_fish")
    assert data.train.augmentations["weak"].num_views == 162

    image = next(data.train.epoch(1)).image
    assert image.mean().abs() < 0.3
    assert image.std().item() == pytest.approx(1, abs=0.2)


def test_damaged_cifar_is_refused(config, tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for part in ("train", "test", "meta"):
        (folder / part).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"cifar-100-python is damaged.*download.* cifar100"):
        get_dataset(config(DATASET__ROOT=str(tmp_path)), CPU)


def test_missing_cifar_is_refused(config, tmp_path):
    cfg = config(DATASET__TYPE="cifar10", DATASET__ROOT=str(tmp_path))
    with pytest.raises(UserError, match=r"no data set at .*cifar-10-batches-py; download it with"):
        get_dataset(cfg, CPU)
