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

from edkd.engine import checkpoint
from edkd.engine.checkpoint import load_checkpoint, load_latest, save_checkpoint
from edkd.engine.run_files import RunFiles
from edkd.errors import StorageError
from edkd.models import get_model
from tests.runs import outcome, tree


def student_state(name):
    """What a run with SGD saves of a student for CIFAR-100."""
    torch.manual_seed(0)
    model = get_model("cifar", name, 100)
    momentum = {
        i: {"momentum_buffer": torch.randn_like(p)} for i, p in enumerate(model.parameters())
    }
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
    state = {"epoch": 2, "model": torch.arange(9)}
    save_checkpoint(state, folder / "latest", keep=folder / "latest.previous")
    sys.setprofile(None)
    os._exit(0)


def loads_after_kill(folder, call):
    """Whether a checkpoint loads after a kill at that call; None where the save ended before it."""
    for epoch in (0, 1):
        save_checkpoint({"epoch": epoch}, folder / "latest", keep=folder / "latest.previous")

    child = os.fork()
    if child == 0:
        try:
            save_and_die(folder, call)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)

    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL)
    return load_latest(folder)["epoch"] in (1, 2) if code else None


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_kill_at_any_call_of_a_save_leaves_a_checkpoint(tmp_path, extent, figure):
    """In the short form, at every 9th call, and at each of the last ones, which rename."""
    stride = extent(9, 1, all_=1)
    loads = []

    def kill_from(call, stride):
        """The first call that a save does not reach."""
        while (found := loads_after_kill(tmp_path, call)) is not None:
            loads.append(found)
            call += stride
        return call

    beyond = kill_from(1, stride)
    kill_from(beyond - stride + 1, 1)
    assert load_checkpoint(tmp_path / "latest")["epoch"] == 2

    kills = len(loads)
    figure(
        "R1",
        f"{sum(loads)} of {kills} kills at an I/O call of a save leave a checkpoint that loads",
    )
    assert sum(loads) == kills >= 20


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
    old = student_state("resnet8")
    new = student_state("resnet8") | {"epoch": 2}
    save_checkpoint(old, tmp_path / "latest", keep=tmp_path / "latest.previous")
    before = tree(tmp_path)
    size = (tmp_path / "latest").stat().st_size

    kept = 0
    message = r"latest: File too large; it takes .* MB; the old file is kept"
    for offset in range(0, size, -(-size // 200)):
        with room_for(offset), pytest.raises(StorageError, match=message):
            save_checkpoint(new, tmp_path / "latest", keep=tmp_path / "latest.previous")
        kept += tree(tmp_path) == before
    figure(
        "R8",
        f"{kept} of 200 saves on a disk that fills in the middle leave the last good checkpoint, "
        "and no rest",
    )
    assert kept == 200


def test_a_disk_that_turns_read_only(tmp_path, monkeypatch):
    """It refuses to write, and also to remove what was never written."""

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(checkpoint, "open", refuse, raising=False)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StorageError, match="latest: Read-only file system; the old file is kept"):
        save_checkpoint({"epoch": 1}, tmp_path / "latest")


def test_a_disk_that_fills_in_the_middle_of_a_run(train, tmp_path, monkeypatch):
    assert train("whole").code == 0
    save = RunFiles.save_epoch
    calls = []

    def full(self, epoch):
        calls.append(1)
        with room_for(1000 if len(calls) == 2 else resource.RLIM_INFINITY):
            save(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(RunFiles, "save_epoch", full)
        stopped = train("a")
    assert stopped.code == 5
    assert "File too large; it takes" in stopped.err
    assert train("a", "--resume").code == 0
    assert outcome(tmp_path / "distill/a") == outcome(tmp_path / "distill/whole")


def test_a_disk_that_is_full_at_the_start(tool, digits, tmp_path, monkeypatch):
    before = tree(tmp_path)
    usage = namedtuple("Usage", "free")(1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused = tool("train", *digits, "a")
    assert refused.code == 5
    assert "the run's checkpoints take up to 3.8 MB, and 1.0 MB are free" in refused.err
    assert tree(tmp_path) == before
    assert not (tmp_path / "distill").exists()


@pytest.mark.parametrize(
    ("solver", "method", "keep"),
    [("SGD", "KD", 0), ("Adam", "KD", 0), ("SGD", "NONE", 1), ("SGD", "DML", 1)],
)
def test_the_required_room_is_enough_and_not_much_more(
    train, monkeypatch, extent, solver, method, keep
):
    required = []
    most = [0]
    replace = os.replace

    def measure(source, target):
        """Just before a new file takes the place of an old one, most is used."""
        files = Path(source).parent.iterdir()
        most[0] = max(most[0], sum(path.stat().st_size for path in files if path.is_file()))
        replace(source, target)

    monkeypatch.setattr("edkd.engine.run.check_room", lambda folder, size: required.append(size))
    monkeypatch.setattr(os, "replace", measure)
    opts = ["SOLVER.TYPE", solver, "DISTILLER.TYPE", method]
    opts += ["LOG.SAVE_CHECKPOINT_FREQ", "1", "LOG.KEEP", keep]
    opts += extent(["DISTILLER.STUDENT", "heavy"], [])
    assert train("a", *opts).code == 0
    assert most[0] < required[0] < 2 * most[0]


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(train, tmp_path):
    assert train("whole").code == train("a", "SOLVER.EPOCHS", "2").code == 0
    latest = tmp_path / "distill/a/latest"
    os.truncate(latest, latest.stat().st_size // 2)
    again = train("a", "--resume")
    assert again.code == 0
    assert again.err.startswith("edkd: warning: ")
    assert "latest.previous" in again.err
    assert (latest.parent / "latest.damaged").exists()
    assert outcome(tmp_path / "distill/a") == outcome(tmp_path / "distill/whole")


def test_the_newest_numbered_checkpoints_are_kept(train, tmp_path):
    assert train("a", "LOG.SAVE_CHECKPOINT_FREQ", "1", "LOG.KEEP", "2").code == 0
    names = {path.name for path in (tmp_path / "distill/a").iterdir()}
    numbered = {name for name in names if name[-1].isdigit()}
    assert numbered == {"epoch_2", "epoch_3", "student_2", "student_3"}


def test_the_cost_of_a_verified_save(tmp_path, extent, figure):
    for name in ("resnet20", "resnet8x4"):
        state = student_state(name)
        plain = []
        verified = []
        for _ in range(extent(5, 41)):
            for save, seconds in ((torch.save, plain), (verified_save, verified)):
                start = time.perf_counter()
                save(state, tmp_path / save.__name__)
                seconds.append(time.perf_counter() - start)

        a, b = statistics.median(plain), statistics.median(verified)
        size = (tmp_path / "save").stat().st_size / 1e6
        figure(
            "R16",
            f"{name}, {size:.1f} MB: {b / a:.2f} times a plain torch.save, "
            f"{1e3 * b:.0f} instead of {1e3 * a:.0f} ms",
        )
        assert b < extent(5, 2.5) * a  # the short form may run beside other work


def verified_save(state, path):
    save_checkpoint(state, path, keep=path.with_name("previous"))
