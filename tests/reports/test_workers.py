"""Data workers for which the system has too little: one line that names it, exit code 4."""

import errno
import multiprocessing.synchronize
import os
import resource
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from edkd.dataset.workers import start_worker, supervise
from edkd.engine.checkpoint import load_checkpoint
from edkd.errors import WorkerError
from tests.runs import outcome

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="this system does not list open files in /proc"
)


class Images(Dataset):
    def __len__(self):
        return 400

    def __getitem__(self, number):
        return torch.zeros(100)


def open_files():
    return len(os.listdir("/proc/self/fd"))


def no_file_left(worker):
    start_worker(worker)
    limit = open_files() - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def no_thread_left(worker):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    start_worker(worker)
    threading.Thread.start = refuse


def dies_by(number):
    def die(worker):
        start_worker(worker)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)  # torch's own handler prints lines
        os.kill(os.getpid(), number)

    return die


class NotPicklable(Images):
    def __getitem__(self, number):
        return lambda: number


def failure(init=start_worker, images=None, collate=None):
    """The message of the WorkerError of a loader with two workers."""
    loader = DataLoader(
        images or Images(), 10, num_workers=2, worker_init_fn=init, timeout=20, collate_fn=collate
    )
    kept = []
    with pytest.raises(WorkerError) as caught:
        kept += supervise(loader)
    text = str(caught.value)
    assert "DATASET.NUM_WORKERS 0" in text
    return text


@pytest.mark.parametrize(
    ("init", "reason", "remedy"),
    [
        (no_file_left, "Too many open files", "ulimit -n"),
        (no_thread_left, "Resource temporarily unavailable", "ulimit -u"),
        (dies_by(signal.SIGBUS), "killed by signal: Bus error", "--shm-size"),
        (dies_by(signal.SIGKILL), "killed by signal: Killed", "more memory"),
    ],
    ids=["files", "threads", "shared memory", "killed"],
)
def test_a_worker_without_a_resource(capfd, init, reason, remedy):
    """pytorch/pytorch #5040 (bus error), #973 and #11201 (open files), and the OOM killer.

    A worker that cannot send a batch would print a traceback, and the run would wait for it.
    """
    text = failure(init)
    assert reason in text
    assert remedy in text
    assert capfd.readouterr().err == ""


def test_shared_memory_that_is_full(capfd):
    """torch's error names a file of /dev/shm; in a thread of the worker, nobody would see it."""

    class Full(Images):
        def __getitem__(self, number):
            raise RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on "
                "device (28)"
            )

    text = failure(images=Full())
    assert "No space left on device" in text
    assert "/dev/shm (docker run --shm-size 2g)" in text
    assert capfd.readouterr().err == ""


def test_a_batch_that_cannot_be_sent_is_named(capfd):
    """The run does not wait for it until the time limit."""
    failure(images=NotPicklable(), collate=list)
    lines = capfd.readouterr().err.splitlines()
    assert lines
    assert all("a data worker cannot send a batch: " in line for line in lines)


@contextmanager
def files_left(number):
    """This process can open so many files more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() - 1 + number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("number", [2, 8, 12, 20])
def test_a_process_with_few_open_files(capfd, number):
    """kuleshov-group/caduceus #58 (at the start), pytorch/pytorch #41465 ("ancdata", later)."""
    with files_left(number):
        text = failure()
    assert "raise the limit of open files with 'ulimit -n 65536'" in text
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("owner", "name", "code", "remedy"),
    [
        (os, "fork", errno.EAGAIN, "ulimit -u"),
        (os, "fork", errno.ENOMEM, "more memory"),
        (multiprocessing.synchronize._multiprocessing, "SemLock", errno.ENOSPC, "/dev/shm"),
        (multiprocessing.synchronize._multiprocessing, "SemLock", errno.ENOSYS, "/dev/shm"),
    ],
    ids=["processes", "memory", "semaphores", "no shared memory"],
)
def test_workers_that_cannot_be_started(monkeypatch, capfd, owner, name, code, remedy):
    """A limit of processes (as of a container), or a /dev/shm that is full or absent."""

    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refuse)
        text = failure()
    assert text.startswith(f"the data workers could not be started: [Errno {code}]")
    assert remedy in text
    assert "Traceback" not in capfd.readouterr().err


LIMITED = """
import multiprocessing, os, resource, time
from edkd.engine.train_step import TrainStep
step, calls, held = TrainStep.__call__, [], []
def limited(self, *inputs):
    calls.append(1)
    if len(calls) == 4:
        limit = max(map(int, os.listdir("/proc/self/fd"))) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        fill_gaps()
        if KILL:
            multiprocessing.active_children()[0].kill()
            time.sleep(2)
    return step(self, *inputs)
def fill_gaps():
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
TrainStep.__call__ = limited
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True], ids=["in the loader", "in the step"])
def test_a_run_that_has_no_open_file_left_is_saved(server, image_folder, tmp_path, kill):
    """The workers are ended first; otherwise the checkpoint could not be opened either."""
    plugin = tmp_path / "limited.py"
    plugin.write_text(f"KILL = {kill}\n{LIMITED}")
    words = ["DATASET.NUM_WORKERS", "2", *image_folder]
    assert server.run("train", *words, "whole")[0] == 0

    code, err = server.run("train", "--plugin", plugin, *words, "a")
    assert code == 4
    assert err.count("\n") == 1
    assert ("killed by signal" if kill else "'ulimit -n 65536'") in err
    assert load_checkpoint(tmp_path / "distill/a/latest")["progress"]["step"] > 0
    assert server.run("train", *words, "a", "--resume") == (0, "")
    assert outcome(tmp_path / "distill/a") == outcome(tmp_path / "distill/whole")
