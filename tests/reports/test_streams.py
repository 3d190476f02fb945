"""Standard streams that are absent, closed, full or without a reader end no run."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import edkd
from edkd.commands._command_line import run_command
from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.train_step import TrainStep
from tests.conftest import main_of
from tests.reliability.faults import before_call
from tests.runs import CHECKOUT, outcome
from tests.small import TinyNet

has_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


def command(name, *words):
    """The exit code of a command in this process."""
    try:
        run_command(main_of(name), [str(word) for word in words])
    except SystemExit as exit_:
        return exit_.code or 0
    return 0


def train(tiny, name, *opts):
    return command("train", "--device", "cpu", *tiny, name, *opts)


@contextlib.contextmanager
def streams(out=None, err=None):
    """Other standard streams."""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


# Absent streams.


@pytest.mark.parametrize("closed", ["012", "1", "2"])
def test_a_run_without_standard_streams(server, tiny, tmp_path, closed):
    """tqdm/tqdm #1523 and #1593: without a console, sys.stderr is None and the bar ends the run.

    A service, pythonw and `>&-` start a process so. The run must end as any other.
    """
    assert server.run("train", *tiny, "whole")[0] == 0
    code, err = server.run("train", *tiny, "a", CLOSED=closed)
    assert (code, err) == (0, "")
    assert outcome(tmp_path / "distill/a") == outcome(tmp_path / "distill/whole")
    assert (tmp_path / "distill/a/result.json").exists()


def test_what_a_library_prints_never_reaches_a_file_of_the_run(server, tiny, tmp_path):
    """A closed descriptor is given to the next file; C code that prints then writes into it."""
    plugin = tmp_path / "prints.py"
    plugin.write_text(
        "import os\n"
        "from edkd.engine import checkpoint\n"
        "sync = os.fsync\n"
        "def prints(handle):\n"
        "    assert handle > 2\n"
        "    for number in (1, 2): os.write(number, b'a line of a library')\n"
        "os.fsync = prints\n"
    )
    code, _ = server.run("train", "--plugin", plugin, *tiny, "a", CLOSED="012")
    assert code == 0
    load_checkpoint(tmp_path / "distill/a/latest")


def test_from_python_without_standard_streams(tmp_path):
    """`edkd.distill` inside a service."""
    images = TensorDataset(torch.randn(16, 3, 8, 8), torch.arange(16) % 4)
    loader = DataLoader(images, batch_size=8)
    with streams(None, None):
        result = edkd.distill(
            TinyNet(), TinyNet(), loader, loader, epochs=1, output=tmp_path, device="cpu"
        )
    assert Path(result["folder"], "latest").exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_the_exit_code_of_an_error_that_cannot_be_shown(closed):
    """In a fresh interpreter: a mistake on the command line stays exit code 2."""
    script = f'exec "$0" "$1" --cfgg x {closed}'
    train = str(CHECKOUT / "tools" / "train.py")
    done = subprocess.run(["sh", "-c", script, sys.executable, train], capture_output=True)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == ("2>&-" not in closed)


# Full disks.


@has_full
@pytest.mark.parametrize(
    "words", [["keys", "SOLVER"], ["report", "run"], ["train", "--help"], ["memo", "list"]]
)
def test_results_that_cannot_be_shown_are_one_line_and_exit_5(
    tiny, tmp_path, monkeypatch, capsys, words
):
    """`edkd report ... > file` on a full disk: neither a traceback nor a silent success."""
    monkeypatch.chdir(tmp_path)
    assert train(tiny, "whole", "SOLVER.EPOCHS", "1") == 0
    os.rename(tmp_path / "distill/whole", "run")
    capsys.readouterr()
    with open("/dev/full", "w") as full, contextlib.redirect_stdout(full):
        code = command(*words)
    line = "edkd: error: cannot write standard output: No space left on device\n"
    assert (code, capsys.readouterr().err) == (5, line)


@has_full
def test_a_fresh_interpreter_does_not_turn_the_exit_code_into_120():
    """The interpreter flushes its streams once more when it ends."""
    with open("/dev/full", "w") as full:
        usage = subprocess.run([sys.executable, "-m", "edkd"], stdout=full, cwd=CHECKOUT)
        wrong = subprocess.run([sys.executable, "-m", "edkd", "x"], stderr=full, cwd=CHECKOUT)
    assert (usage.returncode, wrong.returncode) == (5, 2)


@has_full
def test_a_run_on_full_streams_and_a_print_of_a_method(tiny, tmp_path, monkeypatch):
    """A `print` in a user's own method must not end the run either."""
    step = TrainStep.__call__

    def prints(self, *inputs):
        print("loss", flush=True)
        return step(self, *inputs)

    monkeypatch.setattr(TrainStep, "__call__", prints)
    with open("/dev/full", "w") as full, streams(full, full):
        assert train(tiny, "a") == 0
    assert (tmp_path / "distill/a/result.json").exists()


