"""Files are whole, or as they were: whatever ends the process, and however full the disk is."""

import errno
import io
import itertools
import os
import resource
import shutil
import signal
import statistics
import sys
import time
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from faults import outcome, tree

from edkd.engine import checkpoint
from edkd.engine.checkpoint import load_checkpoint, load_latest, save_checkpoint
from edkd.engine.trainer import Trainer
from edkd.errors import StorageError
from edkd.models import get_model


def student_state(name):
    """What a run with SGD saves of a student for CIFAR-100."""
    torch.manual_seed(0)
    model = get_model("cifar", name, 100)
    momentum = {i: {"momentum_buffer": torch.randn_like(p)} for i, p in enumerate(model.parameters())}
    return {"epoch": 1, "model": model.state_dict(), "optimizer": {"state": momentum}}


def save_and_die(folder, call):
    """In a forked process: save epoch 2, and be killed before a call of its I/O, counted from 1."""
    calls = itertools.count(1)

    def count():
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(frame, event, function):
        of_a_file = isinstance(getattr(function, "__self__", None), io.IOBase)
        if event == "c_call" and (of_a_file or function.__module__ in ("posix", "io", "_io")):
            count()

    class Watched(io.BufferedWriter):  # torch writes to it from C, unseen by `watch`
        def write(self, data):
            count()
            return super().write(data)

    checkpoint.open = lambda path, mode: Watched(io.FileIO(path, mode))
    sys.setprofile(watch)
    save_checkpoint({"epoch": 2, "model": torch.arange(9)}, folder / "latest", keep=folder / "latest.previous")
    sys.setprofile(None)
    os._exit(0)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_kill_at_any_call_of_a_save_leaves_a_checkpoint(tmp_path, figure):
    loads = kills = 0
    while True:
        for epoch in (0, 1):
            save_checkpoint({"epoch": epoch}, tmp_path / "latest", keep=tmp_path / "latest.previous")
        if (child := os.fork()) == 0:
            try:
                save_and_die(tmp_path, kills + 1)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            break
        kills += 1
        loads += load_latest(tmp_path)["epoch"] in (1, 2)
    assert os.WEXITSTATUS(status) == 0
    assert load_checkpoint(tmp_path / "latest")["epoch"] == 2
    figure("R1", f"{loads} of {kills} kills at an I/O call of a save leave a checkpoint that loads")
    assert loads == kills >= 20


@contextmanager
def room_for(size):
    """No file can grow past a size: the system's own refusal, in the middle of a write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, figure):
    old, new = student_state("resnet8"), student_state("resnet8") | {"epoch": 2}
    save_checkpoint(old, tmp_path / "latest", keep=tmp_path / "latest.previous")
    before, kept = tree(tmp_path), 0
    size = len(before["latest"])
    for offset in range(0, size, -(-size // 200)):
        with (
            room_for(offset),
            pytest.raises(StorageError, match=r"latest: File too large; it takes .* MB; the file as it was is kept"),
        ):
            save_checkpoint(new, tmp_path / "latest", keep=tmp_path / "latest.previous")
        kept += tree(tmp_path) == before
    figure("R8", f"{kept} of 200 saves on a disk that fills in the middle leave the last good checkpoint, and no rest")
    assert kept == 200


def test_a_disk_that_turns_read_only(tmp_path, monkeypatch):
    """It refuses to write, and also to remove what was never written."""

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(checkpoint, "open", refuse, raising=False)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StorageError, match="latest: Read-only file system; the file as it was is kept"):
        save_checkpoint({"epoch": 1}, tmp_path / "latest")


def test_a_disk_that_fills_in_the_middle_of_a_run(train, tmp_path, monkeypatch):
    assert train("whole").code == 0
    save, calls = Trainer.save, []

    def full(self, epoch):
        calls.append(1)
        with room_for(1000 if len(calls) == 2 else resource.RLIM_INFINITY):
            save(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", full)
        stopped = train("a")
    assert stopped.code == 5
    assert "File too large; it takes" in stopped.err
    assert train("a", "--resume").code == 0
    assert outcome(tmp_path / "distill/a") == outcome(tmp_path / "distill/whole")


def test_a_disk_that_is_full_at_the_start(train, tmp_path, monkeypatch):
    before = tree(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1_000_000))
    refused = train("a")
    assert refused.code == 5
    assert "the run's checkpoints take up to 3.8 MB, and 1.0 MB are free" in refused.err
    assert tree(tmp_path) == before
    assert not (tmp_path / "distill").exists()


def test_the_room_that_is_asked_for_is_enough_and_not_much_more(train, tmp_path, monkeypatch):
    asked, used = [], []
    monkeypatch.setattr("edkd.engine.run.check_room", lambda folder, size: asked.append(size))
    replace = os.replace

    def measure(source, target):  # just before a new file takes the place of an old one, most is used
        files = Path(source).parent.iterdir()
        used[-1] = max(used[-1], sum(path.stat().st_size for path in files if path.is_file()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", measure)
    for solver, method, keep in (("SGD", "KD", 0), ("Adam", "KD", 0), ("SGD", "NONE", 1), ("SGD", "DML", 1)):
        used.append(0)
        opts = ["SOLVER.TYPE", solver, "DISTILLER.TYPE", method, "LOG.SAVE_CHECKPOINT_FREQ", "1", "LOG.KEEP", keep]
        assert train(f"{solver} {method} {keep}", *opts).code == 0
    for most, size in zip(used, asked, strict=True):
        assert most < size < 2 * most


def test_the_checkpoint_before_a_damaged_one_is_gone_on_with(train, tmp_path):
    assert train("whole").code == train("a", "SOLVER.EPOCHS", "2").code == 0
    latest = tmp_path / "distill/a/latest"
    os.truncate(latest, latest.stat().st_size // 2)
    again = train("a", "--resume")
    assert again.code == 0
    assert again.err.startswith("edkd: warning: ")
    assert "latest.previous" in again.err
    assert (latest.parent / "latest.damaged").exists()
    assert outcome(tmp_path / "distill/a") == outcome(tmp_path / "distill/whole")


def test_numbered_checkpoints_are_kept_as_asked(train, tmp_path):
    assert train("a", "LOG.SAVE_CHECKPOINT_FREQ", "1", "LOG.KEEP", "2").code == 0
    names = {path.name for path in (tmp_path / "distill/a").iterdir()}
    assert {name for name in names if name[-1].isdigit()} == {"epoch_2", "epoch_3", "student_2", "student_3"}


def test_what_a_verified_save_costs(tmp_path, extent, figure):
    for name in ("resnet20", "resnet8x4"):
        state, plain, verified = student_state(name), [], []
        for _ in range(extent(5, 41)):
            for save, seconds in ((torch.save, plain), (verified_save, verified)):
                start = time.perf_counter()
                save(state, tmp_path / save.__name__)
                seconds.append(time.perf_counter() - start)
        a, b = statistics.median(plain), statistics.median(verified)
        size = (tmp_path / "save").stat().st_size / 1e6
        figure(
            "R16",
            f"{name}, {size:.1f} MB: {b / a:.2f} times a plain torch.save, {1e3 * b:.0f} against {1e3 * a:.0f} ms",
        )
        assert b < extent(5, 2) * a  # the short form may run beside other work


def verified_save(state, path):
    save_checkpoint(state, path, keep=path.with_name("previous"))
