"""Images whose pixels used to be changed without a word."""

import numpy as np
import pytest
import torch
from PIL import Image

from edkd.dataset import get_dataset
from edkd.dataset.images import read_image
from edkd.errors import UserError
from edkd.notebook.image_folders import prepare_dataloaders
from tests.runs import records
from tests.small import config


@pytest.fixture
def train(tool, tiny):
    """Train `narrow` alone on an image folder: train(folder, name, KEY, VALUE, ...)."""

    def run(folder, name, *opts):
        words = ["DATASET.TYPE", "tiny_folder", "DATASET.ROOT", folder, "DATASET.NUM_WORKERS", 0]
        return tool("train", *tiny, name, *words, "DISTILLER.TYPE", "NONE", *opts)

    return run


def write(folder, make, name="{}.png", count=8):
    """Two classes, dark and bright, in train/ and val/."""
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for label, level in (("dark", 9000), ("bright", 45000)):
            (folder / part / label).mkdir(parents=True)
            for number in range(count):
                values = level + generator.integers(0, 3000, (8, 8))
                make(values).save(folder / part / label / name.format(number))
    return folder


def test_16_bit_images_are_told_apart(train, tmp_path):
    """pytorch/vision issue 2218, pytorch/pytorch issue 20524.

    16-bit gray PNGs were clipped to 255 and appeared as white. They are scaled: two classes that
    differ in brightness alone are learnt.
    """
    folder = write(tmp_path / "deep", lambda values: Image.fromarray(values.astype(np.uint16)))
    assert train(folder, "deep", "SOLVER.EPOCHS", 6, "SOLVER.LR_DECAY_STAGES", "[9]").code == 0
    assert records(tmp_path / "distill/deep")[-1]["test_top1"] == 100


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_scale_stop_before_a_run(train, tmp_path, dtype):
    """Reports of TIFFs of 32-bit integers or floating-point numbers that load as white or black.

    There is no range to scale them by. So they are refused, all at once, by path and with the
    remedy, before anything is written.
    """
    folder = write(tmp_path / "f", lambda values: Image.fromarray(values.astype(dtype)), "{}.tif")
    done = train(folder, "f")
    last_line = done.err.splitlines()[-1]
    assert done.code == 2
    assert "cannot read 32 of 32 images: " in last_line
    assert "no fixed scale; convert it to 8-bit" in last_line
    assert not (tmp_path / "distill").exists()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_training_evaluation_and_notebooks_see_the_same_image(tmp_path, orientation):
    """kohya-ss/sd-scripts issue 1316, and reports of sideways photographs of phones.

    The EXIF orientation was ignored. It is applied, and a transparent palette shows white, in every
    loader alike.
    """
    exif = Image.Exif()
    exif[274] = orientation
    pixels = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3) // 49
    for part in ("train", "val"):
        (folder := tmp_path / "images" / part / "a").mkdir(parents=True)
        image = Image.fromarray(pixels.astype(np.uint8))
        image.save(folder / "0.png", exif=exif)
        image.quantize(8).save(folder / "1.png", exif=exif, transparency=0)

    root = tmp_path / "images"
    cfg = config(
        *("DATASET.TYPE", "tiny_imagenet", "DATASET.ROOT", str(root), "DATASET.NUM_WORKERS", 0)
    )
    data = get_dataset(cfg, torch.device("cpu"))
    data.train.images.transform = data.test.images.transform
    data.train.images.open = data.test.images.open
    _, notebook, _ = prepare_dataloaders(root, num_workers=0)

    for number in (0, 1):
        expected = read_image(root / "train/a" / f"{number}.png")
        scaled = torch.from_numpy(np.asarray(expected).copy()).permute(2, 0, 1)[None]
        for loader in (data.train, data.test):
            batch = next(loader.epoch(1))
            image = batch.image[batch.index.tolist().index(number)]
            assert torch.equal(image, loader.normalize(scaled)[0])
        small = np.asarray(expected.resize((32, 32), Image.Resampling.BILINEAR)).copy()
        mean = (notebook.dataset[number][0] * 0.25 + 0.5).mul(255).round().byte()
        assert torch.equal(mean, torch.from_numpy(small).permute(2, 0, 1))


def test_extensions_of_the_same_formats_are_read(train, tmp_path):
    """Reports of .jfif and .gif files that silently take no part in training."""
    folder = write(tmp_path / "kinds", lambda values: Image.fromarray(values.astype(np.uint16)))
    gray = Image.new("L", (8, 8), 90)
    for name in ("a.jfif", "b.JPE", "c.gif", "d.webp"):
        gray.save(folder / "train/dark" / name, "JPEG" if name[0] in "ab" else None)
    (folder / "train/dark/e.heic").write_bytes(b"?")

    done = train(folder, "kinds", "SOLVER.EPOCHS", 1)
    assert "20 training images, 2 classes" in done.out + done.err
    assert "1 file is skipped (1 with .heic): dark/e.heic; convert images" in done.err


def test_images_of_the_notebooks_loader_are_refused_by_path(tmp_path):
    """Reports of white images from notebooks: refused here by the same rule as in training."""
    write(tmp_path / "f", lambda values: Image.fromarray(values.astype(np.float32)), "{}.tif", 1)
    with pytest.raises(UserError, match=r"cannot read 2 of 2 images: .*0.tif \(floating-point"):
        prepare_dataloaders(tmp_path / "f", num_workers=0)


def test_an_image_of_the_notebooks_loader_that_breaks_later_is_named(tmp_path):
    """The same for a file that is truncated while the notebook runs."""
    write(tmp_path / "f", lambda values: Image.fromarray(values.astype(np.uint16)), "{}.png", 1)
    train, _, _ = prepare_dataloaders(tmp_path / "f", num_workers=0)
    (tmp_path / "f/train/dark/0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read the image .*0.png \(the file is empty\)"):
        list(train)
