"""Stopping, crashing and going on: nothing is lost, and what goes on equals what was never stopped."""

import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from edkd.distillers import Distiller, distiller_dict
from edkd.engine import checkpoint
from edkd.engine.checkpoint import load_checkpoint, save_checkpoint
from edkd.engine.teacher_memo import TeacherMemo
from edkd.engine.trainer import Trainer
from edkd.models import get_model

OPTS = ["DATASET.TYPE", "digits", "DISTILLER.TEACHER", "resnet14", "DISTILLER.STUDENT", "resnet8", "SOLVER.EPOCHS", "3"]
OPTS += [
    "SOLVER.LR_DECAY_STAGES",
    "[1,2]",
    "LOG.WANDB",
    "False",
    "SOLVER.BATCH_SIZE",
    "100",
    "LOG.TENSORBOARD_FREQ",
    "0",
]
STEPS = 9  # in an epoch


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "resnet14"
    torch.manual_seed(0)
    save_checkpoint({"model": get_model("cifar", "resnet14", 10).state_dict()}, path)
    return path


@pytest.fixture
def words(tmp_path, teacher):
    return [*OPTS, "DISTILLER.TEACHER_CKPT", str(teacher), "LOG.PREFIX", str(tmp_path), "EXPERIMENT.NAME"]


@pytest.fixture
def train(tool, words):
    return lambda name, *opts: tool("train", *words, name, *opts)


def outcome(folder):
    """What two runs must have in common, bit by bit."""
    state = load_checkpoint(folder / "latest")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figures = [{key: value for key, value in record.items() if "seconds" not in key} for record in records]
    momentum = [value["momentum_buffer"] for value in state["optimizer"]["state"].values()]
    tensors = [*state["model"].values(), *momentum]
    return figures, [tensor.tolist() for tensor in tensors]


def kill_at(monkeypatch, owner, name, call, number=signal.SIGTERM, times=1):
    """Send this process a signal within a call of a method."""
    method, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if call <= len(calls) < call + times:
            os.kill(os.getpid(), number)
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


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
        return logits, {"loss_ce": F.cross_entropy(F.dropout(logits, 0.2), target), "loss_kd": 1e-4 * loss_kd}


@pytest.mark.parametrize("method", [*sorted(distiller_dict), "ODD"])
def test_a_stopped_run_goes_on_bit_by_bit(train, tmp_path, monkeypatch, method):
    monkeypatch.setitem(distiller_dict, "ODD", DrawsAndRemembers)
    whole = train("whole", "DISTILLER.TYPE", method)
    assert whole.code == 0, whole.err
    for name, number, step in (("a", signal.SIGTERM, 4), ("b", signal.SIGINT, 9), ("c", signal.SIGUSR1, 10)):
        with monkeypatch.context() as patch:
            kill_at(patch, Trainer, "train_step", step, number)
            stopped = train(name, "DISTILLER.TYPE", method)
        assert stopped.code == (130 if number == signal.SIGINT else 143)
        assert stopped.err == "edkd: stopped\n"
        with monkeypatch.context() as patch:  # and once more, in the run that goes on
            kill_at(patch, Trainer, "train_step", 7)
            assert train(name, "DISTILLER.TYPE", method, "--resume").code == 143
        again = train(name, "DISTILLER.TYPE", method, "--resume")
        assert again.code == 0, again.err
        assert "from step" in again.out
        assert outcome(tmp_path / "distill" / name) == outcome(tmp_path / "distill/whole")


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


def test_a_killed_process_costs_what_checkpoint_minutes_says(train, words, tmp_path):
    """kill -9 in the second epoch; checkpoints lie within the epochs."""
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "import os, signal\n"
        "from edkd.engine.trainer import Trainer\n"
        "step, calls = Trainer.train_step, []\n"
        "def dies(self, *inputs):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 15: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, *inputs)\n"
        "Trainer.train_step = dies\n"
    )
    frequent = ["SOLVER.CHECKPOINT_MINUTES", "0.000001"]
    command = [sys.executable, "tools/train.py", "--plugin", plugin, *words, "a", *frequent]
    assert subprocess.run([str(word) for word in command], capture_output=True).returncode == -signal.SIGKILL
    assert load_checkpoint(tmp_path / "distill/a/latest")["progress"]["step"] == 14 - STEPS
    again = train("a", "--resume", *frequent)
    assert again.code == 0, again.err
    assert train("whole").code == 0
    assert outcome(tmp_path / "distill/a") == outcome(tmp_path / "distill/whole")


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
    command = [sys.executable, "tools/train.py", "--plugin", plugin, *words, "a"]
    assert subprocess.run([str(word) for word in command], timeout=50).returncode == -signal.SIGTERM


def test_a_signal_to_the_whole_group_with_data_workers(tmp_path):
    """As Ctrl-C or a scheduler sends it: the run saves although its workers belong to it, and goes on."""
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "val"):
        for i in range(12):
            pixels = torch.randint(256, (64, 64, 3), generator=generator, dtype=torch.uint8).numpy()
            folder = tmp_path / "images" / part / f"n0{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "import os, signal\n"
        "from edkd.engine.trainer import Trainer\n"
        "step, calls = Trainer.train_step, []\n"
        "def stops(self, *inputs):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 4: os.killpg(0, signal.SIGTERM)\n"
        "    return step(self, *inputs)\n"
        "Trainer.train_step = stops\n"
    )
    words = ["DATASET.TYPE", "tiny_imagenet", "DATASET.ROOT", tmp_path / "images", "DISTILLER.STUDENT", "ShuffleV2"]
    words += ["SOLVER.BATCH_SIZE", 4, "SOLVER.EPOCHS", 2, "LOG.WANDB", False, "LOG.PREFIX", tmp_path]
    command = [sys.executable, "tools/train.py", *words, "DATASET.NUM_WORKERS", 2, "EXPERIMENT.NAME"]

    def run(*more):
        done = subprocess.run([str(word) for word in (*command, *more)], start_new_session=True, timeout=100)
        return done.returncode

    assert run("whole") == 0
    assert run("a", "--plugin", plugin) == 143
    assert load_checkpoint(tmp_path / "distill/a/latest")["progress"]["step"] == 1
    assert run("a", "--resume") == 0
    assert outcome(tmp_path / "distill/a") == outcome(tmp_path / "distill/whole")


