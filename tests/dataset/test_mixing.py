"""Mixup, CutMix, random erasing and RandAugment: what they do to images, and what decides it."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import edkd
from edkd.dataset import get_dataset
from edkd.dataset.augment import CropFlip
from edkd.dataset.erasing import RandomErasing, erased
from edkd.dataset.external import external_dataset
from edkd.dataset.host_augment import with_randaugment
from edkd.dataset.mixing import Mixing, with_batch_augmentations
from edkd.engine.config.load import load_config
from edkd.errors import UserError
from edkd.types import Batch
from tests.runs import assert_refused
from tests.small import CLASSES, CPU, TinyNet, config, make_trainer, tiny_data

MIX = ["SOLVER.MIXUP", 0.2, "SOLVER.CUTMIX", 1.0]
ERASE = ["DATASET.RANDOM_ERASING", 0.5]


def augmented(*opts, views=None):
    cfg = config(*opts)
    data = tiny_data(cfg, views)
    return data.train, with_batch_augmentations(data, cfg).train


def pairs(*opts, epoch=1):
    """Each batch without and with the augmentations, and its inputs."""
    plain, changed = augmented(*opts)
    for inputs in changed.inputs(epoch):
        count = len(inputs) - sum(len(each.per_image) for each in changed.augmentations)
        yield plain.batch(*inputs[:count]), changed.batch(*inputs), inputs[count:]


# What they do.


def test_mixup_is_the_weighted_sum_of_images_and_of_targets():
    shares = []
    for plain, mixed, (partner, numbers) in pairs("SOLVER.MIXUP", 1.0):
        share = numbers[4]
        one_hot = torch.eye(CLASSES)[plain.target]
        image = share * plain.image + (1 - share) * plain.image[partner]
        torch.testing.assert_close(mixed.image, image)
        torch.testing.assert_close(mixed.target, share * one_hot + (1 - share) * one_hot[partner])
        assert torch.equal(mixed.index, plain.index)
        assert mixed.image.stride() == plain.image.stride()
        assert mixed.views["weak"].image is mixed.image
        assert mixed.views["weak"].number is None
        assert sorted(partner.tolist()) == list(range(len(plain.image)))
        shares.append(float(share))
    assert len(set(shares)) == len(shares) == 3


def test_cutmix_takes_a_box_from_the_partner_and_its_area_from_the_target():
    areas = []
    for epoch in range(1, 5):
        for plain, mixed, (partner, numbers) in pairs("SOLVER.CUTMIX", 1.0, epoch=epoch):
            top, bottom, left, right = (8 * numbers[:4]).round().int().tolist()
            expected = plain.image.clone()
            other = plain.image[partner]
            expected[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
            assert torch.equal(mixed.image, expected)

            area = (bottom - top) * (right - left) / 64
            one_hot = torch.eye(CLASSES)[plain.target]
            torch.testing.assert_close(mixed.target, (1 - area) * one_hot + area * one_hot[partner])
            areas.append(area)
    assert max(areas) > 0.3 > min(areas)


def test_a_batch_is_mixed_with_the_probability_and_by_either():
    mixing = Mixing(0.4, 1.0, 0.6, 0.25, CLASSES, (32, 32))
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    random = np.random.RandomState(0)
    for _ in range(2000):
        _, numbers = mixing.draw(random, 2)
        weight = float(numbers[4])
        kind = "cutmix" if weight == 0 else "none" if weight == 1 else "mixup"
        kinds[kind] += 1
    assert abs(kinds["none"] - 800) < 80
    assert abs(kinds["cutmix"] - 300) < 60
    assert abs(kinds["mixup"] - 900) < 80


def test_a_batch_that_is_not_mixed_keeps_its_bits():
    for plain, mixed, _ in pairs("SOLVER.MIXUP", 1.0, "SOLVER.MIX_PROB", 0.0):
        assert torch.equal(mixed.image, plain.image)
        assert torch.equal(mixed.target.argmax(1), plain.target)
        assert mixed.target.amax(1).eq(1).all()


def test_all_views_of_an_image_are_mixed_alike():
    views = {"weak": CropFlip(padding=1), "strong": CropFlip(padding=2)}
    plain, changed = augmented(*MIX, *ERASE, views=views)
    changed.use_views(("weak", "strong"))
    assert changed.views == plain.views == ("weak", "strong")
    erasing, mixing = changed.augmentations
    for inputs in changed.inputs(1):
        before = plain.batch(*inputs[:3])
        after = changed.batch(*inputs)
        box, *numbers = inputs[3:]
        for name in ("weak", "strong"):
            alone = Batch(before.views[name].image, before.target)
            alone = mixing.apply(erasing.apply(alone, [box]), numbers)
            assert torch.equal(alone.image, after.views[name].image)
            assert after.views[name].number is None


def test_vectors_are_mixed_too_and_cutmix_needs_images():
    rows = TensorDataset(torch.randn(12, 5, dtype=torch.float64).float(), torch.arange(12) % 3)
    loader = DataLoader(rows, batch_size=4)
    data = external_dataset(loader, loader, seed=1)
    changed = with_batch_augmentations(data, config("SOLVER.MIXUP", 1.0)).train
    for inputs in changed.inputs(1):
        image, _, _, partner, numbers = inputs
        share = numbers[4]
        expected = share * image + (1 - share) * image[partner]
        torch.testing.assert_close(changed.batch(*inputs).image, expected)
    with pytest.raises(UserError, match=r"SOLVER.CUTMIX needs images .* the shape \(5,\)"):
        with_batch_augmentations(data, config("SOLVER.CUTMIX", 1.0))


def test_soft_targets_of_a_loader_are_mixed():
    soft = torch.rand(8, CLASSES).softmax(1)
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 8, 8), soft), batch_size=4)
    data = external_dataset(loader, loader, seed=1)
    changed = with_batch_augmentations(data, config("SOLVER.MIXUP", 1.0)).train
    for inputs in changed.inputs(1):
        target = changed.batch(*inputs).target
        torch.testing.assert_close(target.sum(1), torch.ones(4))
        assert not torch.equal(target, inputs[1])


# Random erasing.


def test_an_erased_box_is_the_mean_and_the_rest_is_unchanged():
    image = torch.randn(6, 3, 20, 10).contiguous(memory_format=torch.channels_last)
    box = torch.tensor([[0.0, 0.5, 0.1, 0.4]] * 5 + [[0.0, 0.0, 0.0, 0.0]])
    result = erased(image, box)
    assert result.stride() == image.stride()
    expected = image.clone()
    expected[:5, :, :10, 1:4] = 0
    assert torch.equal(result, expected)


def test_boxes_are_distributed_as_those_of_torchvision():
    height, width = 24, 40
    (box,) = RandomErasing(0.7, height, width).draw(np.random.RandomState(0), 20000)
    ours = erased(torch.ones(20000, 1, height, width), box).mean((1, 2, 3))
    assert abs(float((ours < 1).float().mean()) - 0.7) < 0.02

    torch.manual_seed(0)
    theirs = v2.RandomErasing(p=0.7)
    image = torch.ones(1, height, width)
    areas = torch.stack([theirs(image).mean() for _ in range(4000)])
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert abs(float(ours.quantile(share) - areas.quantile(share))) < 0.02
    assert abs(float(ours.mean() - areas.mean())) < 0.01

    # The place is uniform.
    is_erased = box[:, 1] > 0
    spare = 1 - (box[:, 1] - box[:, 0])[is_erased]
    assert abs(float((box[is_erased, 0] / spare).mean()) - 0.5) < 0.02


def test_erasing_comes_before_mixing():
    """As in timm: a box of the mean is mixed with the partner's pixels."""
    _, changed = augmented(*MIX, *ERASE)
    assert [type(each).__name__ for each in changed.augmentations] == ["RandomErasing", "Mixing"]


