"""Strong views: equal to torchvision for the same draws, decided by image and view alone."""

import pickle
import time
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from edkd.dataset import get_dataset
from edkd.dataset.augment import Augmentation, CropFlip, PerImage, check_augmentation
from edkd.dataset.operations import augmented, blended, boxed, moved, recoloured
from edkd.dataset.randaugment import FORMS, GREY, OPERATIONS, Draws, draw, uniforms
from edkd.dataset.resident import resident_dataset
from edkd.dataset.strong import StrongViews, changed, strengthened
from edkd.errors import UserError
from tests.dataset.test_resident import make_images
from tests.small import tiny_images

CPU = torch.device("cpu")
CIFAR = Path(__file__).parents[2] / "data" / "cifar-100-python" / "test"


@pytest.fixture(scope="module")
def images():
    """(40,3,32,32): photographs where the data are there, else noise and gradients."""
    if CIFAR.is_file():
        with CIFAR.open("rb") as file:
            rows = pickle.load(file, encoding="latin1")["data"][:37]
        found = torch.from_numpy(rows).view(-1, 3, 32, 32)
    else:
        found = make_images(37, size=32).image
    ramp = torch.arange(32, dtype=torch.uint8).expand(3, 32, 32)
    special = torch.stack([ramp * 8, torch.full_like(ramp, 7), torch.full_like(ramp, 255)])
    return torch.cat([found, special])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_equals_torchvision(images, form, name):
    """In each pixel, for each image with an amount of its own."""
    number = torch.arange(len(images))
    index = torch.arange(4000)
    drawn = draw(form, index, index % 50, 32, 32)
    place = OPERATIONS.index(name)
    amount = drawn.amount[drawn.operation == place][: len(images)]
    operation = torch.full_like(number, place)

    ours = images
    for change in (moved, recoloured, blended):
        ours = change(ours, operation, amount)
    expected = [changed(images[i], name, amount[i].item()) for i in number]
    assert torch.equal(ours, torch.stack(expected))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(32, 32), (20, 33)])
def test_a_batch_equals_its_images_one_by_one(images, form, size):
    images = images[:, :, : size[0]].repeat(1, 1, 1, 2)[..., : size[1]]
    seeds = torch.arange(len(images)) + 7
    batch = augmented(images, draw(form, seeds, torch.zeros_like(seeds), *size))
    alone = [strengthened(images[i], seeds[i].item(), form) for i in range(len(images))]
    assert torch.equal(batch, torch.stack(alone))


def test_the_way_of_an_accelerator_gives_the_same(images):
    """There the images that an operation leaves alone pass through it."""
    index = torch.arange(len(images))
    drawn = draw("published", index, index, 32, 32)
    expected = augmented(images, drawn)

    found = images
    for operation, amount in zip(drawn.operation.unbind(1), drawn.amount.unbind(1), strict=True):
        for change in (moved, recoloured, blended):
            found = change(found, operation, amount)
    assert torch.equal(boxed(found, drawn.box), expected)


def test_the_box_equals_pillow(images):
    index = torch.arange(len(images))
    drawn = draw("published", index, index, 32, 32)
    ours = boxed(images, drawn.box)
    for i in index.tolist():
        image = Image.fromarray(images[i].permute(1, 2, 0).numpy())
        ImageDraw.Draw(image).rectangle(drawn.box[i].tolist(), GREY)
        assert ours[i].permute(1, 2, 0).numpy().tobytes() == image.tobytes()
    none = Draws(drawn.operation, drawn.amount, torch.full_like(drawn.box, -1))
    assert torch.equal(boxed(images, none.box), images)


def test_the_draws_are_uniform_and_independent():
    index = torch.arange(20000)
    random = uniforms(index, index % 50, 6)
    assert random.min() >= 0
    assert random.max() < 1
    assert random.mean(0).sub(0.5).abs().max() < 0.01
    assert random.var(0).sub(1 / 12).abs().max() < 0.003
    assert (torch.corrcoef(random.T) - torch.eye(6)).abs().max() < 0.03
    assert len(uniforms(index, index * 0, 1).unique()) > 19900

    drawn = draw("published", index, index % 50, 32, 32)
    counts = drawn.operation.flatten().bincount()
    assert len(counts) == 14
    assert (counts / 40000 - 1 / 14).abs().max() < 0.01
    signs = draw("torchvision", index, index % 50, 32, 32).amount.sign()
    assert signs[drawn.operation == OPERATIONS.index("Rotate")].mean().abs() < 0.05


def test_the_amounts():
    index = torch.arange(4000)
    ranges = {}
    for form in FORMS:
        drawn = draw(form, index, index, 32, 64)
        for place, name in enumerate(OPERATIONS):
            amount = drawn.amount[drawn.operation == place]
            ranges[form, name] = (amount.min().item(), amount.max().item())
    assert ranges["torchvision", "TranslateX"] == (-9, 9)
    assert ranges["torchvision", "TranslateY"] == (-4, 4)
    assert ranges["torchvision", "Solarize"] == (170, 170)
    assert ranges["torchvision", "Posterize"] == (7, 7)
    assert ranges["published", "TranslateX"] == pytest.approx((-19.2, 19.2), abs=0.5)
    assert ranges["published", "Brightness"] == pytest.approx((0.05, 0.95), abs=0.02)


