"""Folders of the user's own images: layouts, parts, sizes, crops, and images kept on the device."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from edkd.dataset import get_dataset
from edkd.dataset.mixing import with_batch_augmentations
from edkd.dataset.resident import TrainLoader
from edkd.engine.config.load import load_config
from edkd.engine.inputs import with_input
from edkd.errors import UserError
from edkd.registry import DATASETS
from edkd.types import InputSpec
from tests.runs import assert_refused, records

CPU = torch.device("cpu")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

PLUGIN = """
from edkd.registry import MODELS
from tests.small import TinyNet

for name, channels in (("narrow", 6), ("wide", 12)):
    MODELS.add(name, lambda num_classes, c=channels: TinyNet(c, num_classes), family="imagenet")
"""


def configured(root, *opts):
    """The configuration of a folder; `SIZE 8` is DATASET.FOLDER.SIZE 8."""
    short = {"SIZE", "RESIZE", "CROP", "FLIP", "MEAN", "STD", "INTERPOLATION"}
    words = ["DATASET.TYPE", "folder", "DATASET.ROOT", str(root), "DATASET.NUM_WORKERS", "0"]
    words += ["DISTILLER.STUDENT", "ResNet18", "SOLVER.BATCH_SIZE", "5"]
    for name, value in zip(opts[::2], opts[1::2], strict=True):
        prefix = "DATASET.FOLDER." if name in short else "DATASET."
        words += [name if "." in name else f"{prefix}{name}", str(value)]
    return load_config(opts=words)


def load(root, *opts):
    return get_dataset(configured(root, *opts), CPU)


def write(root, counts, size=(64, 64), seed=0):
    """Random images; `counts` has their number by folder, as {"train/cat": 3}."""
    generator = np.random.default_rng(seed)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")
    return root


def one_folder(root, size=(16, 16)):
    return write(root, {"cat": 10, "dog": 5, "eel": 2}, size)


def content(loader):
    """The images and targets of an epoch, together."""
    batches = list(loader.epoch())
    image = torch.cat([batch.image for batch in batches])
    return image, torch.cat([batch.target for batch in batches])


# Parts.


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test", "Val"])
def test_one_part_beside_train_is_the_test_set(tmp_path, name):
    write(tmp_path, {"train/a": 3, "train/b": 4, f"{name}/a": 1, f"{name}/b": 2})
    data = load(tmp_path)
    assert (data.train.num_images, data.val, data.test.num_images) == (7, None, 3)
    assert data.info.class_names == ("a", "b")


@pytest.mark.parametrize("resident", ["on", "off"])
def test_val_chooses_and_test_reports(tmp_path, resident):
    write(tmp_path, {"train/a": 3, "train/b": 4, "valid/a": 1, "valid/b": 2})
    write(tmp_path, {"test/a": 2, "test/b": 3}, seed=1)
    data = load(tmp_path, "RESIDENT", resident)
    assert (data.train.num_images, data.val.num_images, data.test.num_images) == (7, 3, 5)
    assert content(data.val)[1].tolist() == [0, 1, 1]

    data.check(False)
    with pytest.raises(UserError, match=r"VAL_SPLIT 0.5 is not needed: .*valid has images"):
        load(tmp_path, "VAL_SPLIT", "0.5")


@pytest.mark.parametrize("unlabelled", ["test", "test/images"])
def test_test_images_without_classes_are_left_out(tmp_path, capsys, unlabelled):
    write(tmp_path, {"train/a": 3, "train/b": 4, "val/a": 1, "val/b": 2, unlabelled: 6})
    data = load(tmp_path)
    assert (data.val, data.test.num_images) == (None, 3)
    assert "test is not used, as its images are not in class folders" in capsys.readouterr().err


def test_a_folder_beside_train_that_is_no_part_is_left_out_with_a_warning(tmp_path, capsys):
    write(tmp_path, {"train/a": 5, "train/b": 5, "holdout/a": 2, "holdout/b": 2, "__MACOSX": 1})
    data = load(tmp_path)
    assert (data.train.num_images, data.test.num_images) == (8, 2)
    warning = "left out beside train: holdout; to use the images of a folder, call it val or test"
    assert warning in capsys.readouterr().err


def test_a_test_set_is_taken_from_one_folder(tmp_path):
    """A fifth of each class, at least one image of each in both parts; the same for all seeds."""
    one_folder(tmp_path)
    data = load(tmp_path)
    assert Counter(content(data.test)[1].tolist()) == {0: 2, 1: 1, 2: 1}
    assert Counter(data.info.targets.tolist()) == {0: 8, 1: 4, 2: 1}

    other_seed = load(tmp_path, "SOLVER.SEED", "5")
    assert torch.equal(content(other_seed.test)[0], content(data.test)[0])
    assert other_seed.info.identity == data.info.identity
    other_split = load(tmp_path, "SPLIT_SEED", "5")
    assert other_split.info.identity != data.info.identity
    assert not torch.equal(content(other_split.test)[0], content(data.test)[0])

    with_val = load(tmp_path, "TEST_SPLIT", "0.4", "VAL_SPLIT", "0.5")
    parts = (with_val.train, with_val.val, with_val.test)
    assert [part.num_images for part in parts] == [5, 5, 7]


def test_no_image_is_in_two_parts(tmp_path):
    one_folder(tmp_path)
    data = load(tmp_path, "VAL_SPLIT", "0.3", "RESIDENT", "off")
    learned = {path for path, _ in data.train.images.samples}
    tested = {path for path, _ in data.test.images.samples}
    assert len(learned) + len(tested) == 17
    assert not learned & tested
    members = (data.train.batches.members.tolist(), data.val.batches.members.tolist())
    assert sorted(members[0] + members[1]) == list(range(len(learned)))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"": 2}, r"has images, but no folders in it; store the images as .*/<class>/\*, a folder"),
        ({}, r"has nothing in it; store the images as .*\{train,val\}/<class>/\*$"),
        ({"val/a": 2, "test/a": 2}, r"has test, val, but no train; store"),
        ({"training/a": 2, "testing/a": 2}, r"has testing, training, but no train; store"),
        ({"a": 2, "b": 1}, r"TEST_SPLIT needs two images of each class.* one of the class b; add"),
        ({"train/a": 2, "val/a": 1, "val/b": 1}, r"train and val must have the same .*val has 'b'"),
        ({"train/a": 2, "val/a": 1, "valid/a": 1}, r"name the same part; keep one"),
        ({"train": 2, "val": 1}, r"no class folders in .*train"),
    ],
)
def test_another_layout_is_refused_in_one_line(tmp_path, counts, message):
    write(tmp_path, counts)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_root_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*/away; store the images as"):
        load(tmp_path / "away")
    with pytest.raises(UserError, match=r"needs DATASET.ROOT, a folder with <class>/\*"):
        load("")


# Sizes and crops.


def own_input(cfg):
    return DATASETS.find("folder").info["own_input"](cfg)


def test_small_images_of_one_size_keep_it(tmp_path):
    one_folder(tmp_path, (16, 16))
    assert own_input(configured(tmp_path)) == {"SIZE": 16, "RESIZE": 16}
    data = load(tmp_path)
    assert (data.info.image_shape, data.info.resize) == ((3, 16, 16), 16)
    assert isinstance(data.train, TrainLoader)
    assert data.train.augmentations["weak"].padding == 2

    Image.new("RGB", (17, 16)).save(tmp_path / "dog" / "wide.png")
    assert own_input(configured(tmp_path)) == {}
    info = load(tmp_path).info
    assert (info.image_shape, info.resize) == ((3, 224, 224), 256)


def test_the_network_decides_the_size_of_photographs_alone(tmp_path):
    one_folder(tmp_path, (120, 120))
    assert own_input(configured(tmp_path)) == {}
    assert own_input(configured(tmp_path, "SIZE", "112")) == {"RESIZE": 128}
    assert own_input(configured(tmp_path, "SIZE", "112", "RESIZE", "112")) == {}
    assert own_input(configured(tmp_path, "SIZE", "64")) == {"RESIZE": 64}


def test_a_network_fills_what_the_images_leave_open(tmp_path):
    one_folder(tmp_path / "small", (16, 16))
    one_folder(tmp_path / "large", (120, 120))
    spec = InputSpec((3, 240, 240), (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), 256, "bicubic")

    for name, form in (("small", (16, 16)), ("large", (240, 256))):
        own = with_input(configured(tmp_path / name), spec)
        options = own.DATASET.FOLDER
        assert form == (options.SIZE, options.RESIZE)
        assert (options.MEAN, options.INTERPOLATION) == ([0.4, 0.5, 0.6], "bicubic")
        info = get_dataset(own, CPU).info
        assert (info.image_shape[1], info.resize, info.std) == (*form, (0.1, 0.2, 0.3))

    given = with_input(configured(tmp_path / "large", "SIZE", "112"), spec).DATASET.FOLDER
    assert (given.SIZE, given.RESIZE) == (112, 128)


def test_evaluation_of_photographs_equals_torchvision(tmp_path):
    write(tmp_path, {"train/a": 2, "val/a": 1}, (300, 180))
    write(tmp_path, {"val/a": 2}, (90, 250))
    paths = sorted((tmp_path / "val").rglob("*.png"))
    mode = transforms.InterpolationMode.BICUBIC
    for crop, steps in (
        ("resized", [transforms.Resize(256, mode), transforms.CenterCrop(224)]),
        ("none", [transforms.Resize((224, 224), mode)]),
    ):
        data = load(tmp_path, "CROP", crop, "INTERPOLATION", "bicubic")
        plain = [*steps, transforms.ToTensor(), transforms.Normalize(*IMAGENET)]
        expected = [transforms.Compose(plain)(Image.open(path)) for path in paths]
        assert torch.equal(content(data.test)[0], torch.stack(expected))
        assert (data.info.resize, data.info.interpolation) == (256 * (crop != "none"), "bicubic")


@pytest.mark.parametrize(
    ("crop", "flip", "is_fixed"),
    [
        ("resized", "False", False),
        ("pad", "False", False),
        ("none", "False", True),
        ("none", "True", False),
    ],
)
def test_crops_of_training_images(tmp_path, crop, flip, is_fixed):
    write(tmp_path, {"train/a": 1, "val/a": 1}, (60, 40))
    data = load(tmp_path, "CROP", crop, "FLIP", flip, "SIZE", "32", "RESIDENT", "off")
    views = [next(data.train.epoch(epoch)).image for epoch in range(1, 9)]
    assert {view.shape for view in views} == {(1, 3, 32, 32)}
    assert all(torch.equal(view, views[0]) for view in views) == is_fixed


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SIZE", "64", "RESIZE", "32"], "RESIZE 32 is below SIZE 64"),
        (["MEAN", "[0.5]", "STD", "[0.5]"], "MEAN has 1 numbers; give 3"),
        (["MEAN", "[0.5,0.5,0.5]"], "MEAN and STD belong together"),
        (["MEAN", "[124,116,104]", "STD", "[1,1,1]"], "MEAN .* is not of pixels in .0, 1.; divide"),
        (
            ["RESIDENT", "on", "CROP", "resized"],
            "CROP resized needs the original images; set it to pad",
        ),
        (["RESIDENT", "on", "RESIDENT_GB", "0.000001"], "17 images of 16x16 take 1.3e-05 GB"),
        (
            ["LIST", "x.csv", "DATASET.TYPE", "imagenet"],
            "LIST has no effect with DATASET.TYPE imag",
        ),
    ],
)
def test_keys_that_contradict_one_another(tmp_path, opts, message):
    one_folder(tmp_path)
    with pytest.raises(UserError, match=message):
        load(tmp_path, *opts)


# On the device.


@pytest.mark.parametrize(
    ("opts", "is_resident"),
    [
        ([], True),
        (["RESIDENT", "off"], False),
        (["RESIDENT_GB", "0.000001"], False),
        (["CROP", "resized"], False),
        (["CROP", "none"], True),
        (["SIZE", "97"], False),
        (["SIZE", "97", "RESIDENT", "on"], True),
    ],
)
def test_which_images_are_kept_on_the_device(tmp_path, opts, is_resident):
    one_folder(tmp_path)
    assert isinstance(load(tmp_path, *opts).train, TrainLoader) == is_resident


def test_photographs_on_the_device_are_resized_and_cropped_first(tmp_path):
    write(tmp_path, {"train/a": 2, "val/a": 1}, (300, 180))
    kept, read = (
        load(tmp_path, "SIZE", "112", "RESIDENT", each, "CROP", "pad").test
        for each in ("on", "off")
    )
    assert torch.equal(content(kept)[0], content(read)[0])


def save_as_folder(data, root):
    """The images of resident data as PNG files; their names keep the order within a class."""
    for part, loader in (("train", data.train), ("val", data.test)):
        for number, index in enumerate(loader.members.tolist()):
            name = data.info.class_names[loader.images.target[index]]
            pixels = loader.images.image[index].permute(1, 2, 0).numpy()
            (root / part / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / part / name / f"{number:06d}.png")


def assert_equal_data(ours, theirs):
    """The same images, views and normalisation; a folder has its images sorted by class."""
    names = theirs.info.class_names
    number = torch.tensor([names.index(name) for name in ours.info.class_names])
    for own, other in ((ours.train, theirs.train), (ours.test, theirs.test)):
        order = torch.argsort(torch.argsort(number)[other.images.target], stable=True)
        assert torch.equal(own.images.image, other.images.image[order])
        assert torch.equal(number[own.images.target], other.images.target[order])

    index = torch.arange(len(ours.train.images.target))
    order = torch.argsort(torch.argsort(number)[theirs.train.images.target], stable=True)
    view = index % theirs.train.augmentations["weak"].num_views
    assert torch.equal(ours.train.show(index, view), theirs.train.show(order, view))


def as_words(values):
    return f"[{','.join(map(str, values))}]"


def test_digits_as_a_folder_are_the_same_tensors(tmp_path):
    digits = get_dataset(load_config(opts=["DATASET.TYPE", "digits"]), CPU)
    save_as_folder(digits, tmp_path)
    mean, std = as_words(digits.info.mean), as_words(digits.info.std)
    ours = load(tmp_path, "MEAN", mean, "STD", std, "FLIP", "False")
    assert_equal_data(ours, digits)


@pytest.mark.slow
@pytest.mark.needs("data/cifar-100-python")
def test_cifar100_as_a_folder_is_the_same_tensors(tmp_path, real_data):
    words = ["DATASET.TYPE", "cifar100", "DATASET.ROOT", str(real_data / "data")]
    cifar = get_dataset(load_config(opts=words), CPU)
    for loader in (cifar.train, cifar.test):
        part = type(loader.images)(loader.images.image[:600], loader.images.target[:600])
        loader.images, loader.members = part, torch.arange(600)

    save_as_folder(cifar, tmp_path)
    mean, std = as_words(cifar.info.mean), as_words(cifar.info.std)
    assert_equal_data(load(tmp_path, "MEAN", mean, "STD", std), cifar)


# Files that cannot be read.


@pytest.fixture
def with_bad_files(tmp_path):
    write(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2}, (16, 16))
    (tmp_path / "train/a/1.png").write_bytes(b"no image")
    (tmp_path / "train/b/3.png").write_bytes(b"")
    (tmp_path / "val/b/0.png").write_bytes(b"x")
    return tmp_path


def test_bad_files_stop_a_run_on_the_device(with_bad_files):
    data = load(with_bad_files, "SIZE", "16")
    assert isinstance(data.train, TrainLoader)
    with pytest.raises(UserError, match=r"3 of 12 images: .*train/a/1.png .*3.png .*val/b/0.png"):
        data.check(False)
    with pytest.raises(UserError, match=r"1 of 4 images: .*val/b/0.png"):
        data.check(True)


def test_bad_files_are_left_out(with_bad_files):
    data = load(with_bad_files, "SIZE", "16", "ON_BAD_IMAGE", "skip")
    data.check(False)
    assert (data.train.num_images, data.train.num_left_out, data.test.num_images) == (6, 2, 3)
    assert len(data.notes) == 1
    assert data.notes[0].startswith("warning: 3 of 12 images cannot be read and are left out")

    # The others are in their usual order and views.
    index = torch.cat([batch.index for batch in data.train.epoch(1)])
    whole, _ = load(with_bad_files, "SIZE", "16").train.order(1)
    assert index.tolist() == [number for number in whole.tolist() if number not in (1, 7)]
    assert content(data.test)[1].tolist() == [0, 0, 1]


def test_resuming_with_mixup_counts_the_images_that_are_left_out(with_bad_files):
    cfg = configured(with_bad_files, "SIZE", "16", "ON_BAD_IMAGE", "skip", "SOLVER.MIXUP", "0.2")
    data = get_dataset(cfg, CPU)
    data.check(False)
    train = with_batch_augmentations(data, cfg).train
    assert (train.num_images, train.num_left_out) == (6, 2)


def test_bad_files_are_left_out_of_a_split(with_bad_files):
    data = load(with_bad_files, "SIZE", "16", "ON_BAD_IMAGE", "skip", "VAL_SPLIT", "0.5")
    data.check(False)
    left_out = [part.num_left_out for part in (data.train, data.val, data.test)]
    assert (sum(left_out), left_out[2]) == (3, 1)
    assert data.train.num_images + data.val.num_images == 6
    assert len(content(data.val)[0]) == data.val.num_images


def test_other_images_replace_bad_files(with_bad_files, capsys):
    data = load(with_bad_files, "SIZE", "16", "ON_BAD_IMAGE", "replace")
    data.check(False)
    image = data.train.images.image
    assert torch.equal(image[1], image[2])
    assert torch.equal(image[7], image[4])
    assert capsys.readouterr().err.count("another image of its class replaces it") == 3


def test_a_class_without_readable_images_is_refused(with_bad_files):
    for path in (with_bad_files / "train/b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="nor another image of its class"):
        load(with_bad_files, "SIZE", "16", "ON_BAD_IMAGE", "replace")
    with pytest.raises(UserError, match="no image of the class 'b' can be read"):
        load(with_bad_files, "SIZE", "16", "ON_BAD_IMAGE", "skip").check(False)


# Whole runs.


@pytest.mark.needs("data/tiny-imagenet-40")
def test_a_run_on_real_images_with_the_teacher_cache(tmp_path, real_data, server):
    root = real_data / "data/tiny-imagenet-40"
    names = sorted(path.name for path in (root / "train").iterdir())[:4]
    for name in names:
        files = [*sorted((root / "train" / name).rglob("*.JPEG"))[:24]]
        (tmp_path / "photos" / name).mkdir(parents=True)
        for path in files:
            shutil.copy(path, tmp_path / "photos" / name)

    (tmp_path / "models.py").write_text(PLUGIN)
    words = ["train", "--cfg", Path(__file__).parents[2] / "configs/folder/kd.yaml"]
    words += ["--plugin", tmp_path / "models.py", "DATASET.ROOT", tmp_path / "photos"]
    words += ["LOG.PREFIX", tmp_path, "SOLVER.BATCH_SIZE", "16", "SOLVER.EPOCHS", "4"]
    words += ["SOLVER.WARMUP_EPOCHS", "1"]

    # The teacher alone, then the student with it.
    alone = ["DISTILLER.TYPE", "NONE", "DISTILLER.STUDENT", "wide", "EXPERIMENT.NAME", "teacher"]
    assert server.run(*words, *alone)[0] == 0
    teacher = tmp_path / "folder/teacher/student_best"
    networks = ["DISTILLER.TEACHER", "wide", "DISTILLER.STUDENT", "narrow"]
    distil = [*networks, "DISTILLER.TEACHER_CKPT", teacher, "EXPERIMENT.NAME", "kd"]
    run = server.start(*words, *distil)
    assert run.wait() == 0, run.err
    assert "teacher cache: " in run.out
    assert "teacher cache: off" not in run.out
    assert len(records(tmp_path / "folder/kd")) == 4

    # The student's file says what its classes are, and how images are prepared.
    saved = torch.load(tmp_path / "folder/kd/student_best")
    assert saved["class_names"] == names
    assert (saved["image_shape"], saved["resize"]) == ([3, 64, 64], 64)

    # Other images: --resume refuses them.
    next((tmp_path / "photos" / names[0]).iterdir()).unlink()
    code, error = server.run(*words, *distil, "--resume")
    assert code == 2
    assert "--resume: the run had number of training images 76, and now it is 75; put" in error


def test_an_error_is_one_line(tmp_path, tool):
    done = tool(
        "train",
        "DATASET.TYPE",
        "folder",
        "DISTILLER.TYPE",
        "NONE",
        "DISTILLER.STUDENT",
        "ResNet18",
        "LOG.PREFIX",
        tmp_path,
    )
    assert_refused(done, "DATASET.TYPE folder needs DATASET.ROOT")
    assert list(tmp_path.iterdir()) == []
