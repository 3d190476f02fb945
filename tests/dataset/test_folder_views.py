"""Numbered views of image folders: which one an epoch shows, and that it can be made again."""

import shutil

import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

from edkd.dataset import NumberedLoader, get_dataset
from edkd.dataset.folder_views import FileViews
from edkd.dataset.sampling import seed_for
from edkd.errors import UserError
from tests.dataset.conftest import make_config
from tests.small import config, noise_folder, tiny_data

CPU = torch.device("cpu")
CROP = v2.Compose([v2.RandomResizedCrop(64), v2.RandomHorizontalFlip(), v2.PILToTensor()])


def load(folder, workers=0, kind="tiny_imagenet", **changes):
    """An image folder with four views of each image: load(root, DATASET__VIEWS_SEED=1)."""
    values = {"DATASET__TYPE": kind, "DATASET__ROOT": str(folder), "SOLVER__BATCH_SIZE": 5}
    values |= {"DATASET__NUM_WORKERS": workers, "DATASET__VIEWS": 4, **changes}
    return get_dataset(make_config(**values), CPU)


# Which view an epoch shows.


@pytest.mark.parametrize("num_views", [1, 2, 5, 6, 50])
def test_an_image_shows_each_of_its_views_before_one_repeats(num_views):
    views = FileViews(num_views, 0, CROP)
    for turn in (0, 1):
        epochs = range(turn * num_views + 1, (turn + 1) * num_views + 1)
        shown = torch.stack([views.of_epoch(30, 7, epoch) for epoch in epochs])
        assert torch.equal(
            shown.sort(0).values, torch.arange(num_views)[:, None].expand(num_views, 30)
        )


def test_orders_differ_between_images_turns_and_seeds():
    views = FileViews(7, 0, CROP)

    def order(image, seed, turn):
        epochs = range(7 * turn + 1, 7 * turn + 8)
        return tuple(views.of_epoch(40, seed, epoch)[image].item() for epoch in epochs)

    assert len({order(image, 1, 0) for image in range(40)}) > 20  # of 42 possible ones
    assert sum(order(image, 1, 0) == order(image, 1, 1) for image in range(40)) < 5
    assert sum(order(image, 1, 0) == order(image, 2, 0) for image in range(40)) < 5
    assert order(3, 1, 0) == order(3, 1, 0)


def test_the_order_of_the_images_is_that_without_numbered_views(pristine_folder):
    numbered = load(pristine_folder).train
    usual = load(pristine_folder, DATASET__VIEWS=0).train
    assert isinstance(numbered, NumberedLoader)
    assert not isinstance(usual, NumberedLoader)
    for epoch in (1, 9):
        index, numbers = numbered.order(epoch)
        shown = list(numbered.epoch(epoch))
        assert torch.equal(torch.cat([batch.index for batch in shown]), index)
        assert torch.equal(torch.cat([batch.index for batch in usual.epoch(epoch)]), index)
        seen = torch.cat([batch.views["weak"].number for batch in shown])
        assert torch.equal(seen, numbers["weak"])


# The pixels of a view.


def test_a_view_is_decided_by_its_number_and_the_seed_of_the_views(pristine_folder):
    """The published transforms, with the state of the generator that the numbers decide."""
    steps = [transforms.RandomRotation(20), transforms.RandomHorizontalFlip()]
    published = transforms.Compose([*steps, transforms.PILToTensor()])
    paths = sorted((pristine_folder / "train").rglob("*.png"))

    for seed in (0, 3):
        changes = {"SOLVER__SEED": 1 + seed, "DATASET__VIEWS_SEED": seed}
        train = load(pristine_folder, **changes).train
        for batch in train.epoch(2):
            weak = batch.views["weak"]
            assert weak.image is batch.image
            rows = zip(batch.image, batch.index.tolist(), weak.number.tolist(), strict=True)
            for image, index, number in rows:
                torch.manual_seed(seed_for(seed, number, index))
                expected = published(Image.open(paths[index]).convert("RGB"))
                assert torch.equal(image, train.inner.normalize(expected[None])[0])


@pytest.mark.parametrize(("workers", "view"), [(0, "weak"), (0, "strong"), (1, "strong")])
def test_views_made_again_are_those_of_the_batches(pristine_folder, workers, view):
    """In the middle of an epoch, in batches of another size."""
    train = load(pristine_folder, workers).train
    train.use_views(("weak", "strong"))
    inputs = train.inputs(3)
    first = train.batch(*next(inputs))

    index, numbers = train.order(3)
    again = torch.cat(list(train.shown(index, numbers[view], view, 7)))
    batches = [first, *(train.batch(*each) for each in inputs)]
    assert torch.equal(again, torch.cat([batch.views[view].image for batch in batches]))
    assert torch.equal(train.show(index[:3], numbers[view][:3], view), again[:3])


