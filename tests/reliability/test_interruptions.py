"""Stopped or killed anywhere, a resumed run ends bit-for-bit equal to one that ran through."""

import random
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edkd.distillers import Distiller, distiller_dict, method_names
from edkd.engine import run
from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.run_files import RunFiles
from edkd.signals import Stopped, exit_code, hold, listening
from tests.reliability.faults import PLACES, STEPS, kill_at
from tests.runs import CHECKOUT, NEED_STAGES, TINY_OPTIONS, outcome
from tests.short_forms import slow_but

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
FREQUENT = ["SOLVER.CHECKPOINT_MINUTES", "0.000001"]  # a checkpoint after each step
FAULTS = CHECKOUT / "tests" / "reliability" / "fault_plugin.py"


class DrawsAndRemembers(Distiller):
    """Draws from each generator, and holds a memory bank and a learned temperature."""

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher)
        self.register_buffer("bank", torch.zeros(10))
        self.temperature = torch.nn.Parameter(torch.ones(()))

    def get_learnable_parameters(self):
        return [*super().get_learnable_parameters(), self.temperature]

    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        with torch.no_grad():
            logits_teacher, _ = self.teacher(image)
            self.bank.mul_(0.9)[: logits.shape[1]].add_(logits.mean(0))
        noise = random.random() + np.random.rand() + torch.rand(())
        drift = noise * self.bank[: logits.shape[1]]
        loss_kd = (logits * self.temperature - logits_teacher - drift).square().mean()
        loss_ce = F.cross_entropy(F.dropout(logits, 0.2), target)
        return logits, {"loss_ce": loss_ce, "loss_kd": 1e-4 * loss_kd}


METHODS = {name: TINY_OPTIONS.get(name, []) for name in method_names() if name not in NEED_STAGES}
METHODS |= {"ODD": [], "KD+DKD": [], "KD by DOT": ["SOLVER.TRAINER", "dot"]}


SHORT = ("KD", "EDKD", "CTKD", "CRD", "REVIEWKD", "MLKD", "DML", "ODD", "KD+DKD", "KD by DOT")
"""Methods of the short form: with state of their own, several views, several students."""


@pytest.mark.parametrize("method", slow_but(SHORT, METHODS))
def test_a_stopped_run_resumes_bit_for_bit(train, tmp_path, monkeypatch, extent, figure, method):
    """Stopped once, and in the longer forms the resumed run once more."""
    if method == "ODD":
        monkeypatch.setitem(distiller_dict, "ODD", DrawsAndRemembers)
    opts = ["DISTILLER.TYPE", method.split()[0], *METHODS[method]]
    assert train("whole", *opts).code == 0

    steps = extent([STEPS + 4], range(1, 2 * STEPS + 1), all_=[4, STEPS, STEPS + 1])
    for i, step in enumerate(steps):
        name = f"stopped {step}"
        number = SIGNALS[i % len(SIGNALS)]
        with monkeypatch.context() as patch:
            kill_at(patch, "step", step, number)
            stopped = train(name, *opts)
        assert stopped.code == (130 if number == signal.SIGINT else 143)
        assert stopped.err == "edkd: stopped; --resume continues from here\n"

        for late in extent([], [7], all_=[7]):
            with monkeypatch.context() as patch:
                kill_at(patch, "step", late)
                assert train(name, *opts, "--resume").code == 143
        again = train(name, *opts, "--resume")
        assert again.code == 0, again.err
        assert outcome(tmp_path / "distill" / name) == outcome(tmp_path / "distill/whole")
    figure(
        "R3",
        f"{method}: {len(steps)} of {len(steps)} runs stopped twice equal the one that was not",
    )


