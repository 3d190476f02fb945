"""Reports about the lines of an epoch, and about the time that a stop costs."""

import os
import signal
import time

import numpy as np
import pytest
import torch

from edkd.dataset import _base as dataset_module
from edkd.engine.checkpoint import load_checkpoint, save_checkpoint
from edkd.engine.memo import memo as memo_module
from edkd.engine.memo.admin import is_intact
from edkd.engine.memo.files import segment_files
from edkd.engine.memo.memo import TeacherMemo
from edkd.engine.run_state import RunState
from edkd.engine.train_step import TrainStep
from edkd.signals import Stopped, listening
from tests.engine.memo.parts import make_loader, make_memo, make_teacher, quiet
from tests.reliability.faults import before_call
from tests.runs import records

# The seconds of an epoch that was stopped and resumed.


def test_the_seconds_of_a_resumed_epoch_are_those_of_all_its_parts(
    train_tiny, tmp_path, monkeypatch
):
    """The report: an epoch that was stopped shows the seconds after the resume alone."""
    step = TrainStep.__call__

    def slow(self, *args):
        time.sleep(0.02)
        return step(self, *args)

    def stop():
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", before_call(slow, 8, stop))
        assert train_tiny("a", "SOLVER.EPOCHS", 1).code == 143
    assert train_tiny("a", "SOLVER.EPOCHS", 1, "--resume").code == 0
    (record,) = records(tmp_path / "distill" / "a")
    assert 8 * 0.02 < record["train_seconds"] < 8


def test_time_between_two_parts_and_that_of_the_evaluation_do_not_count(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    first = RunState()
    first.start_clock()
    first.step_done = 3
    clock[0] = 105.0
    first.stop_clock()
    clock[0] = 999.0
    first.meter.add({"loss": torch.ones(())}, torch.ones(1, 2), torch.zeros(1).long())
    saved = first.state_dict()

    second = RunState()
    second.load_state_dict(saved, torch.device("cpu"))
    second.start_clock()
    clock[0] = 1001.0
    assert second.train_seconds() == 7.0
    second.finish_epoch({"epoch": 1})
    second.start_clock()
    assert second.train_seconds() == 0.0


def test_the_wait_for_batches_is_counted_over_a_stop(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def batches():
        for seconds in (3.0, 4.0):
            clock[0] += seconds
            yield seconds

    def train(state):
        for _ in state.timed(batches()):
            clock[0] += 100.0

    first = RunState()
    train(first)
    assert first.data_seconds == 7.0
    first.step_done = 2
    first.meter.add({"loss": torch.ones(())}, torch.ones(1, 2), torch.zeros(1).long())

    second = RunState()
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    train(second)
    assert second.data_seconds == 14.0
    second.finish_epoch({"epoch": 1})
    assert second.data_seconds == 0.0


def test_a_checkpoint_without_seconds_still_resumes(train_tiny, tmp_path, monkeypatch):
    """Those of earlier versions have none."""
    with monkeypatch.context() as patch:
        stop = before_call(TrainStep.__call__, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        patch.setattr(TrainStep, "__call__", stop)
        assert train_tiny("a", "SOLVER.EPOCHS", 1).code == 143
    latest = tmp_path / "distill" / "a" / "latest"
    state = load_checkpoint(latest)
    del state["progress"]["seconds"], state["progress"]["data_seconds"]
    save_checkpoint(state, latest)
    assert train_tiny("a", "SOLVER.EPOCHS", 1, "--resume").code == 0


# The teacher cache, when it is not filled to the end.


class Crash(Exception):
    """A fault of the teacher's network or of the device."""


def interrupted(folder, monkeypatch, fault, at_batch=3):
    """A memo of 40 images in batches of 8, whose third batch does not come."""
    monkeypatch.setattr(dataset_module, "large_batch", lambda device: 8)
    memo = make_memo(folder, loader=make_loader())
    with monkeypatch.context() as patch:
        patch.setattr(TeacherMemo, "run", before_call(TeacherMemo.run, at_batch, fault))
        with pytest.raises((Crash, Stopped)), listening():
            memo.prepare(1, quiet)
    return memo


def crash():
    raise Crash


@pytest.mark.parametrize(
    "fault",
    [crash, lambda: os.kill(os.getpid(), signal.SIGINT), lambda: os.kill(os.getpid(), 15)],
    ids=["crash", "SIGINT", "SIGTERM"],
)
def test_a_stop_while_the_cache_is_filled_keeps_what_is_computed(tmp_path, monkeypatch, fault):
    """The report: Ctrl-C while the cache is filled loses all logits computed so far."""
    memo = interrupted(tmp_path, monkeypatch, fault)
    (segment,) = segment_files(memo.store.folder)
    assert is_intact(segment)

    teacher = make_teacher()
    again = make_memo(tmp_path, teacher, make_loader())
    before = teacher.calls
    again.prepare(1, quiet)
    assert teacher.calls - before == 3  # of 5 batches, the 2 before the stop are there

    whole = make_memo(tmp_path / "other", loader=make_loader())
    whole.prepare(1, quiet)
    assert torch.equal(again.tables["logits"], whole.tables["logits"])


def test_a_long_fill_is_stored_in_parts(tmp_path, monkeypatch):
    """A kill, which nothing can catch, costs a minute of the teacher's work at most."""
    monkeypatch.setattr(dataset_module, "large_batch", lambda device: 8)
    monkeypatch.setattr(memo_module, "PART_SECONDS", 0.0)
    memo = make_memo(tmp_path, loader=make_loader(num_images=37))
    memo.prepare(1, quiet)
    segments = segment_files(memo.store.folder)
    assert len(segments) == 5
    assert all(is_intact(path) for path in segments)

    rows, found = memo.store.read(memo.keys(1))
    assert found.all()
    whole = make_memo(tmp_path / "other", loader=make_loader(num_images=37))
    monkeypatch.undo()
    whole.prepare(1, quiet)
    assert torch.equal(memo.tables["logits"], whole.tables["logits"])
    assert rows.dtype == np.uint8


def test_a_short_fill_is_one_segment(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "large_batch", lambda device: 8)
    memo = make_memo(tmp_path)
    memo.prepare(1, quiet)
    assert len(segment_files(memo.store.folder)) == 1


# The learning rate of an epoch's line.


def test_the_rate_of_an_epoch_is_that_of_its_first_step(train_tiny, tmp_path):
    """The report: a cosine run of one epoch, at SOLVER.LR 0.05, shows lr 5.9e-05.

    `lr` is the rate at which the epoch began, as in mdistiller; `lr_end` is that of its last step.
    """
    cosine = ["SOLVER.SCHEDULE", "cosine", "SOLVER.LR", 0.05]
    done = train_tiny("a", "SOLVER.EPOCHS", 1, *cosine)
    (record,) = records(tmp_path / "distill" / "a")
    assert record["lr"] == 0.05
    assert 0 < record["lr_end"] < 0.005
    assert "epoch 1  lr 0.05  lr_end 0.001" in done.out


def test_one_rate_is_shown_where_the_epoch_has_one(train_tiny, tmp_path):
    done = train_tiny("a", "SOLVER.EPOCHS", 2, "SOLVER.LR", 0.05)
    for record, rate in zip(records(tmp_path / "distill" / "a"), (0.05, 0.005), strict=True):
        assert record["lr"] == record["lr_end"] == pytest.approx(rate)
    assert "lr_end" not in done.out
