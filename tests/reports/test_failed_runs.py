"""Reports about runs that failed: what was not finite, and the folder of a run that began badly."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from edkd.distillers import Distiller, distiller_dict
from edkd.engine.abandoned import is_abandoned
from edkd.engine.log.logger import Logger
from edkd.engine.run_folder import claim, refuse_used, take_over
from edkd.engine.train_step import TrainStep
from edkd.errors import NonFiniteError, UserError
from edkd.folder_lock import is_in_use, lock
from tests.runs import assert_refused, records
from tests.small import make_trainer

try:
    import fcntl
except ImportError:
    fcntl = None

needs_locks = pytest.mark.skipif(fcntl is None, reason="this system has no such locks")


# What was not finite.


class RootOfZero(Distiller):
    """A finite loss with a gradient that is not: the root of a squared distance that is 0."""

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher)
        self.scale = torch.nn.Parameter(torch.zeros(1))

    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        loss = (0 * self.student.fc.bias).square().sum().sqrt() + self.scale.square().sum().sqrt()
        return logits, {"loss_ce": F.cross_entropy(logits, target), "loss_kd": loss}


def failure(trainer):
    """The message of the first epoch's NonFiniteError, and the content of nonfinite.json."""
    trainer.logger = Logger(trainer.folder, trainer.cfg, [], 1, 0)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train_epoch(1)
    assert "\n" not in str(caught.value)
    return str(caught.value), json.loads((trainer.folder / "nonfinite.json").read_text())


@pytest.mark.parametrize("opts", [[], ["SOLVER.TYPE", "AdamW"]])
def test_the_parameters_and_the_term_of_a_bad_gradient_are_named(tmp_path, monkeypatch, opts):
    """The report: "norm of the gradient not finite", and no word on where to look.

    As in radixark/miles #2198, where a step that is not finite names its tensors.

    The optimizers here are fused: no host code sees the gradient of the step.
    """
    monkeypatch.setitem(distiller_dict, "TEST_ROOT", RootOfZero)
    message, about = failure(make_trainer("TEST_ROOT", tmp_path, *opts))
    assert "norm of the gradient not finite in epoch 1, step 1; " in message
    assert "the gradient of loss_kd is not finite; " in message
    assert "gradients not finite: 2 of 7, scale, student.fc.bias; " in message
    assert about["gradients_not_finite"] == ["scale", "student.fc.bias"]
    assert about["terms_with_such_gradients"] == ["loss_kd"]
    assert (about["parameters"], about["weights_not_finite_before"]) == (7, [])


def test_a_gradient_that_a_second_try_does_not_reproduce_is_named(tmp_path):
    """The names are those of the step itself."""
    trainer = make_trainer("KD", tmp_path)
    bias = trainer.distiller.student.fc.bias
    calls = []

    def once(gradient):
        calls.append(1)
        return gradient * (torch.nan if len(calls) == 2 else 1)

    bias.register_hook(once)
    message, about = failure(trainer)
    assert "epoch 1, step 2; gradients not finite: 1 of 6, student.fc.bias; " in message
    assert about["gradients_not_finite"] == ["student.fc.bias"]


def test_of_many_parameters_the_first_are_named(tmp_path):
    """A loss that is not finite spoils all gradients; the file has all names."""
    trainer = make_trainer("KD", tmp_path)
    trainer.distiller.task_loss = lambda logits, target: logits.sum() * torch.nan
    message, about = failure(trainer)
    first = "student.conv.weight, student.conv.bias, student.bn.weight, ..."
    assert message.startswith("loss_ce, loss, norm of the gradient not finite")
    assert f"gradients not finite: 6 of 6, {first}; " in message
    assert len(about["gradients_not_finite"]) == 6


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("student", "the weights of student.fc were not finite before; "),
        ("teacher", "the weights of teacher.fc were not finite before; "),
    ],
)
def test_weights_that_are_not_finite_already_are_named(tmp_path, network, message):
    """The report: NaN weights of a network ended in "lower SOLVER.LR"."""
    trainer = make_trainer("KD", tmp_path, cached=False)
    with torch.no_grad():
        getattr(trainer.distiller, network).fc.weight[0, 0] = torch.nan
    found, about = failure(trainer)
    assert message in found
    assert f"{network}.fc.weight" in about["weights_not_finite_before"]


def test_an_image_that_is_not_finite_is_the_cause(tmp_path):
    trainer = make_trainer("NONE", tmp_path)
    make_batch = trainer.data.train.batch

    def broken(*inputs):
        made = make_batch(*inputs)
        made.image[3] = torch.inf
        return made

    trainer.data.train.batch = broken
    message, about = failure(trainer)
    assert "has values that are NaN or infinite; repair or remove it" in message
    assert "lower SOLVER.LR" not in message
    assert about["cause"].startswith("training image ")