class Crash(BaseException):
    """The process is gone."""


def test_a_crash_at_any_call_of_a_save_leaves_a_checkpoint(tmp_path, monkeypatch):
    latest, previous = tmp_path / "latest", tmp_path / "latest.previous"
    calls = ["open", "os.fsync", "os.replace", "os.open", "os.close", "pathlib.Path.read_bytes", "pathlib.Path.exists"]
    survived = 0
    for crash_at in range(1, 100):
        for path in tmp_path.iterdir():
            path.unlink()
        save_checkpoint({"epoch": 0}, latest, keep=previous)
        save_checkpoint({"epoch": 1}, latest, keep=previous)
        count = []

        def crash(method, count=count, crash_at=crash_at):
            def call(*args, **kwargs):
                count.append(1)
                if len(count) == crash_at:
                    raise Crash
                return method(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in calls:
                where = f"builtins.{name}" if name == "open" else name
                module, _, attribute = where.rpartition(".")
                owner = __import__("pathlib").Path if "Path" in module else __import__(module)
                patch.setattr(where, crash(getattr(owner, attribute)))
            try:
                save_checkpoint({"epoch": 2}, latest, keep=previous)
                break
            except Crash:
                pass
        assert checkpoint.load_latest(tmp_path)["epoch"] in (1, 2)
        survived += 1
    assert survived >= 8


def test_the_checkpoint_before_a_damaged_one_is_gone_on_with(train, tmp_path):
    assert train("whole").code == train("a", "SOLVER.EPOCHS", "2").code == 0
    latest = tmp_path / "distill/a/latest"
    os.truncate(latest, latest.stat().st_size // 2)
    again = train("a", "--resume")
    assert again.code == 0
    assert again.err.startswith("edkd: warning: ")
    assert "latest.previous" in again.err
    assert outcome(tmp_path / "distill/a") == outcome(tmp_path / "distill/whole")


def test_a_folder_in_use_is_refused(train, words, tmp_path):
    assert train("a", "SOLVER.EPOCHS", "1").code == 0
    script = (
        "import sys\nfrom pathlib import Path\nfrom edkd.engine.folder import lock\n"
        "with lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    holder = [sys.executable, "-c", script, str(tmp_path / "distill/a")]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        refused = train("a", "--resume")
        assert refused.code == 2
        assert "is in use by another process" in refused.err
        process.kill()
    assert train("a", "--resume").code == 0


def test_numbered_checkpoints_are_kept_as_asked(train, tmp_path):
    assert train("a", "LOG.SAVE_CHECKPOINT_FREQ", "1", "LOG.KEEP", "2").code == 0
    names = {path.name for path in (tmp_path / "distill/a").iterdir()}
    assert {name for name in names if name[-1].isdigit()} == {"epoch_2", "epoch_3", "student_2", "student_3"}


PLACES = {
    "an image": lambda batch, student: batch.image[3, 1, 4, 4].fill_(torch.nan),
    "a weight": lambda batch, student: student.fc.weight.data[0, 0].fill_(torch.inf),
    "a gradient": lambda batch, student: student.fc.bias.register_hook(lambda gradient: gradient * torch.nan),
    "a logit": lambda batch, student: student.fc.register_forward_hook(lambda m, i, out: out / 0),
    "a feature": lambda batch, student: student.bn1.register_forward_hook(lambda m, i, out: out * torch.inf),
}


@pytest.mark.parametrize("step", [1, 5, 12])
@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_learned_from_what_is_not_finite(train, tmp_path, monkeypatch, place, step):
    method, calls, weights = Trainer.forward, [], []

    def forward(self, epoch, *inputs):
        calls.append(1)
        if len(calls) == step:
            weights.append({key: value.clone() for key, value in self.distiller.student.named_parameters()})
            make = self.data.train.batch

            def batch(*inputs):
                made = make(*inputs)
                PLACES[place](made, self.distiller.student)
                return made

            with monkeypatch.context() as patch:
                patch.setattr(self.data.train, "batch", batch)
                return method(self, epoch, *inputs)
        return method(self, epoch, *inputs)

    check = Trainer.check_update

    def after(self, epoch):
        try:
            check(self, epoch)
        except ArithmeticError:
            weights.append({key: value.clone() for key, value in self.distiller.student.named_parameters()})
            raise

    monkeypatch.setattr(Trainer, "forward", forward)
    monkeypatch.setattr(Trainer, "check_update", after)
    done = train("a", "DISTILLER.TYPE", "NONE", "SOLVER.AMP", "off")
    assert done.code == 3, done.err
    epoch, within = divmod(step - 1, STEPS)
    assert f"not finite in epoch {epoch + 1}, step {within + 1};" in done.err
    before, now = weights
    for key, value in now.items():
        if place != "a weight" or key != "fc.weight":
            assert torch.equal(value, before[key])
    folder = tmp_path / "distill/a"
    about = json.loads((folder / "nonfinite.json").read_text())
    assert (about["epoch"], about["step"], len(about["index"])) == (epoch + 1, within + 1, 100)
    assert (folder / "latest").exists() == (epoch > 0)
