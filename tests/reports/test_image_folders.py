"""Folders as people have them, other data on resume, and images that cannot be read."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset, TensorDataset

import edkd
from edkd.dataset import readability
from edkd.engine.checkpoint import load_checkpoint, save_checkpoint
from tests.runs import assert_refused, outcome, records
from tests.small import TinyNet, noise_folder, tiny_images

REPLACE = ("DATASET.ON_BAD_IMAGE", "replace")


@pytest.fixture
def train(train_on):
    """Train on an image folder: train(folder, name, KEY, VALUE, ...)."""
    return train_on


@pytest.fixture
def images(tmp_path):
    """Two classes of eight images in train/ and val/; all files have the same size."""
    return noise_folder(tmp_path / "images", "ab", [f"{number}.bmp" for number in range(8)])


@pytest.fixture
def runs(tmp_path):
    """The folder of the runs."""
    return tmp_path / "distill"


def break_in_the_middle(path):
    """A PNG whose pixels are damaged, though it starts and ends as it should."""
    Image.open(path).save(path, "PNG")
    content = bytearray(path.read_bytes())
    middle = content.index(b"IDAT") + 20
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(bytes(content))


# Folders.


def test_hidden_folders_are_no_classes(train, images, runs):
    """pytorch/vision issue 2831, open-mmlab/mmpretrain issue 507, bghira/SimpleTuner issue 94.

    `.ipynb_checkpoints` became a class, its copies were trained on, and AppleDouble files ended a
    run. Hidden entries are skipped, and the first line of a run has the number of classes.
    """
    assert train(images, "clean").code == 0
    for part in ("train", "val"):
        shutil.copytree(images / part / "a", images / part / ".ipynb_checkpoints")
        shutil.copytree(images / part / "a", images / part / "b" / ".ipynb_checkpoints")
    (images / "train/a/._0.bmp").write_bytes(b"\x00\x05\x16\x07" + bytes(60))

    done = train(images, "hidden")
    assert "tiny_folder: 16 training images, 2 classes" in done.out + done.err
    assert outcome(runs / "hidden") == outcome(runs / "clean")


# Other data.


def swap(root):
    for part in ("train", "val"):
        (root / part / "a").rename(root / part / "c")
        (root / part / "b").rename(root / part / "a")
        (root / part / "c").rename(root / part / "b")


def rename(root):
    for part in ("train", "val"):
        (root / part / "b").rename(root / part / "dog")


def other_pixels(path):
    image = Image.open(path)
    image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "the class names differ: class 1 was 'b' and is now 'dog'; use the same data set"),
        (swap, "files of the training images differ .* use the same files again"),
        (
            lambda root: (root / "train/a/0.bmp").rename(root / "train/a/8.bmp"),
            "names of the training images differ .* put back the files that are missing",
        ),
        (lambda root: other_pixels(root / "train/b/7.bmp"), "files of the training images differ"),
        (lambda root: other_pixels(root / "val/b/7.bmp"), "files of the test images differ"),
        (
            lambda root: (root / "train/a/0.bmp").unlink(),
            "number of training images 16, and now it is 15; put back the files",
        ),
    ],
    ids=["renamed", "swapped", "other names", "other pixels", "other test pixels", "removed"],
)
def test_other_images_are_refused_on_resume(train, images, change, message):
    """Reports like facebookresearch/deit issue 130: labels that no longer belong to the classes.

    Renamed or swapped classes, and other pictures with the same counts, were accepted by --resume.
    They are refused, and the message names what differs.
    """
    assert train(images, "run").code == 0
    change(images)
    assert_refused(train(images, "run", "SOLVER.EPOCHS", 2, "--resume"), f"--resume: .*{message}")


def test_moved_images_and_older_runs_resume(train, images, runs, tmp_path):
    """A data set may move; and runs that older versions saved have no hashes to compare."""
    assert train(images, "run").code == 0
    moved = images.rename(tmp_path / "moved")
    assert train(moved, "run", "SOLVER.EPOCHS", 2, "--resume").code == 0

    state = load_checkpoint(runs / "run/latest")
    old = ("number of classes", "number of training images", "precision", "teacher")
    old += ("split for the best epoch",)
    state["identity"] = {name: state["identity"][name] for name in old}
    save_checkpoint(state, runs / "run/latest")
    rename(moved)
    assert train(moved, "run", "SOLVER.EPOCHS", 3, "--resume").code == 0
    assert len(records(runs / "run")) == 3


def test_a_student_knows_its_data_set(train, images, runs):
    """Reports of confused labels after training: the file of a student has names and data set."""
    assert train(images, "run").code == 0
    student = load_checkpoint(runs / "run/student_best")
    assert (student["dataset"], student["class_names"]) == ("tiny_folder", ["a", "b"])


@pytest.mark.parametrize("kind", ["tensors", "subset"])
def test_other_tensors_are_refused_on_resume(tmp_path, kind):
    """The same for the loaders of a caller, as far as their data set can be compared."""

    def run(seed, epochs, resume=False):
        images = tiny_images(16, seed=1 if kind == "subset" else seed)
        data = TensorDataset(images.image.float() / 255, images.target)
        if kind == "subset":
            data = Subset(data, range(seed, seed + 8))
        settings = dict(prefix=str(tmp_path), wandb=False, amp="off", resume=resume, epochs=epochs)
        loader = DataLoader(data, 8)
        return edkd.distill(TinyNet(), None, loader, loader, "NONE", device="cpu", **settings)

    run(1, 1)
    assert len(records(Path(run(1, 2, resume=True)["folder"]))) == 2
    with pytest.raises(edkd.errors.UserError, match="images of train_loader differ from those"):
        run(2, 3, resume=True)


# Images that cannot be read.


def test_all_bad_images_are_named_before_a_run(train, images, runs):
    """pytorch/vision issue 138, eg4000/SKU110K_CVPR19 issue 23, qualcomm/aimet issue 1685.

    A truncated image ended a run after hours, one file at a time. All such files are found before
    anything is written; without them, the same command runs.
    """
    bad = [images / "train/a/0.bmp", images / "train/b/7.bmp", images / "val/b/3.bmp"]
    bad[0].write_bytes(bad[0].read_bytes()[:100])
    bad[1].write_bytes(b"")
    bad[2].unlink()
    bad[2].symlink_to(images / "nowhere")

    done = train(images, "run")
    assert_refused(done, "cannot read 3 of 32 images: .*0.bmp .*7.bmp .*3.bmp .*; repair or remove")
    assert not runs.exists()
    for path in bad:
        path.unlink()
    assert train(images, "run").code == 0


def test_many_bad_images_are_listed(train, images):
    """The message names the first ones; a line for each one comes before it."""
    for path in (images / "train/a").iterdir():
        path.write_bytes(b"")
    *lines, last = train(images, "run").err.splitlines()
    assert [line.split("/train/a/")[1][0] for line in lines] == list("01234567")
    assert "2.bmp (the file is empty) and 5 more; repair or remove" in last


@pytest.mark.parametrize("replacement", ["kept", "repaired", "emptied", "removed"])
def test_a_run_continues_without_an_image_that_breaks(train, images, runs, replacement):
    """lucidrains/stylegan2-pytorch issue 7: an hour of training lost to one truncated image.

    The stopped run keeps its steps. The file may stay, be repaired, or be emptied: with
    DATASET.ON_BAD_IMAGE replace, --resume continues. After its removal, the message says how.
    """
    bad = images / "train/a/5.bmp"
    sound = bad.read_bytes()
    break_in_the_middle(bad)
    stopped = train(images, "run", "SOLVER.SEED", 4)
    assert_refused(stopped, r"cannot read 1 of 32 images: .*5.bmp \(.*--resume, leave the files")
    assert load_checkpoint(runs / "run/latest")["progress"]["step"] > 0

    if replacement == "repaired":
        bad.write_bytes(sound)
    elif replacement == "emptied":
        bad.write_bytes(b"")
    elif replacement == "removed":
        bad.unlink()
        refused = train(images, "run", "SOLVER.SEED", 4, *REPLACE, "--resume")
        assert_refused(refused, "an unreadable file that was removed, put an empty one of its name")
        bad.touch()

    done = train(images, "run", "SOLVER.SEED", 4, *REPLACE, "--resume")
    assert done.code == 0
    assert len(records(runs / "run")) == 1
    assert ("5.bmp" in done.err) == (replacement != "repaired")


def test_large_data_sets_are_checked_when_an_image_breaks(train, images, monkeypatch):
    """Above a number of images, the files are not opened before a run, but all bad ones are named.

    The first of each class is opened, to tell the data set from others.
    """
    monkeypatch.setattr("edkd.dataset.folder_checks.LIMIT", 31)
    for path in (images / "train/a/5.bmp", images / "train/b/5.bmp", images / "val/b/5.bmp"):
        path.write_bytes(path.read_bytes()[:60])
    assert_refused(train(images, "run"), "cannot read 3 of 32 images: ")
    assert train(images, "run", *REPLACE, "--resume").code == 0
    other_pixels(images / "val/b/0.bmp")
    assert_refused(train(images, "run", "SOLVER.EPOCHS", 2, "--resume"), "files of the test images")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp", "a.bmp", "a.tif", "a.ppm"])
def test_every_cut_is_found_and_no_sound_file_is_refused(tmp_path, name):
    """A scan that decodes nothing: cut files are found, and endings that viewers accept are not."""
    path = tmp_path / name
    pixels = torch.randint(256, (40, 40, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    sound = path.read_bytes()
    assert readability.probe(str(path)).is_complete

    for trailer in (bytes(10), bytes(1000), b"\r\n", b"SEFT" * 200):
        path.write_bytes(sound + trailer)
        assert readability.unreadable([str(path)]) == []
    for length in (0, 1, 30, len(sound) // 2, len(sound) - 300):
        path.write_bytes(sound[:length])
        assert [bad.path for bad in readability.unreadable([str(path)])] == [str(path)]


# Mistakes in folders.


def test_evaluation_reads_the_test_images_alone(tool, train, images, runs):
    """A kind of report: a damaged training image blocks the evaluation of a trained student."""
    assert train(images, "run").code == 0
    (images / "train/a/0.bmp").write_bytes(b"")
    done = tool("eval", runs / "run")
    assert done.code == 0, done.err
    assert "top-1" in done.out

    (images / "val/b/1.bmp").write_bytes(b"")
    assert_refused(tool("eval", runs / "run"), r"cannot read 1 of 16 images: \S+val/b/1.bmp")
    assert_refused(train(images, "other"), r"cannot read 2 of 32 images: .*train/a/0.bmp.*val/b/1")


def test_training_images_in_the_test_set(train, images):
    """A kind of report: `val` is a copy of `train`, or a link to it, and the accuracy is 100 %."""
    shutil.rmtree(images / "val")
    shutil.copytree(images / "train", images / "val")
    done = train(images, "run")
    assert done.code == 0
    assert "16 of 16 test images are training images, too" in done.err


def test_images_that_only_start_alike_are_not_the_same(train, images):
    """Borders of one colour: the start and the end of all files are equal, their middle is not."""
    for number, path in enumerate(sorted(images.rglob("*.bmp"))):
        pixels = np.zeros((80, 80, 3), dtype=np.uint8)
        pixels[40] = number
        Image.fromarray(pixels).save(path)
    assert "training images, too" not in train(images, "run").err


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("caf\u00e9", "cafe\u0301"), "the names differ in Unicode form alone"),
        (("Cat", "cat"), "the names differ in case alone"),
    ],
    ids=["Unicode", "case"],
)
def test_class_names_that_look_alike(train, images, names, message):
    """A kind of report: "only train has X and only val has X" after a copy from another system."""
    for part, name in zip(("train", "val"), names, strict=True):
        (images / part / "b").rename(images / part / name)
    assert_refused(train(images, "run"), message)


def test_a_val_folder_that_was_not_sorted(train, images):
    """Tiny-ImageNet as it is downloaded: all images of val/ are in val/images/."""
    (images / "val/a").rename(images / "val/images")
    shutil.rmtree(images / "val/b")
    assert_refused(train(images, "run"), "sort the images of val/images into one folder per class")


def test_classes_that_are_one_level_too_deep(train, images):
    """A kind of report: 100 % from the first epoch, since train/ holds one folder with classes."""
    for part in ("train", "val"):
        (images / part).rename(images / "part")
        (images / part).mkdir()
        (images / "part").rename(images / part / "all")
    assert "has a single class, 'all'" in train(images, "run").err


def test_an_image_that_is_too_small(train, images):
    """A kind of report: "cannot read" about a sound image that is smaller than the crop."""
    Image.new("RGB", (5, 4)).save(images / "train/a/0.bmp")
    done = train(images, "run")
    assert done.code == 2
    assert "the transforms of the data set fail for its 5x4 pixels: Required crop size" in done.err
