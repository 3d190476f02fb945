"""Whole runs: one in a folder, independent of loggers and workers, stopped at NaN."""

import errno
import json
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tensorboardX import event_file_writer

from edkd.distillers import Distiller, distiller_dict
from edkd.engine.checkpoint import fingerprint, load_checkpoint
from edkd.engine.log.background import Background
from edkd.engine.train_step import TrainStep
from edkd.engine.trainer import Trainer
from edkd.folder_lock import fcntl
from tests.conftest import FORM
from tests.reliability.faults import STEPS
from tests.runs import NEED_STAGES, TINY_OPTIONS, outcome
from tests.short_forms import slow_but

NEEDS_TEACHER = [
    name for name, cls in distiller_dict.items() if cls.needs_teacher and name not in NEED_STAGES
]
SHORT = ("EDKD", "RKD", "CRD", "REVIEWKD", "SIMKD", "MLKD")
"""Methods of the short form: with each kind of output of the teacher."""

BATCH_SIZE = 100 if FORM == "full" else 8
"""Of the fixture `words`."""

# R9: two runs at once.


def test_of_two_runs_at_once_in_one_folder_one_is_refused(server, words, tmp_path, extent, figure):
    """New runs and resumed runs, started at the same moment and a little apart."""
    words = [*words[:-1], "LOG.SAVE_CHECKPOINT_FREQ", "1", "EXPERIMENT.NAME"]
    assert server.run("train", *words, "whole")[0] == 0
    expected = outcome(tmp_path / "distill/whole")

    pairs = extent(2, 20, all_=8)
    unharmed = 0
    slowest = 0.0
    for i in range(pairs):
        name = f"pair {i // 2}"
        folder = tmp_path / "distill" / name
        resume = ["--resume"] if i % 2 else []
        if resume:  # of the run of the pair before, as it was after its first epoch
            (folder / "latest").write_bytes((folder / "epoch_1").read_bytes())

        done = start_two(server, [*words, name, *resume], apart=0.005 * (i % 4))
        (code, *_), (refused, seconds, complaint) = sorted(done)
        slowest = max(slowest, seconds)
        unharmed += outcome(folder) == expected
        if resume and (code, refused) == (0, 0):
            continue  # the first had ended before the second looked at its folder
        assert (code, refused) == (0, 2), complaint
        assert "already holds a run" in complaint or "is in use by another process" in complaint

    figure(
        "R9",
        f"{unharmed} of {pairs} pairs started at once: one refused, within {slowest:.1f} s, the "
        "other unharmed",
    )
    assert unharmed == pairs
    assert slowest < extent(10, 2)


def start_two(server, words, apart):
    """(exit code, seconds, standard error) of two equal commands."""
    started = []
    for _ in range(2):
        started.append((server.start("train", *words), time.monotonic()))
        time.sleep(apart)

    done = []
    threads = []
    for command, start in started:

        def wait(command=command, start=start):
            code = command.wait()
            done.append((code, time.monotonic() - start, command.err))

        threads.append(threading.Thread(target=wait))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


HOLD_LOCK = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(fcntl is None, reason="this system has no such locks")
def test_a_folder_in_use_is_refused(train, tmp_path):
    assert train("a", "SOLVER.EPOCHS", "1").code == 0
    holder = [sys.executable, "-c", HOLD_LOCK, str(tmp_path / "distill/a/.lock")]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        refused = train("a", "--resume")
        assert refused.code == 2
        assert "is in use by another process" in refused.err
        process.kill()
    assert train("a", "--resume").code == 0


