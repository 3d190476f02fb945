"""The command check-data: every bad file, what there is, images that are there twice."""

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.processes import PATIENCE
from tests.runs import assert_refused


@pytest.fixture
def images(tmp_path):
    """Two classes of four images in train/ and val/, of 8x6 to 11x6 pixels."""
    generator = np.random.default_rng(0)
    root = tmp_path / "images"
    for part in ("train", "val"):
        for label in ("cat", "dog"):
            (root / part / label).mkdir(parents=True)
            for number in range(4):
                pixels = generator.integers(0, 256, (6, 8 + number, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{number}.png")
    return root


def check(tool, *words):
    return tool("check_data", *words, "--workers", 0)


def test_a_sound_folder(tool, images):
    Image.new("L", (8, 6), 9).save(images / "train/cat/0.png")
    done = check(tool, images)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "train: 8 images in 2 classes, 4 to 4 in a class",
        "  width 8 / 9 / 11, height 6 / 6 / 6 (minimum, median, maximum)",
        "  modes: 7 RGB, 1 L",
        "val: 8 images in 2 classes, 4 to 4 in a class",
        "  width 8 / 9 / 11, height 6 / 6 / 6 (minimum, median, maximum)",
        "  modes: 8 RGB",
        "nothing is wrong",
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_bad_file_is_listed(tool, images, workers):
    """Those with damage in their middle, too, which no check before a run finds."""
    for number in range(4):
        (images / "train/cat" / f"{number}.png").write_bytes(b"")
    (images / "val/dog/0.png").write_text("404")
    middle = bytearray((images / "val/dog/1.png").read_bytes())
    middle[60:90] = bytes(30)
    (images / "val/dog/1.png").write_bytes(middle)
    (images / "val/dog/2.png").unlink()
    (images / "val/dog/2.png").symlink_to(images / "nowhere.png")
    Image.new("1", (20000, 15000)).save(images / "val/dog/3.png")

    done = tool("check_data", images, "--workers", workers)
    lines = done.out.splitlines()
    assert lines[:4] == [
        f"cannot read {images}/train/cat/{number}.png (the file is empty)" for number in range(4)
    ]
    assert lines[4] == (
        f"cannot read {images}/val/dog/0.png (no image that the installed Pillow can read)"
    )
    assert [line.split(" (")[0][-5:] for line in lines[5:8]] == ["1.png", "2.png", "3.png"]
    assert "its 300000000 pixels are more than 178956970" in lines[7]
    assert_refused(done, f"{images}: unreadable images .8.; the lines above name them")


def test_images_that_are_there_twice(tool, images):
    """A label that contradicts itself, and a test image that was trained on."""
    shutil.copy(images / "train/cat/1.png", images / "train/dog/copy.png")
    shutil.copy(images / "train/cat/2.png", images / "train/cat/copy.png")
    shutil.copy(images / "train/dog/3.png", images / "val/dog/3.png")
    done = check(tool, images)
    assert done.out.splitlines()[:2] == [
        f"the same image under two classes: {images}/train/cat/1.png, {images}/train/dog/copy.png",
        f"the same image in two parts: {images}/train/dog/3.png, {images}/val/dog/3.png",
    ]
    assert_refused(done, "images under two classes .1., images in two parts .1.; the lines above")


def test_the_parts_beside_the_training_images(tool, images):
    """val chooses the epoch and test reports: an image in both is chosen by what is reported."""
    shutil.copytree(images / "val", images / "test")
    shutil.copy(images / "val/cat/0.png", images / "val/dog/copy.png")

    done = check(tool, images)
    assert f"two classes: {images}/val/cat/0.png, {images}/val/dog/copy.png" in done.out
    assert f"two parts: {images}/val/cat/1.png, {images}/test/cat/1.png" in done.out


def test_many_images_that_are_there_twice(tool, images):
    shutil.rmtree(images / "val")
    shutil.copytree(images / "train", images / "val")
    for number in range(4):
        shutil.copy(images / f"train/cat/{number}.png", images / f"train/cat/copy{number}.png")
        shutil.copy(images / f"val/cat/{number}.png", images / f"val/cat/copy{number}.png")
    done = check(tool, images)
    assert "and 2 more\n" in done.out
    assert_refused(done, "images in two parts .12.")


def test_classes(tool, images):
    shutil.copytree(images / "train/cat", images / "train/bird")
    shutil.rmtree(images / "train/cat")
    (images / "val/bird").mkdir()
    (images / "val/.ipynb_checkpoints").mkdir()
    (images / "train/dog/film.mp4").write_bytes(b"?")
    (images / "val").rename(images / "Valid")
    done = check(tool, images)
    assert done.out.splitlines()[:2] == [
        f"no images in {images}/Valid/bird",
        f"no class 'cat' in {images}/train",
    ]
    assert "1 file is skipped (1 with .mp4): dog/film.mp4" in done.out
    assert "Valid: 8 images in 3 classes, 0 to 4 in a class" in done.out
    assert_refused(done, "empty classes .1., classes that differ .1.; the lines above")


def test_a_folder_of_classes(tool, images):
    done = check(tool, images / "train")
    assert done.code == 0
    assert f"{images}/train: 8 images in 2 classes" in done.out
    assert_refused(
        check(tool, images / "train/cat"), "train/cat has images, but no folders in it; store"
    )
    assert_refused(check(tool, images / "nothing"), "no folder .*nothing; correct the path")
    assert_refused(tool("check_data", images, "--workers", -1), "--workers -1: give 0, or a")


@pytest.mark.slow
def test_it_takes_the_parts_that_training_takes(tool, images):
    (images / "test").mkdir()
    shutil.copy(images / "val/cat/0.png", images / "test")
    done = check(tool, images)
    assert done.code == 0
    assert "test is not used, as its images are not in class folders" in done.err

    (images / "train").rename(images / "training")
    assert_refused(check(tool, images), "has test, training, val, but no train; store the images")


def wait_for_workers(running, count):
    """Wait until a command has started its worker processes."""
    listed = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    deadline = time.monotonic() + PATIENCE
    while len(listed.read_text().split()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)  # they import what they need


@pytest.mark.slow
def test_ctrl_c_ends_it(server, tmp_path):
    """At once, in one line, and without processes that are left."""
    large = Image.effect_noise((3000, 3000), 90)
    for number in range(1000):
        (tmp_path / "a").mkdir(exist_ok=True)
        path = tmp_path / "a" / f"{number}.png"
        if number:
            path.hardlink_to(tmp_path / "a/0.png")
        else:
            large.save(path)

    running = server.start("check_data", tmp_path, "--workers", 2, fresh=True)
    wait_for_workers(running, count=2)
    start = time.monotonic()
    running.kill_group(signal.SIGINT)
    assert running.wait() == 130
    assert time.monotonic() - start < 20
    assert running.err == "edkd: stopped\n"
    assert running.out == ""


@pytest.mark.needs("data/tiny-imagenet-40")
@pytest.mark.slow
def test_real_images(tool, real_data):
    """8000 photographs of Tiny-ImageNet; one of them is there under two labels."""
    done = tool("check_data", real_data / "data/tiny-imagenet-40")
    assert "train: 6000 images in 40 classes, 150 to 150 in a class" in done.out
    assert "modes: 5967 RGB, 33 L" in done.out
    assert "n01983481_199.JPEG, " in done.out.splitlines()[0]
    assert_refused(done, "images under two classes .1.; the lines above name them")
