"""Stopped or killed anywhere, a run goes on, and what it ends with equals, bit by bit, what was never stopped."""

import os
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
from faults import STEPS, TRAIN, kill_at, outcome

from edkd.distillers import Distiller, distiller_dict
from edkd.engine import run
from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.teacher_memo import TeacherMemo
from edkd.engine.trainer import Trainer
from edkd.stop import Stopped, hold, listening

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
FREQUENT = ["SOLVER.CHECKPOINT_MINUTES", "0.000001"]  # a checkpoint after each step


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
            self.bank.mul_(0.9).add_(logits.mean(0))
        noise = random.random() + np.random.rand() + torch.rand(())
        loss_kd = (logits * self.temperature - logits_teacher - noise * self.bank).square().mean()
        return logits, {
            "loss_ce": F.cross_entropy(F.dropout(logits, 0.2), target),
            "loss_kd": 1e-4 * loss_kd,
        }


METHODS = {**distiller_dict, "ODD": DrawsAndRemembers}


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_goes_on_bit_by_bit(train, tmp_path, monkeypatch, extent, figure, method):
    """Stopped once, and in the run that goes on once more."""
    monkeypatch.setitem(distiller_dict, method, METHODS[method])
    assert train("whole", "DISTILLER.TYPE", method).code == 0
    steps = extent([4, STEPS, STEPS + 1], range(1, 2 * STEPS + 1))
    for i, step in enumerate(steps):
        name, number = f"stopped {step}", SIGNALS[i % len(SIGNALS)]
        with monkeypatch.context() as patch:
            kill_at(patch, Trainer, "train_step", step, number)
            stopped = train(name, "DISTILLER.TYPE", method)
        assert stopped.code == (130 if number == signal.SIGINT else 143)
        assert stopped.err == "edkd: stopped\n"
        with monkeypatch.context() as patch:
            kill_at(patch, Trainer, "train_step", 7)
            assert train(name, "DISTILLER.TYPE", method, "--resume").code == 143
        again = train(name, "DISTILLER.TYPE", method, "--resume")
        assert again.code == 0, again.err
        assert outcome(tmp_path / "distill" / name) == outcome(tmp_path / "distill/whole")
    figure(
        "R3",
        f"{method}: {len(steps)} of {len(steps)} runs stopped twice equal the one that was not, bit by bit",
    )


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (Trainer, "evaluate", 1),
        (Trainer, "evaluate", 2),
        (TeacherMemo, "fill", 1),
        (TeacherMemo, "fill", 2),
        (Trainer, "save", 1),
        (Trainer, "save", 3),
    ],
)
def test_stopped_between_the_steps(train, tmp_path, monkeypatch, owner, name, call):
    train("whole", "DISTILLER.TYPE", "KD", "TEACHER_MEMO.FOLDER", tmp_path / "elsewhere")
    with monkeypatch.context() as patch:
        kill_at(patch, owner, name, call)
        assert train("a", "DISTILLER.TYPE", "KD").code == 143
    again = train("a", "DISTILLER.TYPE", "KD", "--resume")
    assert again.code == 0, again.err
    assert outcome(tmp_path / "distill/a") == outcome(tmp_path / "distill/whole")


def test_an_evaluation_is_stopped(tool, teacher, monkeypatch):
    kill_at(monkeypatch, run, "evaluate", 1)
    stopped = tool("eval", "-m", "resnet14", "-d", "digits", "-c", teacher)
    assert (stopped.code, stopped.out, stopped.err) == (143, "", "edkd: stopped\n")


PLUGIN = """
import os, signal
from edkd.engine import checkpoint, trainer, teacher_memo
place, call, number = os.environ["PLACE"], int(os.environ["CALL"]), int(os.environ["SIGNAL"])
owner, name = {
    "step": (trainer.Trainer, "train_step"), "evaluation": (trainer.Trainer, "evaluate"),
    "memo": (teacher_memo.TeacherMemo, "fill"), "save": (trainer.Trainer, "save"),
    "replace": (checkpoint, "_sync_folder"), "log": (trainer.Logger, "epoch"),
}[place]
method, calls = getattr(owner, name), []
def dies(*args, **kwargs):
    calls.append(1)
    if len(calls) == call:
        os.killpg(0, number) if "GROUP" in os.environ else os.kill(os.getpid(), number)
    return method(*args, **kwargs)
setattr(owner, name, dies)
"""


class Commands:
    """tools/train.py as processes of their own, on one thread each."""

    def __init__(self, words, folder, method="KD"):
        self.words, self.prefix, self.method = (
            [sys.executable, TRAIN, *words],
            folder,
            ["DISTILLER.TYPE", method],
        )
        self.plugin = folder / "plugin.py"
        self.plugin.write_text(PLUGIN)
        self.env = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}

    def start(self, name, *opts, **env):
        """Begin the run of that name, or go on with it."""
        words = [
            *self.words,
            name,
            *self.method,
            "TEACHER_MEMO.FOLDER",
            self.prefix / f"memo {name}",
        ]
        resume = ["--resume"] if (self.prefix / "distill" / name / "config.yaml").exists() else []
        plugin = ["--plugin", self.plugin] if env else []
        command = [str(word) for word in (*words, *FREQUENT, *opts, *resume, *plugin)]
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        return subprocess.Popen(command, env=self.env | env, **quiet)

    def run(self, name, *opts, **env):
        """Do that to its end; returns the exit code."""
        process = self.start(name, *opts, **env)
        process.communicate()
        return process.returncode

    def outcome(self, name):
        return outcome(self.prefix / "distill" / name)


