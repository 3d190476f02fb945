"""Images on the device: equal to torchvision pixel by pixel, and an order that depends on seed and epoch alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as TF

from edkd.dataset import get_dataset
from edkd.dataset.augment import CropFlip, Normalize
from edkd.dataset.sampling import epoch_order, seed_for, stratified_split
from edkd.engine.load_cfg import load_cfg
from edkd.errors import UserError

CPU = torch.device("cpu")
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def digits(*opts):
    return get_dataset(load_cfg(opts=["DATASET.TYPE", "digits", *opts]), CPU)


@pytest.mark.parametrize(("padding", "flip", "num_views"), [(4, True, 162), (4, False, 81), (2, True, 50)])
def test_every_view_equals_torchvision(padding, flip, num_views):
    views, normalize = CropFlip(padding, flip), Normalize(MEAN, STD, CPU)
    assert views.num_views == num_views
    image = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    ours = normalize(views(image.expand(num_views, -1, -1, -1), torch.arange(num_views)))
    padded = TF.pad(Image.fromarray(image[0].permute(1, 2, 0).numpy()), padding)
    published = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    for view in range(num_views):
        offset, flipped = divmod(view, 2) if flip else (view, 0)
        top, left = divmod(offset, 2 * padding + 1)
        crop = TF.crop(padded, top, left, 32, 32)
        assert torch.equal(ours[view], published(TF.hflip(crop) if flipped else crop))


def test_batches_are_channels_last_float32():
    batch = next(digits().train.epoch(1))
    assert batch.image.dtype == torch.float32
    assert batch.image.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_shows_each_image_once_and_pairs_it_with_its_label():
    data = digits()
    batches = list(data.train.epoch(3))
    index = torch.cat([batch.index for batch in batches])
    assert sorted(index.tolist()) == list(range(data.train.num_images))
    assert [len(batch.target) for batch in batches][:-1] == [64] * (len(data.train) - 1)
    assert torch.equal(torch.cat([batch.target for batch in batches]), data.train.images.target[index])


def test_the_order_depends_on_seed_and_epoch_alone():
    def stream(seed, epoch, batch_size=64):
        batches = list(digits("SOLVER.SEED", str(seed), "SOLVER.BATCH_SIZE", str(batch_size)).train.epoch(epoch))
        return torch.cat([b.index for b in batches]), torch.cat([b.image for b in batches])

    torch.manual_seed(5)
    first = stream(1, 2)
    torch.manual_seed(6)
    again, other_size = stream(1, 2), stream(1, 2, 50)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, again, other_size, strict=True))
    for seed, epoch in [(2, 2), (1, 3)]:
        index, image = stream(seed, epoch)
        assert not torch.equal(first[0], index)
        assert not torch.equal(first[1][first[0].argsort()], image[index.argsort()])


def test_a_held_out_split_leaves_the_others_views_as_they_are():
    _, all_views = epoch_order(torch.arange(100), 100, 162, 1, 1)
    order, _ = epoch_order(torch.arange(100), 100, 162, 1, 1)
    members = torch.arange(10, 100)
    some, some_views = epoch_order(members, 100, 162, 1, 1)
    assert torch.equal(all_views[order.argsort()][members], some_views[some.argsort()])


def test_views_are_uniform():
    _, views = epoch_order(torch.arange(50_000), 50_000, 162, 1, 1)
    counts = np.bincount(views.numpy(), minlength=162)
    assert counts.min() > 200
    assert counts.max() < 420


def test_seeds_differ_in_their_low_bits():
    """A CPU generator reads 32 bits: seeds that differ higher up would draw the same."""
    assert len({seed_for(seed, epoch) for seed in range(50) for epoch in range(50)}) == 2500
    assert 0 <= seed_for(1, 2) < 2**32


def test_stratified_split():
    target = torch.tensor([0] * 10 + [1] * 20 + [2] * 30)
    rest, held = stratified_split(target, 0.2)
    assert target[held].bincount().tolist() == [2, 4, 6]
    assert sorted(torch.cat([rest, held]).tolist()) == list(range(60))
    assert torch.equal(held, stratified_split(target, 0.2)[1])
    assert len(stratified_split(target, 0.0)[1]) == 0


def test_val_split_takes_no_test_image_and_no_seed_moves_it():
    data, other = digits("DATASET.VAL_SPLIT", "0.2"), digits("DATASET.VAL_SPLIT", "0.2", "SOLVER.SEED", "9")
    assert data.val.num_images == other.val.num_images == 179
    assert torch.equal(data.val.members, other.val.members)
    assert not set(data.val.members.tolist()) & set(data.train.members.tolist())
    assert data.train.num_images + data.val.num_images == digits().train.num_images
    assert data.test.num_images == 898
    with pytest.raises(UserError, match="VAL_SPLIT"):
        digits("DATASET.VAL_SPLIT", "0.001")


def test_digits_are_normalised_by_their_own_pixels():
    images = digits().train.images.image.float() / 255
    assert images.shape == (899, 3, 32, 32)
    assert images.mean().item() == pytest.approx(0.306, abs=1e-3)
    assert images.std().item() == pytest.approx(0.324, abs=1e-3)


@pytest.mark.needs("data/cifar-100-python")
def test_cifar100(real_data):
    cfg = load_cfg(opts=["DATASET.ROOT", str(real_data / "data")])
    data = get_dataset(cfg, CPU)
    assert (data.num_classes, data.train.num_images, data.test.num_images) == (100, 50_000, 10_000)
    image = torch.cat([batch.image for batch in data.test.epoch()])
    assert image.mean().abs() < 0.03
    assert image.std().item() == pytest.approx(1, abs=0.03)


@pytest.mark.needs("data/cifar-100-python")
def test_damaged_cifar_is_refused(real_data, tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for part in ("test", "meta", "train"):
        content = (real_data / "data/cifar-100-python" / part).read_bytes()
        (folder / part).write_bytes(content[:-1] if part == "test" else content)
    with pytest.raises(UserError, match=r"cifar-100-python is damaged.*tools/download.py cifar100"):
        get_dataset(load_cfg(opts=["DATASET.ROOT", str(tmp_path)]), CPU)


def test_absent_cifar_names_the_way_out(tmp_path):
    with pytest.raises(UserError, match=r"no data set at .*cifar-10-batches-py.*tools/download.py cifar10'"):
        get_dataset(load_cfg(opts=["DATASET.TYPE", "cifar10", "DATASET.ROOT", str(tmp_path)]), CPU)