# What decides the numbers.


def equal(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_numbers_depend_on_seed_epoch_and_batch_alone():
    _, changed = augmented(*MIX, *ERASE)
    _, again = augmented(*MIX, *ERASE)
    _, other = augmented(*MIX, *ERASE, "SOLVER.SEED", 2)
    torch.manual_seed(3)
    whole = list(changed.inputs(2))
    torch.manual_seed(4)
    assert all(equal(a, b) for a, b in zip(whole[2:], again.inputs(2, 2), strict=True))
    for place in (2, 3, 4):  # box, partner, numbers
        assert not torch.equal(whole[0][place], whole[1][place])
        assert not torch.equal(whole[0][place], next(iter(changed.inputs(1)))[place])
        assert not torch.equal(whole[0][place], next(iter(other.inputs(2)))[place])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_of_a_folder_change_nothing(pristine_folder):
    def batches(workers):
        opts = ["DATASET.TYPE", "tiny_imagenet", "DATASET.ROOT", str(pristine_folder)]
        opts += ["DISTILLER.STUDENT", "ResNet18", "DATASET.NUM_WORKERS", str(workers)]
        opts += ["SOLVER.BATCH_SIZE", "5", "DATASET.RANDAUGMENT", "[2, 9]"]
        opts += [str(word) for word in (*MIX, *ERASE)]
        cfg = load_config(opts=opts)
        return list(with_batch_augmentations(get_dataset(cfg, CPU), cfg).train.epoch(1))

    for ours, theirs in zip(batches(0), batches(2), strict=True):
        assert torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.target, theirs.target)


