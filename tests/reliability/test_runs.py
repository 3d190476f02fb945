"""Whole runs: one to a folder, the same whatever looks on, stopped before a number that is none can spread."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import tensorboardX
import torch
import torch.nn.functional as F
from faults import STEPS, TRAIN, outcome

from edkd.distillers import Distiller, distiller_dict
from edkd.engine.checkpoint import fingerprint, load_checkpoint
from edkd.engine.folder import fcntl
from edkd.engine.logger import Background
from edkd.engine.trainer import Trainer


def train_at(moment, words):
    """tools/train.py in a process that has loaded torch, begun at a moment; returns exit code, seconds, complaint."""
    sys.path.insert(0, TRAIN.removesuffix("train.py"))
    import train

    from edkd.engine.run import train as load_all  # noqa: F401
    from edkd.errors import run_command

    said = StringIO()
    time.sleep(max(moment - time.time(), 0))
    torch.set_num_threads(1)
    start, code = time.monotonic(), 0
    with redirect_stderr(said), redirect_stdout(StringIO()):
        try:
            run_command(lambda _: train.main(words))
        except SystemExit as exit_:
            code = exit_.code
    return code, time.monotonic() - start, said.getvalue()


def test_of_two_runs_at_once_in_one_folder_one_is_refused(words, tmp_path, extent, figure):
    """New runs and runs that go on, begun at the same moment and a little apart."""
    pairs, unharmed, slowest = extent(6, 20), 0, 0.0
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        (*_, complaint) = pool.submit(train_at, 0, [*words, "whole"]).result()
        assert complaint == ""
        for i in range(pairs):
            command = [
                *words,
                f"pair {i // 2}",
                "LOG.SAVE_CHECKPOINT_FREQ",
                "1",
                *(["--resume"] if i % 2 else []),
            ]
            if (
                i % 2
            ):  # what is gone on with is the run of the pair before, as it was after its first epoch
                folder = tmp_path / "distill" / f"pair {i // 2}"
                (folder / "latest").write_bytes((folder / "epoch_1").read_bytes())
            moment = time.time() + (5 if i == 0 else 0.3)
            both = [pool.submit(train_at, moment + delay, command) for delay in (0, 0.1 * (i % 4))]
            results = sorted(result.result() for result in both)
            (code, *_), (refused, seconds, complaint) = results
            slowest = max(slowest, seconds)
            assert (code, refused) == (0, 2), complaint
            assert "already holds a run" in complaint or "is in use by another process" in complaint
            unharmed += outcome(tmp_path / "distill" / f"pair {i // 2}") == outcome(
                tmp_path / "distill/whole"
            )
    figure(
        "R9",
        f"{unharmed} of {pairs} pairs begun at once: one refused, within {slowest:.1f} s, the other unharmed",
    )
    assert unharmed == pairs
    assert slowest < extent(10, 2)


def test_a_folder_in_use_is_refused(train, tmp_path):
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


@pytest.mark.skipif(fcntl is None, reason="there are no such locks")
def test_a_file_system_without_locks_is_warned_of(train, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    done = train("a", "SOLVER.EPOCHS", "1")
    assert done.code == 0
    assert (
        "cannot be locked (No locks available): a second process in it is not noticed" in done.err
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_standard_output_that_is_full_or_closed_ends_no_run(words, tmp_path):
    command = [sys.executable, TRAIN, *words]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*command, "full"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=100
        )
    assert (
        "cannot write standard output: No space left on device; the run goes on without"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert (tmp_path / "distill/full/result.json").exists()


class Grows(Distiller):
    """Has another term from the second epoch on."""

    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        losses = {"loss_ce": F.cross_entropy(logits, target)}
        return logits, losses | (
            {"loss_late": 0.1 * logits.square().mean()} if kwargs["epoch"] > 1 else {}
        )


def test_a_method_may_have_other_terms_in_other_epochs(train, tmp_path, monkeypatch):
    monkeypatch.setitem(distiller_dict, "NONE", Grows)
    assert train("whole", "DISTILLER.TYPE", "NONE").code == 0
    assert train("a", "DISTILLER.TYPE", "NONE", "SOLVER.EPOCHS", "1").code == 0
    assert train("a", "DISTILLER.TYPE", "NONE", "--resume").code == 0
    assert outcome(tmp_path / "distill/a") == outcome(tmp_path / "distill/whole")


def test_another_number_of_threads_is_warned_of(train):
    assert train("a", "SOLVER.EPOCHS", "1").code == 0
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        again = train("a", "--resume")
    finally:
        torch.set_num_threads(before)
    assert again.code == 0
    assert f"the run had {before} threads and now has {before + 1}" in again.err


PLACES = {
    "an image": lambda batch, student: batch.image[3, 1, 4, 4].fill_(torch.nan),
    "a weight": lambda batch, student: student.fc.weight.data[0, 0].fill_(torch.inf),
    "a gradient": lambda batch, student: student.fc.bias.register_hook(
        lambda gradient: gradient * torch.nan
    ),
    "a logit": lambda batch, student: student.fc.register_forward_hook(lambda m, i, out: out / 0),
    "a feature": lambda batch, student: student.bn1.register_forward_hook(
        lambda m, i, out: out * torch.inf
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_learned_from_what_is_not_finite(train, tmp_path, monkeypatch, figure, place):
    forward, check = Trainer.forward, Trainer.check_update
    steps = (1, 5, 12)
    for step in steps:
        calls, weights = [], []

        def remember(self, weights=weights):
            weights.append(
                {key: value.clone() for key, value in self.distiller.student.named_parameters()}
            )

        def broken(self, epoch, *inputs, calls=calls, step=step, remember=remember):
            calls.append(1)
            if len(calls) != step:
                return forward(self, epoch, *inputs)
            remember(self)
            make = self.data.train.batch

            def batch(*inputs):
                made = make(*inputs)
                PLACES[place](made, self.distiller.student)
                return made

            with monkeypatch.context() as patch:
                patch.setattr(self.data.train, "batch", batch)
                return forward(self, epoch, *inputs)

        def checked(self, epoch, remember=remember):
            try:
                check(self, epoch)
            except ArithmeticError:
                remember(self)
                raise

        monkeypatch.setattr(Trainer, "forward", broken)
        monkeypatch.setattr(Trainer, "check_update", checked)
        done = train(f"step {step}", "DISTILLER.TYPE", "NONE", "SOLVER.AMP", "off")
        assert done.code == 3, done.err
        epoch, within = divmod(step - 1, STEPS)
        assert f"not finite in epoch {epoch + 1}, step {within + 1};" in done.err
        before, now = weights
        for key, value in now.items():
            if place != "a weight" or key != "fc.weight":
                assert torch.equal(value, before[key])
        folder = tmp_path / "distill" / f"step {step}"
        about = json.loads((folder / "nonfinite.json").read_text())
        assert (about["epoch"], about["step"], len(about["index"])) == (epoch + 1, within + 1, 100)
        assert (folder / "latest").exists() == (epoch > 0)
    figure(
        "R10",
        f"{place} that is not finite, at {len(steps)} of {len(steps)} steps: no update after it, exit 3",
    )


WORKERS = {
    "hangs": ("time.sleep(60)", "sent nothing for 3 s (DATASET.WORKER_TIMEOUT)"),
    "dies": ("os.kill(os.getpid(), 9)", "died: "),
    "raises": ("raise LookupError('no such colour')", "raised LookupError: no such colour"),
}


@pytest.mark.parametrize("fault", WORKERS)
def test_a_faulty_data_worker_ends_the_run(image_folder, tmp_path, figure, fault):
    """At the first image of the second epoch; the time counts from there to the end of the process."""
    action, message = WORKERS[fault]
    plugin, began = tmp_path / "plugin.py", tmp_path / "began"
    plugin.write_text(
        "import os, time\n"
        "from edkd.dataset import _folder\n"
        "get = _folder.FolderImages.__getitem__\n"
        "def broken(self, item):\n"
        "    if os.path.exists('distill/a/latest'):\n"
        f"        open({str(began)!r}, 'a').close()\n"
        f"        {action}\n"
        "    return get(self, item)\n"
        "_folder.FolderImages.__getitem__ = broken\n"
    )
    workers = ["DATASET.NUM_WORKERS", "2", "DATASET.WORKER_TIMEOUT", "3", "EXPERIMENT.NAME", "a"]
    command = [sys.executable, TRAIN, "--plugin", str(plugin), *image_folder, *workers]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    seconds = time.time() - began.stat().st_mtime
    assert done.returncode == 4, done.stderr
    assert message in done.stderr
    assert "a data worker" in done.stderr
    assert load_checkpoint(tmp_path / "distill/a/latest")["epoch"] == 1
    figure("R11", f"a data worker that {fault}: named, exit 4, {seconds:.1f} s later (timeout 3 s)")
    assert seconds < 3 + 5


def test_a_worker_that_dies_during_a_step_costs_nothing(image_folder, tmp_path):
    """torch tells of it by a signal, wherever the main process is: the step is finished and saved first."""
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "import multiprocessing, os, time\n"
        "from edkd.engine.trainer import Trainer\n"
        "step, calls = Trainer.train_step, []\n"
        "def kills(self, *inputs):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 4:\n"
        "        os.kill(multiprocessing.active_children()[0].pid, 9)\n"
        "        time.sleep(1)\n"
        "    return step(self, *inputs)\n"
        "Trainer.train_step = kills\n"
    )
    command = [sys.executable, TRAIN, *image_folder, "DATASET.NUM_WORKERS", "2", "EXPERIMENT.NAME"]
    done = subprocess.run(
        [*command, "a", "--plugin", plugin], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 4, done.stderr
    assert "a data worker died" in done.stderr
    assert load_checkpoint(tmp_path / "distill/a/latest")["progress"]["step"] == 1
    for words in (["a", "--resume"], ["whole"]):
        assert subprocess.run([*command, *words], timeout=100).returncode == 0
    assert outcome(tmp_path / "distill/a") == outcome(tmp_path / "distill/whole")


@pytest.mark.parametrize(
    "method", [name for name, cls in distiller_dict.items() if cls.needs_teacher]
)
def test_a_teacher_is_never_changed(train, teacher, monkeypatch, figure, method):
    """Weights and statistics in memory, and the file; with its answers remembered and without."""
    run, prints, file = Trainer.train, [], teacher.read_bytes()

    def train_between(self):
        real = self.distiller.teacher
        prints.append(fingerprint(real))
        result = run(self)
        prints.append(fingerprint(real))
        assert not any(p.requires_grad or p.grad is not None for p in real.parameters())
        assert not real.training
        return result

    monkeypatch.setattr(Trainer, "train", train_between)
    for i, memo in enumerate(("True", "False")):
        assert train(f"run {i}", "DISTILLER.TYPE", method, "TEACHER_MEMO.ENABLED", memo).code == 0
    figure(
        "R14",
        f"{method}: {len(prints)} hashes of the teacher before and after training, {len(set(prints))} value",
    )
    assert len(prints) == 4
    assert len(set(prints)) == 1
    assert teacher.read_bytes() == file


class HangingWandb(types.ModuleType):
    """A wandb of which nothing ever answers."""

    def __getattr__(self, name):
        if name != "Settings":
            raise AttributeError(name)
        threading.Event().wait()


class HangingWriter:
    """An event file on a disk that has gone away."""

    def __init__(self, *args, **kwargs):
        self.silent = threading.Event()

    def add_scalar(self, *args):
        self.silent.wait()


def test_no_logger_changes_what_is_trained(train, tmp_path, monkeypatch, figure):
    """Off, on, absent, broken, hanging, deleted in mid-run: one result, and a normal end."""
    off = ["LOG.WANDB", "False", "LOG.TENSORBOARD_FREQ", "0"]
    on = ["LOG.WANDB", "True", "LOG.TENSORBOARD_FREQ", "1"]
    monkeypatch.setattr(Background, "START", 0.5)
    close = Background.close
    monkeypatch.setattr(Background, "close", lambda self, seconds: close(self, min(seconds, 0.5)))
    step = Trainer.train_step

    def deletes(self, *inputs):
        for name in ("worklog.txt", "metrics.jsonl"):
            (self.folder / name).unlink(missing_ok=True)
        return step(self, *inputs)

    faults = {
        "off": (off, []),
        "on": (on, []),
        "no wandb": (on, [(sys.modules, "wandb", None)]),
        "wandb hangs": (on, [(sys.modules, "wandb", HangingWandb("wandb"))]),
        "TensorBoard hangs": (on, [(tensorboardX, "SummaryWriter", HangingWriter)]),
        "no folder of events": (on, [(tensorboardX, "SummaryWriter", read_only)]),
        "logs deleted": (on, [(Trainer, "train_step", deletes)]),
    }
    results = {}
    for name, (opts, patches) in faults.items():
        with monkeypatch.context() as patch:
            for owner, attribute, value in patches:
                (patch.setitem if owner is sys.modules else patch.setattr)(owner, attribute, value)
            done = train(name, "DISTILLER.TYPE", "KD", *opts)
        assert (done.code, done.err) == (0, ""), done
        results[name] = outcome(tmp_path / "distill" / name)
        if name.endswith("hangs"):
            assert (
                f"{'Wandb' if 'wandb' in name else 'TensorBoard'} is off: no answer for 0.5 s"
                in done.out
            )
    equal = sum(result == results["off"] for result in results.values())
    figure(
        "R15",
        f"loggers {', '.join(results)}: {equal} of {len(results)} with the same weights and figures",
    )
    assert equal == len(results)


def read_only(*args, **kwargs):
    raise PermissionError("the folder of events is read-only")


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_number_of_workers_does_not_change_what_is_trained(
    image_folder, tmp_path, tool, figure
):
    names = [f"{workers} workers" for workers in (0, 1, 2)]
    for name in names:
        words = [*image_folder, "EXPERIMENT.NAME", name, "DATASET.NUM_WORKERS", name[0]]
        assert tool("train", *words).code == 0
    results = [outcome(tmp_path / "distill" / name) for name in names]
    equal = sum(result == results[0] for result in results)
    figure(
        "R15", f"{', '.join(names)}: {equal} of {len(results)} with the same weights and figures"
    )
    assert equal == len(results)


class Scatters(Distiller):
    """Uses an operation that has no deterministic form."""

    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        assert torch.are_deterministic_algorithms_enabled()
        logits.detach().clone().put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
        return logits, {"loss_ce": logits.square().mean()}


def test_deterministic_refuses_what_is_not(train, monkeypatch):
    monkeypatch.setitem(distiller_dict, "NONE", Scatters)
    refused = train(
        "a", "DISTILLER.TYPE", "NONE", "SOLVER.DETERMINISTIC", "True", "SOLVER.AMP", "off"
    )
    assert refused.code == 2
    assert (
        "SOLVER.DETERMINISTIC: put_ has no deterministic form here; set it False, in a run of another"
        in refused.err
    )
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_changes_nothing_on_a_cpu(train, tmp_path):
    assert train("a", "DISTILLER.TYPE", "KD").code == 0
    assert train("b", "DISTILLER.TYPE", "KD", "SOLVER.DETERMINISTIC", "True").code == 0
    assert outcome(tmp_path / "distill/a") == outcome(tmp_path / "distill/b")