def test_torchvision_has_these_amounts():
    from torchvision.transforms.v2 import RandAugment

    for name, (amounts, is_signed) in RandAugment._AUGMENTATION_SPACE.items():
        found = amounts(31, 32, 64)
        expected = 0.0 if found is None else float(found[10])
        if name.startswith("Translate"):
            expected = int(expected)
        elif name in ("Brightness", "Color", "Contrast", "Sharpness"):
            expected += 1
        elif name == "Solarize":
            expected *= 255
        index = torch.arange(2000)
        drawn = draw("torchvision", index, index, 32, 64)
        amount = drawn.amount[drawn.operation == OPERATIONS.index(name)].unique()
        assert amount.max().item() == pytest.approx(expected, rel=1e-6)
        assert len(amount) == 1 + is_signed


def test_a_view_depends_on_image_and_number_alone(images):
    views = StrongViews(CropFlip(), 50)
    index = torch.arange(40) + 100
    number = torch.arange(40)
    whole = views(images, number, index)
    order = torch.randperm(40)
    assert torch.equal(views(images[order], number[order], index[order]), whole[order])
    assert not torch.equal(views(images, number, index + 1), whole)
    assert not torch.equal(views(images, number + 1, index), whole)
    assert whole.dtype == torch.uint8


def test_it_is_an_augmentation():
    views = StrongViews(CropFlip(), 50)
    assert isinstance(views, Augmentation)
    assert isinstance(views, PerImage)
    check_augmentation("strong", views)
    others = [StrongViews(CropFlip(), 20), StrongViews(CropFlip(3), 50)]
    others.append(StrongViews(CropFlip(), 50, "torchvision"))
    assert len({each.identity() for each in (views, *others)}) == 4


def test_data_on_the_device_have_strong_views(config):
    cfg = config(SOLVER__BATCH_SIZE=16, DATASET__STRONG_VIEWS=7)
    shape = dict(mean=(0.5,) * 3, std=(0.25,) * 3)
    train = resident_dataset(cfg, CPU, tiny_images(40), tiny_images(8), CropFlip(1), **shape).train
    weak = list(train.epoch(3))
    assert list(weak[0].views) == ["weak"]

    train.use_views(("weak", "strong"))
    for before, batch in zip(weak, train.epoch(3), strict=True):
        assert torch.equal(before.image, batch.image)
        strong = batch.views["strong"]
        assert strong.number.max() < 7
        assert torch.equal(train.show(batch.index, strong.number, "strong"), strong.image)
        assert not torch.equal(strong.image, batch.image)

    given = {"weak": CropFlip(1), "strong": CropFlip(2)}
    train = resident_dataset(cfg, CPU, tiny_images(40), tiny_images(8), given, **shape).train
    assert train.augmentations == given


def test_the_digits_have_them(config):
    train = get_dataset(config(DATASET__TYPE="digits"), CPU).train
    train.use_views(("weak", "strong"))
    batch = next(train.epoch(1))
    assert batch.views["strong"].image.shape == batch.image.shape


@pytest.mark.parametrize("form", FORMS)
def test_streamed_images_have_strong_views(config, pristine_folder, form):
    def batches(epoch, workers=0, views=("weak", "strong")):
        cfg = config(
            DATASET__TYPE="tiny_imagenet",
            DATASET__ROOT=str(pristine_folder),
            DATASET__NUM_WORKERS=workers,
            DATASET__STRONG_FORM=form,
            SOLVER__BATCH_SIZE=4,
        )
        data = get_dataset(cfg, CPU)
        data.train.use_views(views)
        with pytest.raises(UserError, match="no view 'strong'"):
            data.test.use_views(("strong",))
        return list(data.train.epoch(epoch))

    found = batches(2)
    alone = batches(2, views=("weak",))
    for both, weak in zip(found, alone, strict=True):
        assert torch.equal(both.image, weak.image)
        assert both.views["weak"].image is both.image
        assert both.views["strong"].number is None
        assert not torch.equal(both.views["strong"].image, both.image)
    for a, b in zip(found, batches(2, workers=1), strict=True):
        assert torch.equal(a.views["strong"].image, b.views["strong"].image)
    assert not torch.equal(found[0].views["strong"].image, batches(3)[0].views["strong"].image)


def test_a_batch_is_made_quickly(images):
    """64 images of 32x32 on one core, in time of the processor."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    views = StrongViews(CropFlip(), 50)
    batch = images.repeat(2, 1, 1, 1)[:64]
    index = torch.arange(64)
    times = []
    for number in range(20):
        start = time.process_time()
        views(batch, (index + number) % 50, index)
        times.append(time.process_time() - start)
    torch.set_num_threads(threads)
    assert min(times) < 0.03