@pytest.mark.skipif(fcntl is None, reason="this system has no such locks")
def test_a_file_system_without_locks_causes_a_warning(train, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    done = train("a", "SOLVER.EPOCHS", "1")
    assert done.code == 0
    assert "cannot be locked (No locks available): a second process in it would not be" in done.err


# The surroundings of a run.


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_standard_output_ends_no_run(server, words, tmp_path):
    command = server.start("train", *words, "full", out=Path("/dev/full"))
    command.wait()
    assert "cannot write standard output: No space left on device; the run continues" in command.err
    assert "Traceback" not in command.err
    assert (tmp_path / "distill/full/result.json").exists()


class Grows(Distiller):
    """Has another term from the second epoch on."""

    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        losses = {"loss_ce": F.cross_entropy(logits, target)}
        if kwargs["epoch"] > 1:
            losses["loss_late"] = 0.1 * logits.square().mean()
        return logits, losses


def test_a_method_may_have_other_terms_in_other_epochs(train, tmp_path, monkeypatch):
    monkeypatch.setitem(distiller_dict, "GROWS", Grows)
    opts = ["DISTILLER.TYPE", "GROWS"]
    assert train("whole", *opts).code == 0
    assert train("a", *opts, "SOLVER.EPOCHS", "1").code == 0
    assert train("a", *opts, "--resume").code == 0
    assert outcome(tmp_path / "distill/a") == outcome(tmp_path / "distill/whole")


def test_another_number_of_threads_causes_a_warning(train, monkeypatch):
    assert train("a", "SOLVER.EPOCHS", "1").code == 0
    before = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: before + 1)
    again = train("a", "--resume")
    assert again.code == 0
    assert f"the run had {before} threads and now has {before + 1}" in again.err


class Scatters(Distiller):
    """Uses an operation that has no deterministic form."""

    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        assert torch.are_deterministic_algorithms_enabled()
        logits.detach().clone().put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
        return logits, {"loss_ce": logits.square().mean()}


def test_deterministic_refuses_other_operations(train, monkeypatch):
    monkeypatch.setitem(distiller_dict, "SCATTERS", Scatters)
    refused = train("a", "DISTILLER.TYPE", "SCATTERS", "SOLVER.DETERMINISTIC", "True")
    assert refused.code == 2
    message = "SOLVER.DETERMINISTIC: put_ has no deterministic form here; set it to False"
    assert message in refused.err
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_changes_nothing_on_a_cpu(train, tmp_path):
    assert train("a", "DISTILLER.TYPE", "KD").code == 0
    assert train("b", "DISTILLER.TYPE", "KD", "SOLVER.DETERMINISTIC", "True").code == 0
    assert outcome(tmp_path / "distill/a") == outcome(tmp_path / "distill/b")


# R10: values that are not finite.


def layer(student, *names):
    """The child of a student that has one of these names."""
    children = {name.rsplit(".", 1)[-1]: module for name, module in student.named_modules()}
    return next(children[name] for name in names if name in children)


