"""Teachers, images and labels that make a loss NaN, after public reports."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edkd
from edkd.engine.checkpoint import save_checkpoint
from edkd.engine.memo.files import segment_files
from edkd.engine.nonfinite_cause import cause_in
from edkd.errors import UserError
from edkd.types import Batch
from tests.runs import assert_refused
from tests.small import TinyNet, batch

HUGE = 3e38


def teacher_file(tmp_path, change):
    """Weights of `wide` with a change."""
    torch.manual_seed(0)
    state = TinyNet(channels=12).state_dict()
    change(state)
    save_checkpoint({"model": state}, tmp_path / "t.pth")
    return tmp_path / "t.pth"


def with_value(key, value):
    def change(state):
        state[key].view(-1)[0] = value

    return change


@pytest.mark.parametrize(
    ("key", "value"),
    [("conv.weight", math.nan), ("fc.bias", math.inf), ("bn.running_var", math.nan)],
)
def test_weights_that_are_not_finite(tool, train_tiny, tmp_path, key, value):
    """CASIA-LMC-Lab/TDKD #1: the loss is NaN, and the first advice is to look at the teacher.

    A teacher that diverged was trained with, up to "lower SOLVER.LR". It is refused when it is
    loaded, by its file and the first such tensor; so is a student that is evaluated.
    """
    file = teacher_file(tmp_path, with_value(key, value))
    done = train_tiny("a", "DISTILLER.TYPE", "KD", "DISTILLER.TEACHER_CKPT", file)
    assert_refused(done, rf"t.pth: 1 of \d+ values of {key} are NaN or infinite")
    assert not (tmp_path / "distill").exists()

    done = tool("eval", "-m", "wide", "-d", "tiny", "-c", file)
    assert_refused(done, f"values of {key} are NaN or infinite")


def test_values_too_large_for_the_network(train_tiny, tmp_path):
    """A float64 file has a value that float32 cannot hold: it would become infinite."""

    def change(state):
        state["fc.bias"] = state["fc.bias"].double() + 1e300

    done = train_tiny(
        "a", "DISTILLER.TYPE", "KD", "DISTILLER.TEACHER_CKPT", teacher_file(tmp_path, change)
    )
    assert_refused(done, "values of fc.bias are NaN or infinite")


def huge_logits(state):
    """Weights that are finite, and logits that are not."""
    state["fc.weight"].fill_(HUGE)
    state["bn.bias"].fill_(HUGE)


def test_logits_that_are_not_finite_are_not_cached(train_tiny, tmp_path):
    """MakazhanAlpamys/Soup #887: a broken teacher trains silently, as its logits are not checked.

    Logits that are not finite are not cached. The message names the teacher and the image.
    """
    file = teacher_file(tmp_path, huge_logits)
    memos = tmp_path / "memos"
    opts = ["DISTILLER.TEACHER_CKPT", file, "TEACHER_MEMO.FOLDER", memos]
    done = train_tiny("a", "DISTILLER.TYPE", "KD", *opts)
    assert_refused(
        done, "the teacher wide returns logits that are NaN or infinite for training image", 3
    )
    assert "SOLVER.LR" not in done.err
    assert [file for memo in memos.glob("*") for file in segment_files(memo)] == []


def test_logits_too_large_for_the_cache(train_tiny, tmp_path):
    """Logits that fit float32 but not the cache's type would become infinite: the key is named."""

    def change(state):
        state["fc.bias"].fill_(1e6)

    opts = ["DISTILLER.TEACHER_CKPT", teacher_file(tmp_path, change)]
    opts += ["TEACHER_MEMO.FOLDER", tmp_path / "memos", "TEACHER_MEMO.DTYPE", "fp16"]
    done = train_tiny("a", "DISTILLER.TYPE", "KD", *opts)
    assert_refused(done, "too large for torch.float16; set TEACHER_MEMO.DTYPE fp32", 3)


def test_a_teacher_without_a_cache(train_tiny, tmp_path):
    """The same teacher, run in each step: its logits are named as the cause, not the rate."""
    opts = ["DISTILLER.TEACHER_CKPT", teacher_file(tmp_path, huge_logits)]
    done = train_tiny("a", "DISTILLER.TYPE", "KD", *opts, "TEACHER_MEMO.ENABLED", "False")
    assert_refused(
        done, "the teacher returns logits that are NaN or infinite for training image", 3
    )
    assert "lower SOLVER.LR" not in done.err


def test_networks_from_python(tmp_path):
    """A teacher that is given to `distill` as a module is checked, as a file is."""
    images = torch.randn(16, 3, 8, 8)
    loader = DataLoader(TensorDataset(images, torch.arange(16) % 4), 8)
    teacher = TinyNet()
    nn.init.constant_(teacher.fc.bias, math.nan)
    with pytest.raises(UserError, match="the teacher TinyNet has values in fc.bias that are NaN"):
        edkd.distill(TinyNet(), teacher, loader, loader, output=tmp_path)
    assert list(tmp_path.iterdir()) == []


# The cause in a batch.


def test_the_cause_is_named():
    """A NaN pixel or a label that is no class is the cause, not the learning rate."""
    good = batch(8)
    assert cause_in(good, [TinyNet().eval()], 4) == ""

    image = good.image.clone()
    image[3, 0, 0, 0] = math.nan
    bad = Batch(image, good.target, torch.arange(10, 18))
    assert cause_in(bad, [], 4).startswith("training image 13 has values that are NaN")
    assert cause_in(Batch(image, good.target), [], 4).startswith("image 3 of the batch has")

    target = good.target.clone()
    target[5] = 4
    bad = Batch(good.image, target, good.index)
    assert cause_in(bad, [], 4).startswith("the label of training image 5 is not")

    soft = torch.full((8, 4), 0.25)
    assert cause_in(Batch(good.image, soft), [], 4) == ""
    soft[1, 2] = math.nan
    assert cause_in(Batch(good.image, soft), [], 4).startswith("the label of image 1 of the batch")