# Pipes, terminals, encodings.


def broken_pipe():
    """A pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def test_a_reader_that_is_gone(tiny, tmp_path, capsys):
    """`edkd keys | head` ends quietly; `edkd train | tee log` outlives tee, with one warning."""
    with broken_pipe() as pipe, contextlib.redirect_stdout(pipe):
        assert command("keys") == 1
    assert capsys.readouterr().err == ""

    with broken_pipe() as pipe, contextlib.redirect_stdout(pipe):
        assert train(tiny, "a") == 0
    warning = "edkd: warning: cannot write standard output: Broken pipe; "
    assert capsys.readouterr().err == f"{warning}the run continues without it\n"
    assert (tmp_path / "distill/a/result.json").exists()


def test_a_terminal_that_closes(tiny, tmp_path, monkeypatch):
    """irontec/sngrep #458: after a lost SSH connection a program lives on with broken streams.

    The terminal is gone before the signal is handled, so each write fails; both the shell and the
    system send SIGHUP. The run saves, ends with 129 and resumes.
    """
    assert train(tiny, "whole") == 0
    master, slave = os.openpty()

    def hang_up():
        os.close(master)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)

    with open(slave, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", before_call(TrainStep.__call__, 4, hang_up))
        with streams(terminal, terminal):
            assert train(tiny, "a") == 129

    assert load_checkpoint(tmp_path / "distill/a/latest")["progress"]["step"] == 4
    assert train(tiny, "a", "--resume") == 0
    assert outcome(tmp_path / "distill/a") == outcome(tmp_path / "distill/whole")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_characters_that_an_encoding_lacks(tiny, tmp_path, encoding):
    """LANG=C, or a console of Windows: a name in another script must not end the run."""
    content = io.BytesIO()
    out = io.TextIOWrapper(content, encoding=encoding)
    with contextlib.redirect_stdout(out):
        assert train(tiny, "größe 模型") == 0
    out.flush()
    assert b"\\u6a21\\u578b" in content.getvalue()
    assert "模型" in (tmp_path / "distill/größe 模型/worklog.txt").read_text(encoding="utf-8")


# Logging libraries.

BAD_LIBRARY = """
import atexit, sys, time, types
from edkd.commands import _command_line
_command_line.PATIENCE = 0.3

class Wandb(types.ModuleType):
    def __getattr__(self, name):
        atexit.register(time.sleep, 60)
        atexit.register(fail)
        raise {error}

def fail():
    raise RuntimeError("at exit")

sys.modules["wandb"] = Wandb("wandb")
"""


@pytest.mark.parametrize("error", ["OSError('disk quota exceeded')", "SystemExit(3)"])
def test_a_logging_library_that_fails_at_the_end_of_the_process(server, tiny, tmp_path, error):
    """wandb that fails when it starts, and at exit raises and then hangs.

    The process ends within seconds, with the exit code of the run and without a traceback.
    """
    plugin = tmp_path / "bad_wandb.py"
    plugin.write_text(BAD_LIBRARY.format(error=error))
    words = [*tiny[:-1], "LOG.WANDB", "True", "EXPERIMENT.NAME", "a"]
    start = time.monotonic()
    started = server.start("train", "--plugin", plugin, *words)
    assert (started.wait(50), started.err) == (0, "")
    assert time.monotonic() - start < 40
    assert "Wandb is off: " in started.out
    assert (tmp_path / "distill/a/result.json").exists()