def test_a_file_is_opened_once_for_views_that_follow_one_another(pristine_folder):
    train = load(pristine_folder).train
    opened = []
    images = train.inner.images
    read = images.open
    images.open = lambda path: (opened.append(path), read(path))[1]

    index = torch.arange(12).repeat_interleave(4)
    number = torch.arange(4).repeat(12)
    together = torch.cat(list(train.shown(index, number, "weak", 48)))
    assert len(opened) == 12
    pairs = zip(index.split(1), number.split(1), strict=True)
    apart = torch.cat([train.show(*pair) for pair in pairs])
    assert torch.equal(together, apart)


def test_the_number_of_workers_and_a_resumed_epoch_change_nothing(pristine_folder):
    whole = [batch.image for batch in load(pristine_folder).train.epoch(2)]
    train = load(pristine_folder, workers=1).train
    rest = [train.batch(*inputs).image for inputs in train.inputs(2, 1)]
    assert len(rest) == len(whole) - 1
    assert all(map(torch.equal, rest, whole[1:]))


# What is told apart.


def test_the_fingerprint(pristine_folder, tmp_path):
    """Of the files, their transforms and the seed; not of the folder's place or SOLVER.SEED."""
    moved = shutil.copytree(pristine_folder, tmp_path / "moved")
    same = [
        load(pristine_folder),
        load(moved),
        load(pristine_folder, SOLVER__SEED=5),
        load(pristine_folder, workers=1, DATASET__VAL_SPLIT=0.3),
    ]
    assert len({data.train.fingerprint() for data in same}) == 1

    renamed = shutil.copytree(pristine_folder, tmp_path / "renamed")
    (renamed / "train/n01/0.png").rename(renamed / "train/n01/9.png")
    changed = shutil.copytree(pristine_folder, tmp_path / "changed")
    Image.new("RGB", (64, 64)).save(changed / "train/n01/0.png")
    others = [
        load(renamed),
        load(changed),
        load(pristine_folder, kind="imagenet"),
        load(pristine_folder, DATASET__VIEWS_SEED=1),
        load(pristine_folder, DATASET__RANDAUGMENT=[2, 9]),
    ]
    assert len({data.train.fingerprint() for data in (*same, *others)}) == 1 + len(others)
    torchvision_form = load(pristine_folder, DATASET__STRONG_FORM="torchvision").train
    first = same[0].train
    assert torchvision_form.fingerprint() == first.fingerprint()
    assert torchvision_form.fingerprint("strong") != first.fingerprint("strong")
    assert others[0].train.parts()["the views"] == same[0].train.parts()["the views"]
    assert (
        others[3].train.parts()["the training images"]
        == (same[0].train.parts()["the training images"])
    )


def test_images_that_are_left_out_have_no_views(tmp_path):
    folder = noise_folder(tmp_path / "images", "ab", [f"{number}.png" for number in range(4)])
    (folder / "train/a/0.png").write_bytes(b"no image")
    data = load(folder, DATASET__ON_BAD_IMAGE="skip")
    data.check(False)
    index, numbers = data.train.order(1)
    assert sorted(index.tolist()) == [1, 2, 3, 4, 5, 6, 7]
    assert len(numbers["weak"]) == data.train.num_images == 7
    assert data.train.num_left_out == 1
    assert data.train.first_images(3).tolist() == [1, 2, 3]
    assert data.train.set_size == 8


def test_an_image_that_breaks_later_is_named(tmp_path):
    folder = noise_folder(tmp_path / "images", "ab", ["0.png", "1.png"])
    train = load(folder).train
    bad = folder / "train/b/1.png"
    bad.write_bytes(b"no image")
    with pytest.raises(UserError, match=f"cannot read 1 of 8 images: {bad}"):
        train.show(torch.tensor([3]), torch.tensor([0]))


# Refused.


def test_a_transform_that_does_not_describe_itself_is_refused():
    class Own:
        def __call__(self, image):
            return image

    transform = v2.Compose([Own(), v2.PILToTensor()])
    with pytest.raises(UserError, match=r"describe themselves, .*Own.* or set DATASET.VIEWS 0"):
        FileViews(4, 0, transform)


def test_images_on_the_device_have_views_of_their_own():
    cfg = make_config(DATASET__TYPE="digits", DATASET__VIEWS=3)
    with pytest.raises(UserError, match=r"DATASET.VIEWS 3 .* digits stay on the device.* set it"):
        tiny_data(cfg)


def test_a_loader_of_the_user_has_no_numbered_views():
    with pytest.raises(UserError, match=r"VIEWS has no effect on a train_loader of your own.* 0"):
        config("DATASET.VIEWS", 3)
