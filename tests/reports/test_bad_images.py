"""Bad image files, every kind of image file, and batches and folders at their limits."""

import os
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import nn
from torchvision.transforms import v2

from edkd.dataset import get_dataset
from edkd.dataset.folder import Preprocessing, folder_dataset
from edkd.dataset.images import _prepare_pil, read_image
from edkd.dataset.sampling import num_batches, split_batches
from edkd.engine.config.load import load_config
from edkd.errors import UserError
from edkd.registry import MODELS
from tests.conftest import PLUGIN
from tests.reports.test_image_folders import break_in_the_middle
from tests.runs import assert_refused, outcome, records
from tests.small import config, noise_folder

CPU = torch.device("cpu")
SKIP = ("DATASET.ON_BAD_IMAGE", "skip")
REPLACE = ("DATASET.ON_BAD_IMAGE", "replace")


@pytest.fixture
def train(train_on):
    """Train for two epochs on an image folder: train(folder, name, KEY, VALUE, ...)."""
    return lambda folder, name, *opts: train_on(folder, name, "SOLVER.EPOCHS", 2, *opts)


@pytest.fixture
def images(tmp_path):
    """Two classes of eight photographs of 12x12 in train/ and val/, a.png to h.png."""
    names = [f"{name}.png" for name in "abcdefgh"]
    return noise_folder(tmp_path / "images", ("cat", "dog"), names)


def load(folder, *opts, workers=0):
    """The data set `tiny_folder` of a folder."""
    words = ["DATASET.TYPE", "tiny_folder", "DATASET.ROOT", str(folder), *opts]
    words += ["DISTILLER.STUDENT", "narrow", "SOLVER.BATCH_SIZE", "4"]
    words += ["DATASET.NUM_WORKERS", str(workers)]
    return get_dataset(load_config(opts=words, plugins=[str(PLUGIN)]), CPU)


def spoil(folder):
    """Make seven of the images bad, each in another way; return the others' numbers."""
    (folder / "cat/a.png").write_bytes(b"")
    (folder / "cat/b.png").write_text("a page that says 404 Not Found")
    (folder / "cat/c.png").write_bytes((folder / "cat/c.png").read_bytes()[:200])
    break_in_the_middle(folder / "cat/d.png")
    (folder / "dog/a.png").unlink()
    (folder / "dog/a.png").symlink_to(folder / "nowhere.png")
    Image.new("RGB", (5, 4)).save(folder / "dog/b.png")  # less than the crop
    (folder / "dog/c.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500) + b"IEND")
    return [4, 5, 6, 7, 11, 12, 13, 14, 15]


# Skipped.


def test_bad_images_are_left_out_and_counted(tool, train, images, tmp_path):
    """All kinds of bad files in one folder: the run says how many it leaves out, and which."""
    spoil(images / "train")
    shutil.copy(images / "train/cat/b.png", images / "val/cat/b.png")
    assert train(images, "run").code == 2

    done = train(images, "run", *SKIP)
    assert done.code == 0, done.err
    line = "8 of 32 images cannot be read and are left out (DATASET.ON_BAD_IMAGE skip): "
    log = (tmp_path / "distill/run/worklog.txt").read_text()
    for text in (done.out, log):
        assert line in text
        assert "cat/a.png (the file is empty), " in text
        assert "cat/b.png (no image that the installed Pillow can read)" in text
        assert " and 5 more" in text
    assert "9 training images, 2 classes" in done.out

    done = tool("eval", tmp_path / "distill/run")
    assert done.code == 0
    assert "1 of 16 images cannot be read and are left out" in done.err


@pytest.mark.parametrize("workers", [0, 2])
def test_the_others_keep_their_numbers_and_their_order(images, workers):
    sound = load(images, "DATASET.VAL_SPLIT", "0.25")
    before = [torch.cat([batch.index for batch in sound.train.epoch(epoch)]) for epoch in (1, 2)]
    rest = torch.tensor(spoil(images / "train"))  # 9 is held out, where the crop pads it

    skipping = load(images, *SKIP, "DATASET.VAL_SPLIT", "0.25", workers=workers)
    skipping.check(False)
    after = [torch.cat([batch.index for batch in skipping.train.epoch(epoch)]) for epoch in (1, 2)]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[torch.isin(old, rest)], new)

    assert len(after[0]) == skipping.train.num_images
    held_out = torch.cat([batch.index for batch in skipping.val.epoch()])
    assert sorted([*after[0].tolist(), *held_out.tolist()]) == [4, 5, 6, 7, 9, *rest[4:].tolist()]
    assert skipping.info.num_images == 16


def test_a_class_that_has_only_bad_images_is_refused(train, images):
    for path in (images / "train/cat").iterdir():
        path.write_bytes(b"")
    done = train(images, "run", *SKIP)
    assert_refused(
        done, r"no image of the class 'cat' can be read \(first bad file: .*a.png \(the file is"
    )