def test_stopped_between_the_steps(train, tmp_path, monkeypatch, extent):
    opts = ["DISTILLER.TYPE", "KD"]
    train("whole", *opts, "TEACHER_MEMO.FOLDER", tmp_path / "elsewhere")
    every = [("evaluation", 1), ("evaluation", 2), ("memo", 1), ("memo", 2), ("save", 1)]
    every += [("save", 3)]
    for place, call in extent(every[1::2], every, all_=every):
        name = f"{place} {call}"
        memo = ["TEACHER_MEMO.FOLDER", tmp_path / f"memo {name}"]
        with monkeypatch.context() as patch:
            kill_at(patch, place, call)
            assert train(name, *opts, *memo).code == 143
        again = train(name, *opts, *memo, "--resume")
        assert again.code == 0, again.err
        assert outcome(tmp_path / "distill" / name) == outcome(tmp_path / "distill/whole")


def test_an_evaluation_is_stopped(tool, teacher, monkeypatch):
    def stop(*args):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(run, "evaluate", stop)
    stopped = tool("eval", "-m", "resnet14", "-d", "digits", "-c", teacher)
    assert (stopped.code, stopped.out, stopped.err) == (143, "", "edkd: stopped\n")


# A signal, and a bug.


def test_a_bug_inside_a_save_shows_its_traceback_also_after_a_signal(train, monkeypatch):
    """Only `Stopped` counts as a stop."""

    def broken(self):
        raise LookupError("a bug of our own")

    kill_at(monkeypatch, "step", 3)
    monkeypatch.setattr(RunFiles, "content", broken)
    with pytest.raises(LookupError, match="a bug of our own"):
        train("a")


def test_a_traceback_reaches_the_user(server, words, tmp_path):
    plugin = tmp_path / "broken_save.py"
    plugin.write_text(
        "import os, signal\n"
        "from edkd.engine.run_files import RunFiles\n"
        "def broken(self):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    raise LookupError('a bug of our own')\n"
        "RunFiles.content = broken\n"
    )
    code, err = server.run("train", "--plugin", plugin, *words, "a")
    assert code == 1
    assert err.startswith("Traceback")
    assert err.endswith("LookupError: a bug of our own\n")
    assert "stopped" not in err


@pytest.mark.parametrize(
    ("place", "call", "hint"),
    [
        ("memo", 1, ""),
        ("evaluation", 1, "; --resume continues from here"),
        ("save", 1, "; --resume continues from here"),
    ],
)
def test_a_resume_is_promised_only_where_there_is_a_checkpoint(
    train, tmp_path, monkeypatch, place, call, hint
):
    kill_at(monkeypatch, place, call)
    stopped = train("a", "DISTILLER.TYPE", "KD")
    assert (stopped.code, stopped.err) == (143, f"edkd: stopped{hint}\n")
    assert (tmp_path / "distill/a/latest").exists() == bool(hint)


# Processes of their own.


class Commands:
    """Runs of the command train as processes.

    Args:
        server: starts them.
        words: without the name of the run.
        folder: LOG.PREFIX.
        method: DISTILLER.TYPE.
        fresh: whether each has an interpreter of its own.
    """

    def __init__(self, server, words, folder, method="KD", fresh=False):
        self.server = server
        self.words = words
        self.prefix = folder
        self.method = ["DISTILLER.TYPE", method]
        self.fresh = fresh

    def start(self, name, *opts, **env):
        """Start the run of that name, or resume it."""
        memo = ["TEACHER_MEMO.FOLDER", self.prefix / f"memo {name}"]
        is_there = (self.prefix / "distill" / name / "config.yaml").exists()
        resume = ["--resume"] if is_there else []
        plugin = ["--plugin", FAULTS] if env else []
        words = [*self.words, name, *self.method, *memo, *FREQUENT, *opts, *resume, *plugin]
        return self.server.start("train", *words, fresh=self.fresh, **env)

    def run(self, name, *opts, **env):
        """Do that to its end; returns the exit code."""
        return self.start(name, *opts, **env).wait()

    def outcome(self, name):
        return outcome(self.prefix / "distill" / name)


