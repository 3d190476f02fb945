"""The log of a run: files, lines, sinks, and what happens where one of them fails."""

import contextlib
import errno
import io
import json
import os
import re
import threading
from pathlib import Path

import pytest
from yacs.config import CfgNode

from edkd.engine.log.background import Sink
from edkd.engine.log.logger import CLOSE, CLOSE_STOPPED, KEYS, Logger
from edkd.signals import Stopped
from tests.runs import records

RECORD = {"epoch": 1, "lr": 0.05, "train_loss": 1.25, "train_loss_ce": 1.0, "test_top1": 50.0}


def config(frequency=2, wandb=False):
    log = {"TENSORBOARD_FREQ": frequency, "WANDB": wandb, "PRINT": True}
    experiment = {"PROJECT": "", "TAG": "a,b"}
    return CfgNode({"LOG": log, "EXPERIMENT": experiment, "SOLVER": {"EPOCHS": 3}})


class Recorder(Sink):
    def __init__(self):
        self.points = []

    def send(self, figures, step):
        self.points.append((figures, step))


@pytest.fixture
def make(tmp_path):
    """make(history, frequency, done_steps, sinks): a logger in tmp_path, without sinks."""

    def make(history=(), frequency=2, done_steps=0, sinks=None):
        return Logger(tmp_path, config(frequency), history, 10, done_steps, sinks or {})

    return make


def test_an_epoch_ends_with_the_time_left(tmp_path, capsys):
    """The last one does not."""
    history = [RECORD | {"train_seconds": 100.0}]
    with Logger(tmp_path, config(0), history, 30, 10, {}) as logger:
        for epoch in (2, 3):
            history.append(RECORD | {"epoch": epoch, "train_seconds": 40.0, "eval_seconds": 5.0})
            logger.epoch(10 * epoch)
    second, third = capsys.readouterr().out.splitlines()
    assert second.endswith("eval_seconds 5  time left 45 s")
    assert third.endswith("eval_seconds 5")


def test_the_bar_has_the_time_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("edkd.engine.log.logger._bar_is_off", lambda: False)
    monkeypatch.setattr("edkd.engine.log.logger.SHOW_EVERY", 0.0)
    history = [RECORD | {"train_seconds": 100.0}]
    with Logger(tmp_path, config(0), history, 30, 10, {}) as logger:
        assert logger.advance(15)
        logger.step(15, 2, {"loss": 1.5, "top1": 20.0})
        logger.bar.refresh()
    assert "left=2 min]" in capsys.readouterr().err


# Files and lines.


def test_an_epoch_is_a_line_and_a_record(make, tmp_path, capsys):
    history = []
    with make(history) as logger:
        history.append(RECORD)
        logger.epoch(5)
    assert records(tmp_path) == [RECORD]

    line = "epoch 1  lr 0.05  train_loss 1.25  test_top1 50"
    assert capsys.readouterr().out == f"{line}\n"
    worklog = (tmp_path / "worklog.txt").read_text()
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d {line}\n", worklog)


def test_metrics_are_written_whole(make, tmp_path):
    """Of a resumed run they are exactly its history, whatever is in the file."""
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    history = [RECORD]
    with make(history) as logger:
        assert records(tmp_path) == [RECORD]
        (tmp_path / "metrics.jsonl").unlink()
        history.append(RECORD | {"epoch": 2})
        logger.epoch(10)
    assert records(tmp_path) == history


def test_figures_are_read_where_a_point_is_due_only(make):
    recorder = Recorder()
    with make(sinks={"Recorder": lambda: recorder}) as logger:
        assert not logger.advance(1)
        assert logger.advance(2)
        logger.step(2, 1, {"loss": 1.0, "top1": 50.0})
        assert not logger.advance(3)
    assert recorder.points == [({"step/loss": 1.0, "step/top1": 50.0}, 2)]


def test_without_a_frequency_there_are_points_of_epochs_only(make):
    recorder = Recorder()
    with make([{"epoch": 1, "lr": 0.1}], 0, sinks={"Recorder": lambda: recorder}) as logger:
        assert not logger.advance(2)
        logger.epoch(5)
    assert recorder.points == [({"epoch/lr": 0.1}, 5)]


