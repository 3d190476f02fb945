"""`edkd softlabels`: the teacher's outputs of all views, computed ahead, then replayed."""

import collections
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from edkd.dataset.sampling import seed_for
from edkd.engine import softlabels as module
from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.memo import parts
from edkd.engine.memo.admin import is_intact
from edkd.engine.memo.files import memo_folders, segment_files
from edkd.engine.memo.memo import TeacherMemo
from edkd.engine.memo.store import Store
from tests.conftest import PLUGIN
from tests.reliability.faults import before_call, kill_at
from tests.runs import assert_refused, outcome, records
from tests.small import TinyNet, noise_folder

VIEWS = 20
"""Of each of 24 training images, so 480 in four batches of the teacher."""


@pytest.fixture
def images(tmp_path):
    """Four classes of six images in train/ and val/."""
    return noise_folder(tmp_path / "images", "abcd", [f"{number}.png" for number in range(6)])


@pytest.fixture
def words(images, tmp_path, tiny_teacher):
    """The words after a command that name images, a teacher and a student."""
    return [
        *("--plugin", str(PLUGIN), "DATASET.TYPE", "tiny_folder", "DATASET.ROOT", str(images)),
        *("DATASET.NUM_WORKERS", "0", "DATASET.VIEWS", str(VIEWS)),
        *("DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", "wide", "DISTILLER.STUDENT", "narrow"),
        *("DISTILLER.TEACHER_CKPT", str(tiny_teacher), "DISTILLER.CHECK_TEACHER", "False"),
        *("SOLVER.EPOCHS", "3", "SOLVER.BATCH_SIZE", "8", "SOLVER.AMP", "off"),
        *("LOG.WANDB", "False", "LOG.TENSORBOARD_FREQ", "0", "LOG.PREFIX", str(tmp_path / "out")),
    ]


@pytest.fixture
def store(tool, words):
    """store(KEY, VALUE, ...): `edkd softlabels` in this process."""
    return lambda *opts: tool("softlabels", *words, *opts)


@pytest.fixture
def train(tool, words):
    """train("a", KEY, VALUE, ...): a run in out/distill/a."""
    return lambda name, *opts: tool("train", *words, "EXPERIMENT.NAME", name, *opts)


@pytest.fixture
def without_teacher(monkeypatch):
    """From its call on, a teacher that runs to fill a cache is an error."""

    def forbid():
        monkeypatch.setattr(TeacherMemo, "fill", before_call(TeacherMemo.fill, 1, fail))

    def fail():
        raise AssertionError("the teacher runs")

    return forbid


def memos(tmp_path):
    return memo_folders(tmp_path / "out" / "teacher_memo")


def content(folder, num_numbers=4):
    """The rows of a cache of float32 logits by key, read without the package."""
    rows = {}
    for path in segment_files(folder):
        raw = path.read_bytes()
        size = len(raw) // (4 + 4 * num_numbers)
        keys = np.frombuffer(raw, np.int32, size)
        values = np.frombuffer(raw, np.float32, offset=4 * size).reshape(size, num_numbers)
        rows |= dict(zip(keys.tolist(), values, strict=True))
    return rows


# Stored ahead, then replayed.