# RandAugment.


def test_randaugment_stands_before_the_conversion():
    cfg = load_config()
    parts = [v2.RandomCrop(8), v2.PILToTensor()]
    assert with_randaugment(parts, cfg) == parts

    cfg = load_config(opts=["DATASET.RANDAUGMENT", "[2,21]"])
    crop, operation, last = with_randaugment(parts, cfg)
    assert [crop, last] == parts
    assert isinstance(operation, v2.RandAugment)
    assert (operation.num_ops, operation.magnitude) == (2, 21)

    for wrong in ("[2]", "[0,9]", "[2,9.5]"):
        with pytest.raises(UserError, match="must be two whole numbers"):
            with_randaugment(parts, load_config(opts=["DATASET.RANDAUGMENT", wrong]))


def test_randaugment_changes_a_folders_training_images(pristine_folder):
    def first(*opts):
        words = ["DATASET.TYPE", "tiny_imagenet", "DATASET.ROOT", str(pristine_folder)]
        words += ["DISTILLER.STUDENT", "ResNet18", "DATASET.NUM_WORKERS", "0"]
        cfg = load_config(opts=[*words, *opts])
        data = get_dataset(cfg, CPU)
        return [next(iter(part.epoch(1))).image for part in (data.train, data.test)]

    train, test = first()
    augmented_train, same_test = first("DATASET.RANDAUGMENT", "[2,15]")
    assert torch.equal(test, same_test)
    assert not torch.equal(train, augmented_train)
    assert torch.equal(augmented_train, first("DATASET.RANDAUGMENT", "[2,15]")[0])


def test_randaugment_is_refused_where_it_would_do_nothing(train_tiny, tool, image_folder):
    message = "DATASET.RANDAUGMENT has no effect on DATASET.TYPE tiny; .* imagenet"
    assert_refused(train_tiny("run", "DATASET.RANDAUGMENT", "[2,9]"), message)
    done = tool("train", *image_folder, "run", "DATASET.RANDAUGMENT", "[2,9]")
    assert_refused(done, "has no effect on DATASET.TYPE tiny_folder")

    loader = DataLoader(TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 4), batch_size=4)
    with pytest.raises(UserError, match="no effect on a train_loader of your own"):
        edkd.distill(TinyNet(), TinyNet(), loader, loader, epochs=1, randaugment=[2, 9])


# Beside the teacher cache.


@pytest.mark.parametrize(
    ("opts", "key"), [(MIX, "SOLVER.MIXUP"), (ERASE, "DATASET.RANDOM_ERASING")]
)
def test_the_cache_is_off_and_the_log_has_the_reason(train_tiny, opts, key):
    done = train_tiny("run", "DISTILLER.TYPE", "KD", "SOLVER.EPOCHS", 1, *opts)
    assert done.code == 0, done.err
    assert f"teacher cache: off ({key} makes new images in each epoch)" in done.out


def test_teacher_and_student_get_the_same_mixed_images(tmp_path):
    trainer = make_trainer("KD", tmp_path, *MIX, *ERASE, cached=False)
    seen = []
    for network in (trainer.distiller.student, *trainer.distiller.teachers()):
        network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    trainer.train_step(1, *next(iter(trainer.data.train.inputs(1))))
    student, teacher = seen
    assert student is teacher