@pytest.fixture
def commands(words, tmp_path):
    return Commands(words, tmp_path)


def test_killed_at_any_time_costs_no_bit(commands, extent, figure):
    """kill -9 at seeded places and, where no place is given, at seeded times after the start; up to three in a row."""
    start = time.monotonic()
    assert commands.run("whole") == 0
    duration, draw = time.monotonic() - start, random.Random(0)
    places = [("step", 1), ("evaluation", 1), ("memo", 1), ("save", 2), ("replace", 20), ("log", 2)]
    places += [
        (place, draw.randint(1, {"step": 27, "replace": 60}.get(place, 3)))
        for place, _ in places * 4
    ]
    rows = [[place] for place in places] + [[None]] * 14 + [[("step", 5), None, ("step", 3)]] * 3
    rows += [[("replace", 9), ("replace", 11), ("memo", 1)]] * 3
    rows = extent([rows[0], rows[1], rows[2], rows[4], rows[-4]], rows)
    times = {i: draw.uniform(0, duration) for i in range(len(rows))}

    def kill(i):
        name = f"killed {i}"
        for instant in rows[i]:
            if instant:
                place, call = instant
                code = commands.run(
                    name, PLACE=place, CALL=str(call), SIGNAL=str(int(signal.SIGKILL))
                )
                assert code in (
                    -signal.SIGKILL,
                    0,
                )  # a run that goes on may not come to that call again
            else:
                process = commands.start(name)
                time.sleep(times[i])
                process.kill()
                process.communicate()
        assert commands.run(name) == 0
        return commands.outcome(name) == commands.outcome("whole")

    with ThreadPoolExecutor(2) as pool:
        equal = list(pool.map(kill, range(len(rows))))
    figure(
        "R2",
        f"{sum(equal)} of {len(equal)} runs that were killed, up to three times, equal the one that was not",
    )
    assert all(equal)


def test_sigterm_to_the_group_saves_and_ends_soon(commands, extent, figure):
    """At instants over the whole life of a run, its imports included; wandb records offline meanwhile."""
    start = time.monotonic()
    wandb = ["LOG.WANDB", "True"]
    assert commands.run("whole", *wandb) == 0
    duration, instants = time.monotonic() - start, extent(4, 20)
    seconds, equal = [], 0
    for i in range(instants):
        name = f"stopped {i}"
        process = commands.start(name, *wandb)
        time.sleep(duration * (i + 0.5) / instants)
        start = time.monotonic()
        os.killpg(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        seconds.append(time.monotonic() - start)
        if (
            process.returncode == -signal.SIGTERM
        ):  # before or after Python listened; a shell calls this 143 too
            folder = commands.prefix / "distill" / name
            assert not folder.exists() or (folder / "result.json").exists()
        elif process.returncode:
            assert (process.returncode, err) == (
                143,
                b"edkd: stopped; --resume goes on from here\n",
            )
        assert commands.run(name, *wandb) == 0
        equal += commands.outcome(name) == commands.outcome("whole")
    p95 = statistics.quantiles(seconds, n=20)[-1]
    figure(
        "R4",
        f"{equal} of {instants} saved, ended with 143 and went on bit by bit; p95 {p95:.1f} s from the signal",
    )
    assert equal == instants
    assert p95 <= extent(15, 5)  # the short form may run beside other work


def test_a_killed_process_costs_what_checkpoint_minutes_says(commands):
    """kill -9 in the second epoch, where a checkpoint follows each step."""
    assert commands.run("a", PLACE="step", CALL=str(STEPS + 6), SIGNAL="9") == -signal.SIGKILL
    assert load_checkpoint(commands.prefix / "distill/a/latest")["progress"]["step"] == 5


def test_a_signal_that_a_library_swallows_is_heard_after_the_step():
    with listening():
        with suppress(Stopped):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped), hold():
            pass


def test_a_second_signal_ends_at_once(words, tmp_path):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "import os, signal, time\n"
        "from edkd.engine.trainer import Trainer\n"
        "def slow(self, *inputs):\n"
        "    for _ in range(2): os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
        "Trainer.train_step = slow\n"
    )
    command = [sys.executable, TRAIN, "--plugin", plugin, *words, "a"]
    assert subprocess.run([str(word) for word in command], timeout=50).returncode == -signal.SIGTERM


def test_a_signal_to_the_whole_group_with_data_workers(image_folder, tmp_path):
    """As Ctrl-C or a scheduler sends it: the run saves although its workers belong to it, and goes on."""
    commands = Commands(
        [*image_folder, "DATASET.NUM_WORKERS", "2", "EXPERIMENT.NAME"], tmp_path, "NONE"
    )
    assert commands.run("whole") == 0
    assert commands.run("a", PLACE="step", CALL="4", SIGNAL="15", GROUP="") == 143
    assert load_checkpoint(tmp_path / "distill/a/latest")["progress"]["step"] == 1
    assert commands.run("a") == 0
    assert commands.outcome("a") == commands.outcome("whole")


def test_a_signal_while_torch_is_loaded_is_one_line():
    command = [sys.executable, "-X", "importtime", TRAIN, "DISTILLER.TYPE", "UNKNOWN"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if b"torch.version" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = [
        line
        for line in process.communicate()[1].splitlines()
        if not line.startswith(b"import time")
    ]
    assert (process.returncode, rest) == (130, [b"edkd: stopped; --resume goes on from here"])