def test_the_bar_shows_figures_once_a_second(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    with (
        contextlib.redirect_stderr(terminal),
        Logger(tmp_path, config(0), [], 10, 3, {}) as logger,
    ):
        assert not logger.advance(4)
        logger._shown_at -= 1
        assert logger.advance(5)
        logger.step(5, 2, {"loss": 0.125, "top1": 75.0})
        assert not logger.advance(6)
        logger._shown_at -= 1
        logger.show("teacher logits")
    shown = terminal.getvalue()
    assert "teacher logits" in shown
    assert "loss=0.125, top1=75" in shown
    assert " 6/10 " in shown


def test_without_a_terminal_there_is_no_bar(make, capsys):
    with make() as logger:
        logger.show("teacher logits")
        assert not logger.advance(1)
    assert capsys.readouterr() == ("", "")


def test_the_keys():
    defaults = {name: key.default for name, key in KEYS.items()}
    assert defaults == {
        "LOG.PREFIX": "./output",
        "LOG.TENSORBOARD_FREQ": 500,
        "LOG.PRINT": True,
        "LOG.WANDB": True,
    }
    assert all(key.free_on_resume and not key.names_run for key in KEYS.values())


# Failures.


class Full(io.TextIOBase):
    """A full disk, or a closed pipe."""

    def write(self, text):
        raise OSError(28, "No space left on device")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize(
    ("stream", "reason"),
    [(Full(), "No space left on device"), (closed(), "I/O operation on closed file")],
    ids=["full", "closed"],
)
def test_standard_output_that_cannot_be_written_is_one_warning(
    make, tmp_path, capsys, stream, reason
):
    with make() as logger, contextlib.redirect_stdout(stream):
        logger.say("one")
        logger.say("two")
    warning = f"edkd: warning: cannot write standard output: {reason}; "
    assert capsys.readouterr().err == f"{warning}the run continues without it\n"
    assert len((tmp_path / "worklog.txt").read_text().splitlines()) == 2


def test_a_process_without_standard_output_logs_to_the_file(make, tmp_path):
    with make() as logger, contextlib.redirect_stdout(None):
        logger.say("one")
    assert (tmp_path / "worklog.txt").read_text().endswith(" one\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_worklog_on_a_full_disk_is_one_warning(make, tmp_path, capsys):
    (tmp_path / "worklog.txt").symlink_to("/dev/full")
    with make() as logger:
        logger.say("one")
        logger.say("two")
    out, err = capsys.readouterr()
    assert out == "one\ntwo\n"
    assert re.fullmatch(
        "edkd: warning: cannot write .*worklog.txt: No space left on device; "
        "the run continues without it\n",
        err,
    )


def test_metrics_that_cannot_be_written_are_one_warning(make, tmp_path, capsys):
    """The history is in the checkpoints, too; the next run that can write it repairs the file."""
    (tmp_path / "metrics.jsonl").mkdir()
    history = [RECORD]
    with make(history) as logger:
        logger.epoch(5)
        logger.epoch(10)
    assert re.fullmatch(
        r"edkd: warning: cannot write .*metrics\.jsonl: Is a directory; "
        "the run continues without it\n",
        capsys.readouterr().err,
    )


def held_open(monkeypatch, name, times):
    """os.replace fails for a target of that name, as on Windows where a viewer has it open."""
    replace = os.replace
    refused = []

    def refuse(source, target):
        if Path(target).name == name and len(refused) < times:
            refused.append(target)
            raise PermissionError(errno.EACCES, "The process cannot access the file")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    return refused


def test_a_file_that_a_viewer_holds_for_a_moment_is_tried_again(
    make, tmp_path, capsys, monkeypatch
):
    refused = held_open(monkeypatch, "metrics.jsonl", times=2)
    with make([RECORD]):
        pass
    assert len(refused) == 2
    assert records(tmp_path) == [RECORD]
    assert capsys.readouterr().err == ""


def test_a_file_that_a_viewer_holds_for_long_is_one_warning(make, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("edkd.engine.log.logger.PATIENCE", 0.2)
    held_open(monkeypatch, "metrics.jsonl", times=10**6)
    history = [RECORD]
    with make(history) as logger:
        history.append(RECORD | {"epoch": 2})
        logger.epoch(10)
    warning = "metrics.jsonl: The process cannot access the file; the run continues without it"
    assert capsys.readouterr().err.count(warning) == 1
    assert not list(tmp_path.glob(".*partial"))


class Strange:
    """What a service puts in place of a stream: it has only `write`, and fails in its own way."""

    def write(self, text):
        raise RuntimeError("the window was closed")


@pytest.mark.parametrize("stream", [None, Strange(), Full()], ids=["none", "strange", "full"])
def test_streams_of_a_service_end_no_run(make, tmp_path, stream):
    """Neither the bar nor a line nor a warning raises."""
    with contextlib.redirect_stderr(stream), contextlib.redirect_stdout(stream):
        (tmp_path / "worklog.txt").mkdir()
        with make([RECORD]) as logger:
            logger.show("teacher logits")
            logger.step(2, 1, {"loss": 1.0, "top1": 50.0})
            logger.epoch(5)
    assert records(tmp_path) == [RECORD]


def test_a_terminal_that_is_gone_ends_no_run(tmp_path):
    """The bar was on it: each write fails with EIO."""

    class Gone(io.StringIO):
        is_gone = False

        def isatty(self):
            return True

        def write(self, text):
            if self.is_gone:
                raise OSError(errno.EIO, "Input/output error")
            return super().write(text)

    terminal = Gone()
    with (
        contextlib.redirect_stderr(terminal),
        contextlib.redirect_stdout(terminal),
        Logger(tmp_path, config(0), [RECORD], 10, 0, {}) as logger,
    ):
        terminal.is_gone = True
        for step in range(1, 5):
            logger._shown_at -= 1
            logger.step(step, 1, {"loss": 0.125, "top1": 75.0})
        logger.epoch(5)
    assert len((tmp_path / "worklog.txt").read_text().splitlines()) == 1


def test_a_sink_that_fails_leaves_the_others(make, tmp_path, capsys):
    class Raises(Sink):
        def send(self, figures, step):
            raise OSError("read-only")

    recorder = Recorder()
    with make([RECORD], sinks={"Bad": Raises, "Good": lambda: recorder}) as logger:
        for step in range(2, 12, 2):
            logger.step(step, 1, {"loss": 1.0})
        logger.epoch(10)
    assert [step for _, step in recorder.points] == [2, 4, 6, 8, 10, 10]
    assert capsys.readouterr().out.count("Bad is off: OSError: read-only") == 1
    assert (tmp_path / "worklog.txt").read_text().count("Bad is off: OSError: read-only") == 1


def test_a_sink_that_hangs_delays_no_step(make, capsys):
    release = threading.Event()

    class Hangs(Sink):
        def send(self, figures, step):
            release.wait(10)

    logger = make(frequency=1, sinks={"Hangs": Hangs})
    for step in range(1, 100):
        logger.step(step, 1, {"loss": 1.0})
    logger.close(0.1)
    release.set()
    assert capsys.readouterr().out == "Hangs is off: no answer for 0.1 s\n"


@pytest.mark.parametrize(
    ("error", "seconds"), [(None, CLOSE), (ValueError, CLOSE), (Stopped, CLOSE_STOPPED)]
)
def test_a_stopped_run_waits_less_for_its_sinks(make, error, seconds):
    class Closed:
        def close(self, seconds):
            self.seconds = seconds

    logger = make()
    logger.sinks = [Closed()]
    with contextlib.suppress(ValueError, Stopped), logger:
        if error:
            raise error
    assert logger.sinks[0].seconds == seconds


def test_a_second_signal_while_sinks_close_leaves_the_end_in_the_status(make, tmp_path):
    logger = make()

    def interrupted(seconds):
        raise KeyboardInterrupt

    logger.close = interrupted
    with pytest.raises(KeyboardInterrupt), logger:
        raise Stopped

    status = json.loads((tmp_path / "status.json").read_text())
    assert status["end"]["state"] == "stopped"


def test_lines_can_be_kept_off_the_screen(tmp_path, capsys):
    cfg = config(0)
    cfg.LOG.PRINT = False
    with Logger(tmp_path, cfg, [], 1, 0, sinks={}) as logger:
        logger.say("a line")
    assert capsys.readouterr().out == ""
    assert "a line" in (tmp_path / "worklog.txt").read_text()