@pytest.fixture
def commands(server, words, tmp_path, extent):
    return Commands(server, words, tmp_path, fresh=extent(False, True))


def kills(extent):
    """A row for each run: the places, or None for a time drawn at random, where it is killed."""
    draw = random.Random(0)
    places = [("step", 1), ("evaluation", 1), ("memo", 1), ("save", 2), ("replace", 20), ("log", 2)]
    calls = {"step": 27, "replace": 60}
    places += [(place, draw.randint(1, calls.get(place, 3))) for place, _ in places * 4]
    rows = [[place] for place in places]
    rows += [[None]] * 14
    rows += [[("step", 5), None, ("step", 3)]] * 3
    rows += [[("replace", 9), ("replace", 11), ("memo", 1)]] * 3
    some = [rows[2], rows[4], rows[31], rows[-4]]
    return extent(some, rows, all_=[*rows[:12], *rows[30:34], rows[-4], rows[-1]])


def test_a_kill_at_any_time_changes_no_bit(commands, extent, figure):
    """kill -9 at given places, or at times drawn at random; up to three in a row."""
    start = time.monotonic()
    assert commands.run("whole") == 0
    duration = time.monotonic() - start
    rows = kills(extent)
    draw = random.Random(1)
    times = [draw.uniform(0, duration) for _ in rows]

    def kill(i):
        name = f"killed {i}"
        for instant in rows[i]:
            if instant:
                place, call = instant
                number = str(int(signal.SIGKILL))
                code = commands.run(name, PLACE=place, CALL=str(call), SIGNAL=number)
                assert code in (-signal.SIGKILL, 0)  # a resumed run may not reach that call again
            else:
                command = commands.start(name)
                time.sleep(times[i])
                with suppress(ProcessLookupError):
                    command.kill()
                command.wait()
        assert commands.run(name) == 0
        return commands.outcome(name) == commands.outcome("whole")

    with ThreadPoolExecutor(2) as pool:
        equal = list(pool.map(kill, range(len(rows))))
    figure(
        "R2",
        f"{sum(equal)} of {len(equal)} runs that were killed, up to three times, equal the one "
        "that was not",
    )
    assert all(equal)


def test_sigterm_to_the_group_saves_and_ends_soon(commands, extent, figure):
    """At instants over the whole life of a run; in the longer forms wandb records offline.

    A fresh interpreter is stopped during its imports, too.
    """
    instants = extent(3, 20, all_=4)
    commands.fresh = extent(False, True, all_=True)
    wandb = extent([], ["LOG.WANDB", "True"], all_=["LOG.WANDB", "True"])
    start = time.monotonic()
    assert commands.run("whole", *wandb) == 0
    duration = time.monotonic() - start

    seconds = []
    equal = 0
    for i in range(instants):
        name = f"stopped {i}"
        command = commands.start(name, *wandb)
        time.sleep(duration * (i + 0.5) / instants)
        start = time.monotonic()
        with suppress(ProcessLookupError):
            command.kill_group(signal.SIGTERM)
        code = command.wait(60)
        seconds.append(time.monotonic() - start)

        if code == -signal.SIGTERM:  # before or after Python listened; a shell calls this 143 too
            folder = commands.prefix / "distill" / name
            assert not folder.exists() or (folder / "result.json").exists()
        elif code:
            assert code == 143
            assert command.err.splitlines()[-1].startswith("edkd: stopped"), command.err
        assert commands.run(name, *wandb) == 0
        equal += commands.outcome(name) == commands.outcome("whole")

    p95 = statistics.quantiles(seconds, n=20)[-1]
    figure(
        "R4",
        f"{equal} of {instants} saved, ended with 143 and resumed bit for bit; "
        f"p95 {p95:.1f} s from the signal",
    )
    assert equal == instants
    assert p95 <= extent(15, 5)  # the shorter forms may run beside other work