PLACES = {
    "an image": lambda batch, student: batch.image[3, 1, 4, 4].fill_(torch.nan),
    "a weight": lambda batch, student: layer(student, "fc").weight.data[0, 0].fill_(torch.inf),
    "a gradient": lambda batch, student: layer(student, "fc").bias.register_hook(
        lambda gradient: gradient * torch.nan
    ),
    "a logit": lambda batch, student: layer(student, "fc").register_forward_hook(
        lambda module, inputs, output: output / 0
    ),
    "a feature": lambda batch, student: layer(student, "bn1", "bn").register_forward_hook(
        lambda module, inputs, output: output * torch.inf
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_learned_from_values_that_are_not_finite(
    train, tmp_path, monkeypatch, figure, place
):
    steps = (1, 5, 12)
    for step in steps:
        with monkeypatch.context() as patch:
            weights = break_step(patch, step, place)
            done = train(f"step {step}", "DISTILLER.TYPE", "NONE", "SOLVER.AMP", "off")
        assert done.code == 3, done.err
        epoch, within = divmod(step - 1, STEPS)
        assert f"not finite in epoch {epoch + 1}, step {within + 1};" in done.err

        before, now = weights
        for key, value in now.items():
            if place != "a weight" or not key.endswith("fc.weight"):
                assert torch.equal(value, before[key]), key

        folder = tmp_path / "distill" / f"step {step}"
        about = json.loads((folder / "nonfinite.json").read_text())
        found = (about["epoch"], about["step"], len(about["index"]))
        assert found == (epoch + 1, within + 1, BATCH_SIZE)
        assert (folder / "latest").exists() == (epoch > 0)
    figure(
        "R10",
        f"{place} that is not finite, at {len(steps)} of {len(steps)} steps: no update after it, "
        "exit 3",
    )


def break_step(patch, step, place):
    """Break a step of the run; the student's weights before it and at the error are returned."""
    forward = TrainStep.forward
    check = Trainer.check_update
    calls = []
    weights = []

    def keep(trainer):
        student = trainer.distiller.student
        weights.append({key: value.clone() for key, value in student.named_parameters()})

    def broken(self, batch, turn=0):
        calls.append(1)
        if len(calls) == step:
            keep(self)
            PLACES[place](batch, self.distiller.student)
        return forward(self, batch, turn)

    def checked(self, epoch):
        try:
            check(self, epoch)
        except ArithmeticError:
            keep(self)
            raise

    patch.setattr(TrainStep, "forward", broken)
    patch.setattr(Trainer, "check_update", checked)
    return weights


# R11: data workers.

WORKERS = {
    "hangs": ("time.sleep(60)", "sent nothing for {timeout} s (DATASET.WORKER_TIMEOUT)"),
    "dies": ("os.kill(os.getpid(), 9)", "died: "),
    "raises": ("raise LookupError('no such colour')", "raised LookupError: no such colour"),
}

FAULTY_IMAGES = """
import os, time
from edkd.dataset.file_images import FolderImages
get = FolderImages.__getitem__
def broken(self, item):
    if os.path.exists('distill/a/latest'):
        open({began!r}, 'a').close()
        {action}
    return get(self, item)
FolderImages.__getitem__ = broken
"""


@pytest.mark.parametrize("fault", WORKERS)
def test_a_faulty_data_worker_ends_the_run(server, image_folder, tmp_path, extent, figure, fault):
    """At the first image of the second epoch; the time counts from there to the end."""
    action, message = WORKERS[fault]
    timeout = extent(1, 3)
    plugin = tmp_path / "plugin.py"
    began = tmp_path / "began"
    plugin.write_text(FAULTY_IMAGES.format(began=str(began), action=action))

    workers = ["DATASET.NUM_WORKERS", "2", "DATASET.WORKER_TIMEOUT", timeout]
    words = ["--plugin", plugin, *workers, *image_folder, "a"]
    fresh = extent(False, True)
    code, err = server.run("train", *words, folder=tmp_path, timeout=100, fresh=fresh)
    seconds = time.time() - began.stat().st_mtime
    assert code == 4, err
    assert message.format(timeout=timeout) in err
    assert "a data worker" in err
    assert load_checkpoint(tmp_path / "distill/a/latest")["epoch"] == 1
    figure(
        "R11",
        f"a data worker that {fault}: named, exit 4, {seconds:.1f} s later (timeout {timeout} s)",
    )
    assert seconds < timeout + 5


KILLS_WORKER = """
import multiprocessing, os, time
from edkd.engine.train_step import TrainStep
step, calls = TrainStep.__call__, []
def kills(self, *inputs):
    calls.append(1)
    if len(calls) == 4:
        os.kill(multiprocessing.active_children()[0].pid, 9)
        time.sleep(0.5)
    return step(self, *inputs)
TrainStep.__call__ = kills
"""


def test_a_worker_that_dies_during_a_step_costs_nothing(server, image_folder, tmp_path):
    """torch reports it by a signal at any time: the step is finished and saved first."""
    plugin = tmp_path / "plugin.py"
    plugin.write_text(KILLS_WORKER)
    words = ["DATASET.NUM_WORKERS", "2", *image_folder]
    code, err = server.run("train", *words, "a", "--plugin", plugin, timeout=100)
    assert code == 4, err
    assert "a data worker died" in err
    assert load_checkpoint(tmp_path / "distill/a/latest")["progress"]["step"] == 1

    assert server.run("train", *words, "a", "--resume")[0] == 0
    assert server.run("train", *words, "whole")[0] == 0
    assert outcome(tmp_path / "distill/a") == outcome(tmp_path / "distill/whole")


# R14: the teacher.


@pytest.mark.parametrize("method", slow_but(SHORT, NEEDS_TEACHER))
def test_a_teacher_is_never_changed(train, words, monkeypatch, figure, method):
    """Weights and statistics in memory, and the file; with cached logits and without."""
    file = Path(words[words.index("DISTILLER.TEACHER_CKPT") + 1])
    before = file.read_bytes()
    run = Trainer.train
    prints = []

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
        opts = ["DISTILLER.TYPE", method, "TEACHER_MEMO.ENABLED", memo]
        assert train(f"run {i}", *opts, *TINY_OPTIONS.get(method, [])).code == 0
    values = len(set(prints))
    figure(
        "R14",
        f"{method}: {len(prints)} hashes of the teacher before and after training, {values} value",
    )
    assert (len(prints), values) == (4, 1)
    assert file.read_bytes() == before


# R15: what looks on.


class HangingWandb(types.ModuleType):
    """A wandb of which nothing ever returns."""

    def __getattr__(self, name):
        if name != "Settings":
            raise AttributeError(name)
        threading.Event().wait()


class HangingWriter:
    """An event file on a disk that has gone away."""

    def __init__(self, *args, **kwargs):
        self.silent = threading.Event()

    def write_event(self, *args):
        self.silent.wait()

    def flush(self):
        pass


def read_only(*args, **kwargs):
    raise PermissionError("the folder of events is read-only")


def deletes_logs(after_step):
    """What follows a step, and deletes the logs first."""

    def deletes(self, *args):
        for name in ("worklog.txt", "metrics.jsonl"):
            (self.folder / name).unlink(missing_ok=True)
        return after_step(self, *args)

    return deletes


def test_no_logger_changes_the_result(train, tmp_path, monkeypatch, extent, figure):
    """Off, on, absent, broken, hanging, deleted in mid-run: one result, and a normal end.

    In the short form, wandb is on only where it is absent or hangs.
    """
    monkeypatch.setattr(Background, "START", 0.5)
    close = Background.close
    monkeypatch.setattr(Background, "close", lambda self, seconds: close(self, min(seconds, 0.5)))

    off = ["LOG.WANDB", "False", "LOG.TENSORBOARD_FREQ", "0"]
    on = ["LOG.WANDB", "True", "LOG.TENSORBOARD_FREQ", "1"]
    no_wandb = ["LOG.WANDB", "False", "LOG.TENSORBOARD_FREQ", "1"]
    full = extent(no_wandb, on, all_=on)
    faults = {
        "off": (off, []),
        "on": (full, []),
        "no wandb": (on, [(sys.modules, "wandb", None)]),
        "wandb hangs": (on, [(sys.modules, "wandb", HangingWandb("wandb"))]),
        "TensorBoard hangs": (full, [(event_file_writer, "EventsWriter", HangingWriter)]),
        "no folder of events": (full, [(event_file_writer, "EventsWriter", read_only)]),
        "logs deleted": (full, [(Trainer, "after_step", deletes_logs(Trainer.after_step))]),
    }

    results = {}
    for name, (opts, patches) in faults.items():
        with monkeypatch.context() as patch:
            for owner, attribute, value in patches:
                set_ = patch.setitem if owner is sys.modules else patch.setattr
                set_(owner, attribute, value)
            done = train(name, "DISTILLER.TYPE", "KD", *opts)
        assert (done.code, done.err) == (0, ""), done
        results[name] = outcome(tmp_path / "distill" / name)
        if name.endswith("hangs"):
            logger = "Wandb" if "wandb" in name else "TensorBoard"
            assert f"{logger} is off: no answer for 0.5 s" in done.out

    equal = sum(result == results["off"] for result in results.values())
    figure(
        "R15",
        f"loggers {', '.join(results)}: {equal} of {len(results)} with the same weights and "
        "figures",
    )
    assert equal == len(results)


def test_the_number_of_workers_does_not_change_the_result(server, image_folder, tmp_path, figure):
    names = [f"{workers} workers" for workers in (0, 1, 2)]
    for name in names:
        words = [*image_folder, name, "DATASET.NUM_WORKERS", name[0]]
        assert server.run("train", *words) == (0, "")
    results = [outcome(tmp_path / "distill" / name) for name in names]
    equal = sum(result == results[0] for result in results)
    figure(
        "R15", f"{', '.join(names)}: {equal} of {len(results)} with the same weights and figures"
    )
    assert equal == len(results)