@pytest.mark.parametrize("form", ["kept", "repaired"])
def test_a_stopped_run_continues_without_the_image(train, images, tmp_path, form):
    """The image breaks in the epoch of the stop; no other image is seen twice in that epoch."""
    bad = images / "train/dog/h.png"
    sound = bad.read_bytes()
    break_in_the_middle(bad)
    stopped = train(images, "run")
    assert_refused(stopped, r"cannot read 1 of 32 .*set DATASET.ON_BAD_IMAGE skip to leave them")

    if form == "repaired":
        bad.write_bytes(sound)
    done = train(images, "run", *SKIP, "--resume")
    assert done.code == 0, done.err
    assert ("1 of 32 images cannot be read" in done.out) == (form == "kept")
    assert len(records(tmp_path / "distill/run")) == 2

    # The same as a run that left the image out from its beginning.
    assert train(images, "whole", *SKIP).code == 0
    assert outcome(tmp_path / "distill/run") == outcome(tmp_path / "distill/whole")


def test_an_image_that_breaks_after_the_check_is_named(images):
    data = load(images, *SKIP)
    data.check(False)
    (images / "train/cat/e.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"e.png \(the file is empty\), though .* --resume leaves"):
        list(data.train.epoch(1))


def test_the_key_of_earlier_versions_is_explained(train, images):
    done = train(images, "run", "DATASET.UNREADABLE", "replace")
    assert_refused(done, "unknown key DATASET.UNREADABLE .*; it is now DATASET.ON_BAD_IMAGE$")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all files")
def test_a_file_without_permission_is_named(train, images):
    (images / "train/cat/a.png").chmod(0)
    assert_refused(train(images, "run"), r"cat/a.png \(Permission denied\)")


# Gigantic images.


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.tif"])
def test_a_gigantic_image_is_named_before_a_run(train, images, name):
    """A decompression bomb: 300 million pixels in a small file. PIL's warnings do not appear."""
    Image.new("1", (20000, 15000)).save(images / "train/cat" / name)
    done = train(images, "run")
    pixels = "its 300000000 pixels are more than 178956970; scale it down"
    assert_refused(done, rf"cannot read 1 of 3\d images: .*{name} \({pixels}\)")

    done = train(images, "run", *SKIP, "SOLVER.EPOCHS", 1)
    assert done.code == 0
    assert pixels in done.out
    assert "bomb" not in done.out + done.err


def test_a_large_image_is_read_without_a_warning(images, monkeypatch):
    """Above the number of pixels at which PIL warns, and below the one at which it refuses."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _prepare_pil.cache_clear()
        assert read_image(images / "train/cat/a.png").size == (12, 12)
    assert caught == []


# Kinds of files.


def photograph(mode):
    """An image in a mode of PIL; some parts are transparent where the mode allows it."""
    ramp = np.linspace(0, 255, 16 * 16).astype(np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([ramp, ramp.T, 255 - ramp], -1))
    if mode == "I;16":
        return Image.fromarray(ramp.astype(np.uint16) * 257)
    if mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), lab, outputMode=mode
        )
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(ramp))
        return image.convert(mode)
    if mode == "PA":
        return image.quantize(16).convert(mode)
    return image.convert(mode)


MODES = {
    "1": "a.png",
    "L": "a.jpg",
    "LA": "a.png",
    "P": "a.gif",
    "PA": "a.tif",
    "RGB": "a.jpg",
    "RGBA": "a.png",
    "CMYK": "a.jpg",
    "YCbCr": "a.tif",
    "I;16": "a.png",
}
"""HSV is the mode of no file, and CIELAB is refused."""


def plain_data(folder):
    """A folder whose images are trained on as they are evaluated."""
    plain = v2.Compose([v2.PILToTensor()])
    preprocessing = Preprocessing(plain, plain, 16, (0.5,) * 3, (0.25,) * 3)
    cfg = config("DATASET.ROOT", folder, "DATASET.NUM_WORKERS", 0)
    return folder_dataset(cfg, CPU, "", preprocessing)


@pytest.mark.parametrize("transparency", [None, 0], ids=["opaque", "transparent"])
@pytest.mark.parametrize("mode", MODES)
def test_training_evaluation_and_prediction_see_the_same_pixels(tmp_path, mode, transparency):
    settings = {"transparency": 0} if mode in ("L", "P", "RGB") and transparency == 0 else {}
    name = "a.png" if settings else MODES[mode]
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
        image = photograph(mode)
        if settings and mode == "RGB":
            settings = {"transparency": (0, 0, 255)}
        image.save(tmp_path / part / "cat" / name, **settings)

    data = plain_data(tmp_path)
    data.check(False)
    (trained,) = data.train.epoch(1)
    (evaluated,) = data.test.epoch()
    predicted = v2.functional.pil_to_tensor(read_image(tmp_path / "val/cat" / name))
    assert torch.equal(trained.image, evaluated.image)
    assert torch.equal(evaluated.image, data.test.normalize(predicted[None]))
    assert predicted.float().std() > 20


def test_cielab_is_refused_in_every_use(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
        photograph("LAB").save(tmp_path / part / "cat/a.tif")
    with pytest.raises(UserError, match=r"cannot read 2 of 2 images: .*colours are CIELAB"):
        plain_data(tmp_path).check(False)
    with pytest.raises(ValueError, match="colours are CIELAB"):
        read_image(tmp_path / "val/cat/a.tif")


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, name):
    first = Image.new("RGB", (8, 8), (255, 0, 0))
    second = Image.new("RGB", (8, 8), (0, 0, 255))
    options = {} if name.endswith("gif") else {"lossless": True}
    first.save(tmp_path / name, save_all=True, append_images=[second], duration=50, **options)
    with Image.open(tmp_path / name) as image:
        assert image.n_frames == 2
    assert read_image(tmp_path / name).getpixel((4, 4)) == (255, 0, 0)


def test_a_png_that_is_named_jpg_is_read(train, images):
    for path in sorted(images.rglob("*.png")):
        path.rename(path.with_suffix(".jpg"))
    assert train(images, "run").code == 0


# Batches and folders at their limits.


@pytest.fixture
def small_maps():
    """The model `pooled`, whose batch norm sees one value a channel and image."""

    class Pooled(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten())
            self.fc = nn.Linear(4, num_classes)

        def forward(self, x):
            pooled = self.layers(x)
            return self.fc(pooled), {"feats": [], "preact_feats": [], "pooled_feat": pooled}

    MODELS.add("pooled", Pooled, family="tiny")
    yield "pooled"
    MODELS.remove("pooled", "tiny")


def test_batches_of_an_epoch():
    for number in range(1, 40):
        for size in range(1, 12):
            parts = split_batches(torch.arange(number), size)
            assert torch.equal(torch.cat(parts), torch.arange(number))
            assert len(parts) == num_batches(number, size)
            assert size == 1 or number == 1 or min(map(len, parts)) > 1
            assert max(map(len, parts)) <= size + 1
            if number % size != 1:
                assert all(map(torch.equal, parts, torch.arange(number).split(size)))


@pytest.mark.parametrize("kind", ["resident", "folder"])
def test_a_last_batch_of_one_image(train, train_tiny, small_maps, images, tmp_path, kind):
    """A report on every framework: "Expected more than 1 value per channel when training"."""
    (images / "train/cat/a.png").unlink()
    (images / "val/cat/a.png").unlink()
    opts = ["DISTILLER.STUDENT", small_maps, "DISTILLER.TYPE", "NONE"]
    if kind == "folder":
        done = train(images, "run", *opts, "SOLVER.BATCH_SIZE", 7, "DATASET.TEST.BATCH_SIZE", 7)
    else:
        done = train_tiny("run", *opts, "SOLVER.BATCH_SIZE", 10)
    assert done.code == 0, done.err
    assert len(records(tmp_path / "distill/run")) in (2, 3)


def test_batches_of_one_image_are_explained(train, small_maps, images):
    done = train(images, "run", "DISTILLER.STUDENT", small_maps, "SOLVER.BATCH_SIZE", 1)
    assert_refused(done, "a batch has one image, .*; set another batch size .SOLVER.BATCH_SIZE")


def test_fewer_images_than_a_batch(train, images, tmp_path):
    done = train(images, "run", "SOLVER.BATCH_SIZE", 1000)
    assert done.code == 0, done.err
    assert len(records(tmp_path / "distill/run")) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "no folder .*images/train; store the images as"),
        (lambda root: shutil.rmtree(root / "val"), "no folder .*images/val; store the images as"),
        (lambda root: (root / "val/bird").mkdir(), "class folder .*val/bird has no images"),
        (
            lambda root: shutil.copytree(root / "val/cat", root / "val/bird"),
            "train and val must have the same classes, but only val has 'bird'; add, rename or",
        ),
    ],
    ids=["no folder", "no val", "empty class", "class of val"],
)
def test_a_folder_of_another_form_is_refused(train, images, change, message, tmp_path):
    change(images)
    assert_refused(train(images, "run"), message)
    assert not (tmp_path / "distill").exists()


def test_what_systems_leave_behind_is_no_class_and_no_image(train, images, tmp_path):
    assert train(images, "clean").code == 0
    for part in ("train", "val"):
        for name in (".ipynb_checkpoints", "__MACOSX"):
            shutil.copytree(images / part / "cat", images / part / name)
            shutil.copytree(images / part / "cat", images / part / "dog" / name)
        for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
            (images / part / name).write_bytes(bytes(40))
            (images / part / "cat" / name).write_bytes(bytes(40))
    done = train(images, "other")
    assert (done.code, done.err) == (0, "")
    assert outcome(tmp_path / "distill/other") == outcome(tmp_path / "distill/clean")