def test_a_killed_process_costs_what_checkpoint_minutes_says(commands):
    """kill -9 in the second epoch, where a checkpoint follows each step."""
    assert commands.run("a", PLACE="step", CALL=str(STEPS + 6), SIGNAL="9") == -signal.SIGKILL
    latest = load_checkpoint(commands.prefix / "distill/a/latest")
    assert latest["progress"]["step"] == 5


def test_a_signal_that_a_library_swallows_is_seen_after_the_step():
    with listening():
        with suppress(Stopped):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped), hold():
            pass


OTHER_SIGNALS = {
    "SIGHUP": 129,  # a closed terminal
    "SIGXCPU": 128 + 24,  # a limit of processor time, as a cluster sets it
    "SIGUSR2": 143,  # a notice of a scheduler
}


@pytest.mark.parametrize("name", OTHER_SIGNALS)
def test_other_signals_that_stop_a_run(train, tmp_path, monkeypatch, name):
    number = getattr(signal, name)
    assert train("whole").code == 0
    with monkeypatch.context() as patch:
        kill_at(patch, "step", 4, number)
        stopped = train("a")
    assert stopped.code == OTHER_SIGNALS[name]
    assert stopped.err == "edkd: stopped; --resume continues from here\n"
    assert train("a", "--resume").code == 0
    assert outcome(tmp_path / "distill/a") == outcome(tmp_path / "distill/whole")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGXCPU])
@pytest.mark.parametrize("first", [signal.SIGTERM, None])
def test_signals_that_are_sent_repeatedly_do_not_kill(number, first):
    """The shell and the system each send SIGHUP; SIGXCPU comes each second."""
    signals = [first or number, number, number]
    with listening():
        with pytest.raises(Stopped), hold():
            list(map(signal.raise_signal, signals))
        assert exit_code() == 128 + (first or number)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(number):
    """As under nohup; and in a background job of a script, SIGINT."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with listening():
            signal.raise_signal(number)
            with hold():
                pass
            assert signal.getsignal(number) is signal.SIG_IGN
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_run_under_nohup_outlives_its_terminal(train, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        kill_at(monkeypatch, "step", 4, signal.SIGHUP)
        assert train("a").code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_ends_at_once(server, words, tmp_path):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "import os, signal, time\n"
        "from edkd.engine.train_step import TrainStep\n"
        "def slow(self, *inputs):\n"
        "    for _ in range(2): os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
        "TrainStep.__call__ = slow\n"
    )
    code, _ = server.run("train", "--plugin", plugin, *words, "a", timeout=50)
    assert code == -signal.SIGTERM


def test_a_signal_to_the_whole_group_with_data_workers(server, image_folder, tmp_path):
    """As Ctrl-C or a scheduler sends it: the run saves although its workers belong to the group."""
    words = ["DATASET.NUM_WORKERS", "2", *image_folder]
    commands = Commands(server, words, tmp_path, "NONE")
    assert commands.run("whole") == 0
    assert commands.run("a", PLACE="step", CALL="4", SIGNAL="15", GROUP="") == 143
    assert load_checkpoint(tmp_path / "distill/a/latest")["progress"]["step"] == 1
    assert commands.run("a") == 0
    assert commands.outcome("a") == commands.outcome("whole")


def test_a_signal_while_torch_is_imported_is_one_line():
    train = str(CHECKOUT / "tools" / "train.py")
    command = [sys.executable, "-X", "importtime", train, "DISTILLER.TYPE", "UNKNOWN"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    for line in process.stderr:
        if b"torch.version" in line:
            process.send_signal(signal.SIGINT)
            break
    _, rest = process.communicate()
    lines = [line for line in rest.splitlines() if not line.startswith(b"import time")]
    assert (process.returncode, lines) == (130, [b"edkd: stopped"])


def test_the_places_of_faults_exist():
    for owner, name in PLACES.values():
        assert callable(getattr(owner, name))