def test_an_evaluation_that_is_not_finite_names_the_weights(train_tiny):
    """The last update of the epoch made them infinite; no step of training has seen them."""
    done = train_tiny("a", "SOLVER.LR", "1e39", "SOLVER.BATCH_SIZE", 71, "SOLVER.EPOCHS", 1)
    assert_refused(done, "test_loss is .* the weights of student.*conv are not finite; lower", 3)


# The folder of a run that failed before its first checkpoint.


@pytest.fixture
def failing(monkeypatch):
    """fail(error): the next step raises it; fail(None): steps work again."""
    step = TrainStep.__call__

    def fail(error):
        def broken(self, *args):
            if error is not None:
                raise error
            return step(self, *args)

        monkeypatch.setattr(TrainStep, "__call__", broken)

    return fail


@needs_locks
def test_the_folder_of_a_run_without_a_checkpoint_is_used_again(train_tiny, tmp_path, failing):
    """The report: write a method, crash, fix it, and the same command says "already holds a run".

    As in mlcommons/algorithmic-efficiency #237: the folder must be deleted by hand each time.

    Everyone who writes a method does this many times.
    """
    folder = tmp_path / "distill" / "a"
    failing(TypeError("a mistake in the method"))
    for _ in range(2):
        with pytest.raises(TypeError):
            train_tiny("a", "SOLVER.EPOCHS", 1)
    (folder / "nonfinite.json").write_text("{}")

    failing(None)
    done = train_tiny("a", "SOLVER.EPOCHS", 1)
    assert done.code == 0, done.err
    assert "ended before its first checkpoint was here; its files are replaced" in done.out
    assert len(records(folder)) == 1
    assert not (folder / "nonfinite.json").exists()
    assert len(list((folder / "train.events").iterdir())) == 1
    assert_refused(train_tiny("a", "SOLVER.EPOCHS", 1), "already holds a run")


@pytest.mark.parametrize("name", ["notes.txt", "train.events/mine", "student_best", "latest"])
def test_a_folder_with_any_other_file_is_refused(train_tiny, tmp_path, failing, name):
    """Only files that the failed run itself wrote may be replaced."""
    failing(TypeError())
    with pytest.raises(TypeError):
        train_tiny("a", "SOLVER.EPOCHS", 1)
    folder = tmp_path / "distill" / "a"
    (folder / name).write_text("mine")
    before = (folder / "config.yaml").read_bytes()

    failing(None)
    assert_refused(train_tiny("a", "SOLVER.EPOCHS", 1, "SOLVER.SEED", 2), "already holds a run")
    assert (folder / name).read_text() == "mine"
    assert (folder / "config.yaml").read_bytes() == before


def test_a_run_whose_checkpoints_were_deleted_keeps_its_folder(train_tiny, tmp_path):
    """Its results are still there."""
    assert train_tiny("a", "SOLVER.EPOCHS", 1).code == 0
    folder = tmp_path / "distill" / "a"
    for name in ("latest", "best", "student_latest", "student_best"):
        (folder / name).unlink()
    assert_refused(train_tiny("a", "SOLVER.EPOCHS", 1), "already holds a run")
    (folder / "result.json").unlink()
    assert not is_abandoned(folder)


def test_a_hidden_file_does_not_make_a_folder_a_run(train_tiny, tmp_path):
    folder = tmp_path / "distill" / "a"
    folder.mkdir(parents=True)
    (folder / ".DS_Store").write_text("of a file browser")
    assert train_tiny("a", "SOLVER.EPOCHS", 1).code == 0


@needs_locks
def test_of_two_runs_that_take_over_one_folder_one_is_refused(tmp_path):
    """Both have found it abandoned; the second gets the lock after the first has finished."""
    folder = tmp_path / "a"
    folder.mkdir()
    for name in ("config.yaml", "worklog.txt"):
        (folder / name).write_text("left")
    refuse_used(folder)
    claim(folder)

    with lock(folder):
        assert take_over(folder) != []
        (folder / "latest").write_text("of the first")
    with lock(folder), pytest.raises(UserError, match="already holds a run"):
        take_over(folder)


HOLD_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


@needs_locks
def test_a_run_that_has_no_checkpoint_yet_keeps_its_folder(train_tiny, tmp_path, failing):
    """A live process holds the lock, another one or this one."""
    failing(TypeError())
    with pytest.raises(TypeError):
        train_tiny("a", "SOLVER.EPOCHS", 1)
    folder = tmp_path / "distill" / "a"
    failing(None)

    command = [sys.executable, "-c", HOLD_LOCK, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        assert_refused(train_tiny("a", "SOLVER.EPOCHS", 1), "is in use by another process")
        process.kill()

    with lock(folder):
        assert is_in_use(folder)
        assert_refused(train_tiny("a", "SOLVER.EPOCHS", 1), "is in use by")
    assert not is_in_use(folder)
    assert train_tiny("a", "SOLVER.EPOCHS", 1).code == 0