def test_what_is_stored_equals_an_independent_computation(store, tmp_path, images, tiny_teacher):
    """PIL, torchvision and the network alone, for every view of every image."""
    done = store()
    assert done.code == 0, done.err
    first, last = done.out.splitlines()
    assert "wide, 24 images x 20 views, logits stored lossless, 20 bytes each" in first
    assert "0 of 480 are stored, 480 to compute" in first
    assert last == "softlabels: all 480 logits of wide are stored"

    (folder,) = memos(tmp_path)
    rows = content(folder)
    assert sorted(rows) == list(range(480))

    teacher = TinyNet(channels=12).eval()
    teacher.load_state_dict(load_checkpoint(tiny_teacher)["model"])
    steps = [transforms.RandomCrop(8), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    make = transforms.Compose(steps)
    paths = sorted((images / "train").rglob("*.png"))
    shown = []
    for key in range(480):
        torch.manual_seed(seed_for(0, key % VIEWS, key // VIEWS))
        shown.append(make(Image.open(paths[key // VIEWS]).convert("RGB")))
    with torch.no_grad():
        logits, _ = teacher((torch.stack(shown) - 0.5) / 0.25)
    stored = torch.from_numpy(np.stack([rows[key] for key in range(480)]))
    torch.testing.assert_close(stored, logits, rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", [1, 2])
def test_training_replays_without_the_teacher(store, train, tmp_path, without_teacher, seed):
    """The same figures as with the live teacher, but for the rounding of batches of other sizes."""
    assert train("live", "SOLVER.SEED", seed, "TEACHER_MEMO.ENABLED", "False").code == 0
    assert store().code == 0
    without_teacher()
    done = train("replayed", "SOLVER.SEED", seed)
    assert done.code == 0, done.err
    assert "72 of 72 logits are cached or repeat, 0 to compute; stored lossless" in done.out

    runs = [records(tmp_path / f"out/distill/{name}") for name in ("live", "replayed")]
    for live, replayed in zip(*runs, strict=True):
        for key in ("train_loss", "train_loss_kd", "test_loss"):
            assert replayed[key] == pytest.approx(live[key], rel=1e-5)


def test_the_top_is_replayed_within_its_precision(store, train, tmp_path, without_teacher):
    """Three of four classes: the rest is one class, so that only float16 loses something."""
    assert train("live", "TEACHER_MEMO.ENABLED", "False").code == 0
    top = ("TEACHER_MEMO.TOP_K", "3")
    done = store(*top)
    assert "logits stored as topk 3 of 4, float16, 18 bytes each" in done.out
    without_teacher()
    done = train("replayed", *top)
    assert "0 to compute; stored as topk 3 of 4, float16" in done.out

    runs = [records(tmp_path / f"out/distill/{name}") for name in ("live", "replayed")]
    for live, replayed in zip(*runs, strict=True):
        assert replayed["train_loss_kd"] == pytest.approx(live["train_loss_kd"], rel=1e-2, abs=1e-4)
    assert runs[0] != runs[1]


def test_small_images_on_the_device(tool, tiny):
    """71 images with 18 views each, without DATASET.VIEWS."""
    words = [*tiny[:-1], "DISTILLER.TYPE", "KD"]
    done = tool("softlabels", *words)
    assert "71 images x 18 views" in done.out
    assert "all 1278 logits of wide are stored" in done.out
    done = tool("train", *words, "EXPERIMENT.NAME", "run")
    assert "213 of 213 logits are cached or repeat, 0 to compute" in done.out
    again = tool("softlabels", *words)
    assert "1278 of 1278 are stored, 0 to compute" in again.out


def test_two_views(store, train, without_teacher):
    opts = ["DISTILLER.TYPE", "MLKD"]
    done = store(*opts)
    assert done.out.count("softlabels: all 480 logits of wide are stored") == 2, done
    without_teacher()
    done = train("run", *opts)
    assert done.code == 0, done.err
    assert done.out.count("72 of 72 logits are cached or repeat, 0 to compute") == 2


@pytest.mark.parametrize("opts", [[], ["TEACHER_MEMO.TOP_K", "2"]])
def test_a_stopped_run_resumes_bit_for_bit(store, train, tmp_path, monkeypatch, opts):
    assert store(*opts).code == 0
    assert train("whole", *opts).code == 0
    with monkeypatch.context() as patch:
        kill_at(patch, "step", 5)
        assert train("stopped", *opts).code == 143
    assert train("stopped", *opts, "--resume").code == 0
    runs = tmp_path / "out" / "distill"
    assert outcome(runs / "stopped") == outcome(runs / "whole")


def test_what_is_missing_is_computed_in_training(train, tmp_path):
    """A cold cache, a warm one and none that survives give one result."""
    cold = train("cold")
    assert "0 of 72 logits are cached or repeat, 72 to compute" in cold.out
    assert "72 of 72 logits are cached" in train("warm").out
    (folder,) = memos(tmp_path)
    shutil.rmtree(folder)
    assert train("again").code == 0
    runs = [outcome(tmp_path / "out/distill" / name) for name in ("cold", "warm", "again")]
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("opts", [[], ["TEACHER_MEMO.TOP_K", "2"]])
def test_the_device_may_hold_a_part_of_an_epoch(train, tmp_path, monkeypatch, opts):
    """Two batches of three at a time; cold, warm, stopped, and where nothing can be written."""
    assert train("whole", *opts).code == 0
    (folder,) = memos(tmp_path)
    shutil.rmtree(folder)

    row_bytes = 10 if opts else 16
    monkeypatch.setattr(parts, "TABLE_BYTES", 2 * 8 * row_bytes)
    reached = []
    load = TeacherMemo._load_all

    def count(memo, keys, show):
        reached.append((memo.parts.num_rows, len(keys)))
        return load(memo, keys, show)

    monkeypatch.setattr(TeacherMemo, "_load_all", count)
    assert train("cold", *opts).code == 0
    assert reached == [(17, 16), (17, 8)] * 3

    assert train("warm", *opts).code == 0
    with monkeypatch.context() as patch:
        kill_at(patch, "step", 6)
        assert train("stopped", *opts).code == 143
    assert train("stopped", *opts, "--resume").code == 0
    assert train("dry", *opts, "TEACHER_MEMO.MAX_GB", "0", "TEACHER_MEMO.FOLDER", "none").code == 0

    runs = tmp_path / "out" / "distill"
    expected = outcome(runs / "whole")
    for name in ("cold", "warm", "stopped", "dry"):
        assert outcome(runs / name) == expected, name


@pytest.mark.parametrize(
    ("opts", "reason"),
    [
        (["SOLVER.MIXUP", "0.5"], "SOLVER.MIXUP makes new images in each epoch"),
        (["DISTILLER.TYPE", "FITNET", "FITNET.HINT_LAYER", "1"], "the method reads the teacher's"),
        (["DATASET.VIEWS", "0"], "images get new views in each epoch; set DATASET.VIEWS"),
    ],
)
def test_what_cannot_be_stored_runs_the_teacher(train, opts, reason):
    done = train("run", *opts)
    assert done.code == 0, done.err
    assert re.search(rf"teacher cache: off \({reason}.*; the teacher runs in every step", done.out)


# Interrupted, damaged, still being written.


KILLED = """
import os, signal
from edkd.engine.memo import memo
from edkd.engine.memo.store import Store
from tests.reliability.faults import before_call

memo.PART_SECONDS = 0.0
Store.add = before_call(Store.add, 3, lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_kill_costs_the_last_part_alone(server, store, words, tmp_path):
    fault = tmp_path / "fault.py"
    fault.write_text(KILLED)
    code, _ = server.run("softlabels", "--device", "cpu", "--plugin", fault, *words)
    assert code == -signal.SIGKILL
    (folder,) = memos(tmp_path)
    assert sorted(content(folder)) == list(range(256))

    done = store()
    assert "256 of 480 are stored, 224 to compute" in done.out
    assert sorted(content(folder)) == list(range(480))
    assert all(is_intact(path) for path in segment_files(folder))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_computed(store, tmp_path, monkeypatch, number):
    with monkeypatch.context() as patch:
        stop = before_call(TeacherMemo.run, 3, lambda: signal.raise_signal(number))
        patch.setattr(TeacherMemo, "run", stop)
        done = store()
    assert done.code == 128 + number
    assert done.err == (
        "edkd: stopped; finished outputs are stored; the same command continues from here\n"
    )
    (folder,) = memos(tmp_path)
    assert sorted(content(folder)) == list(range(128))  # the first call is that of the sample


def test_training_begins_while_they_are_computed(store, train, tmp_path, monkeypatch):
    """It computes what is absent, and uses what another process stores in the meantime."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    with monkeypatch.context() as patch:
        patch.setattr(TeacherMemo, "fill", before_call(TeacherMemo.fill, 3, fail))
        with pytest.raises(ZeroDivisionError):
            store()
    (folder,) = memos(tmp_path)
    assert len(content(folder)) == 256

    prepare = TeacherMemo.prepare
    seen = []

    def prepare_later(memo, epoch, show):
        if epoch == 2:
            assert store().code == 0
        seen.append((epoch, len(segment_files(memo.store.folder))))
        return prepare(memo, epoch, show)

    monkeypatch.setattr(TeacherMemo, "prepare", prepare_later)
    done = train("run")
    assert done.code == 0, done.err
    (_, first), (_, second), (_, third) = seen
    assert first == 2
    assert second == third  # the third epoch stores nothing: all was there


def fail():
    return 1 / 0


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("damage", [cut, flip])
def test_damaged_parts_are_computed_again(store, train, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    store()
    (folder,) = memos(tmp_path)
    good = {key: row.tobytes() for key, row in content(folder).items()}
    victim = segment_files(folder)[0]
    held = 480 - victim.stat().st_size // 20
    damage(victim)

    done = store()
    assert f"{victim} is damaged or belongs to another cache" in done.out
    assert f"{held} of 480 are stored, {480 - held} to compute" in done.out
    assert {key: row.tobytes() for key, row in content(folder).items()} == good

    damage(segment_files(folder)[0])
    assert train("run").code == 0


# What does not fit is not used.


def test_outputs_of_something_else_are_not_used(store, train, tmp_path, images):
    store()
    (own,) = memos(tmp_path)
    other = tmp_path / "other"
    torch.manual_seed(1)
    torch.save({"model": TinyNet(channels=12).state_dict()}, other)
    changed = shutil.copytree(images, tmp_path / "changed")
    (changed / "train/a/0.png").rename(changed / "train/a/9.png")

    cases = [
        ("the teacher's weights", ["DISTILLER.TEACHER_CKPT", other]),
        ("the training images", ["DATASET.ROOT", changed]),
        ("the views", ["DATASET.VIEWS_SEED", "1"]),
        ("the form .*", ["DATASET.VIEWS", "7"]),
        ("the form .*", ["TEACHER_MEMO.DTYPE", "bf16"]),
    ]
    for number, (reason, opts) in enumerate(cases):
        done = train(str(number), "SOLVER.EPOCHS", 1, "SOLVER.LR_DECAY_STAGES", "[]", *opts)
        line = re.escape(f"teacher cache: {own} is not used, as this run differs in ")
        assert re.search(rf"^{line}{reason}$", done.out, re.MULTILINE), done
        assert "24 to compute" in done.out
        for folder in memos(tmp_path):
            if folder != own:
                shutil.rmtree(folder)
    done = store("DATASET.VIEWS_SEED", "2")
    assert "is not used, as this run differs in the views\n" in done.out


# Refused, before anything is computed.


REFUSED = [
    (["DATASET.VIEWS", "0"], "new views in each epoch; set DATASET.VIEWS to a number, such as 50"),
    (["DISTILLER.TYPE", "NONE"], "DISTILLER.TYPE NONE has no teacher whose outputs could"),
    (["DISTILLER.TYPE", "AT"], "the method reads the teacher's feats"),
    (["SOLVER.MIXUP", "0.5"], "SOLVER.MIXUP makes new images in each epoch"),
    (["TEACHER_MEMO.ENABLED", "False"], "TEACHER_MEMO.ENABLED is False"),
    (["TEACHER_MEMO.TOP_K", "4"], "TOP_K 4 is not below the number of classes, 4"),
    (
        ["TEACHER_MEMO.MAX_GB", "1e-6"],
        "holds 0.0 MB, and 0.0 MB come on top, but TEACHER_MEMO.MAX_GB is 1e-06; increase it",
    ),
]


@pytest.mark.parametrize(("opts", "message"), REFUSED)
def test_what_cannot_be_stored_is_refused(store, tmp_path, opts, message):
    assert_refused(store(*opts), message)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small_is_refused(store, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")(10, 10, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert_refused(store(), "0.0 MB are needed and 0.0 MB are free; make room", code=5)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fails_ends_the_command(store, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "_write", full)
    done = store()
    assert_refused(done, "cannot be written any more, see above; make room and run", code=5)
    assert "nothing more is written" in done.out
    assert "No space left on device" in done.out


def test_nothing_to_do_needs_a_configuration(tool):
    assert_refused(tool("softlabels"), "no teacher: give --cfg FILE, or KEY VALUE pairs")


# Progress.


def test_progress_without_a_terminal(monkeypatch):
    monkeypatch.setattr(module, "SAY_EVERY", 0.0)
    lines = []
    with module.Progress(1000, 200, lines.append) as progress:
        progress.began -= 10
        progress(0)
        progress(200)
        progress.start = 600
        progress(0)
    assert lines[0] == "softlabels: 200 of 1000, unknown time left"
    assert lines[1] == "softlabels: 400 of 1000, 00:30 left"
    assert lines[2] == "softlabels: 600 of 1000, 00:10 left"


# Real photographs.


@pytest.mark.slow
@pytest.mark.needs("data/tiny-imagenet-40")
def test_real_jpeg_files(tool, real_data, tmp_path):
    """Three classes of tiny-imagenet: train a teacher, store the top of its outputs, replay."""
    source = real_data / "data" / "tiny-imagenet-40"
    for part, number in (("train", 6), ("val", 2)):
        for folder in sorted((source / part).iterdir())[:3]:
            target = tmp_path / "images" / part / folder.name
            target.mkdir(parents=True)
            for path in sorted(folder.rglob("*.JPEG"))[:number]:
                shutil.copy(path, target)

    words = ["DATASET.TYPE", "folder", "DATASET.ROOT", tmp_path / "images", "SOLVER.AMP", "off"]
    words += ["DATASET.RESIDENT", "off", "DATASET.FOLDER.CROP", "resized", "DATASET.NUM_WORKERS", 1]
    words += ["DATASET.FOLDER.SIZE", 32]
    words += ["SOLVER.EPOCHS", "1", "SOLVER.BATCH_SIZE", "12", "LOG.WANDB", "False"]
    words += ["LOG.PREFIX", tmp_path / "out", "SOLVER.LR_DECAY_STAGES", "[]"]
    teacher = ["DISTILLER.STUDENT", "cifar/resnet8x4", "EXPERIMENT.NAME", "teacher"]
    assert tool("train", *words, *teacher).code == 0

    words += ["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", "cifar/resnet8x4"]
    words += ["DISTILLER.TEACHER_CKPT", tmp_path / "out/distill/teacher/student_best"]
    words += ["DISTILLER.STUDENT", "cifar/resnet8", "DISTILLER.CHECK_TEACHER", "False"]
    words += ["DATASET.VIEWS", "2", "TEACHER_MEMO.TOP_K", "1"]
    done = tool("softlabels", *words)
    assert "18 images x 2 views, logits stored as topk 1 of 3, float16, 10 bytes" in done.out, done
    done = tool("train", *words, "EXPERIMENT.NAME", "student")
    assert "18 of 18 logits are cached or repeat, 0 to compute" in done.out, done
    (record,) = records(tmp_path / "out/distill/student")
    assert record["train_loss_kd"] > 0
