"""A run of the engine in which students learn from one another."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn, optim
from tqdm.auto import tqdm

from edkd.api import distill
from edkd.distillers._cohort import COHORT_KEYS, Cohort
from edkd.engine.environment import in_notebook
from edkd.engine.log.background import Record
from edkd.notebook._loop import Divergence, kl_from_peer, peer_loss
from edkd.registry import METHODS
from edkd.types import Batch, Output

METHOD = "MutualLearning"


class MutualLearning(Cohort):
    """For each student: CE(student, target) + the mean divergence from its peers."""

    defaults = dict(COHORT_KEYS)
    divergence: ClassVar[Any]
    """See `Divergence`."""

    def losses(self, students: list[Output], teacher: None, batch: Batch) -> dict[str, Tensor]:
        """See `Cohort`."""
        logits = [student.logits for student in students]
        divergence = type(self).divergence
        return {
            f"loss_kd_student{i + 1}": peer_loss(logits, i, divergence) for i in range(len(logits))
        }


class Epoch(NamedTuple):
    """Figures of a finished epoch."""

    number: int
    """From 1."""
    lr: float
    """Learning rate of the first optimizer in its last step."""
    students: list[dict[str, float]]
    """For each student: loss, loss_ce, loss_kd, top1 of training; test_loss, test_top1."""
    ensemble_top1: float
    """Of the mean of the students' probabilities, on the test set, in percent."""
    ensemble_loss: float
    """The cross-entropy of the same."""


def train_together(
    students: Sequence[nn.Module],
    optimizers: Sequence[optim.Optimizer],
    loaders: tuple[Iterable[Any], Iterable[Any]],
    folder: Path,
    epochs: int,
    on_epoch: Callable[[Epoch], None],
    divergence: Divergence = kl_from_peer,
    **settings: Any,
) -> None:
    """Train students with the engine; afterwards they are in training mode.

    Args:
        optimizers: one for each student.
        loaders: for training, and for the evaluation after each epoch.
        folder: of the run.
        epochs: of the whole run, those of a resumed run included.
        on_epoch: called after each epoch, when its checkpoint is written.
        divergence: (logits of a student, logits of a peer) -> a scalar.
        settings: of `edkd.distill`.
    """
    train_loader, test_loader = loaders
    method = _method_with(divergence)
    folder = folder.absolute()
    own: dict[str, Any] = {
        "output": folder.parent.parent,
        "EXPERIMENT.PROJECT": folder.parent.name,
        "name": folder.name,
        "SOLVER.AMP": "off",
        "LOG.PRINT": False,
    }

    # In Jupyter, where the engine shows no progress bar, a bar counts the epochs.
    bar = tqdm(total=epochs, desc="epochs", leave=False, disable=not in_notebook())

    def report(record: Record) -> None:
        epoch = _epoch_of(record, len(students))
        bar.update(epoch.number - bar.n)
        on_epoch(epoch)

    with bar:
        try:
            distill(
                student=students,
                teacher=None,
                train_loader=train_loader,
                val_loader=test_loader,
                method=method,
                epochs=epochs,
                optimizer=optimizers,
                on_epoch=report,
                **(own | settings),
            )
        finally:
            if METHOD in METHODS:
                METHODS.remove(METHOD)
            for student in students:
                student.train()


def unused_folder(parent: Path, name: str) -> Path:
    """A folder `<name>` or `<name>-<number>` in `parent` that does not exist yet."""
    folder = parent / name
    number = 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def _method_with(divergence: Divergence) -> type[MutualLearning]:
    """The method for a run."""
    return type(METHOD, (MutualLearning,), {"divergence": staticmethod(divergence)})


def _epoch_of(record: Record, num_students: int) -> Epoch:
    students = []
    for number in range(1, num_students + 1):
        loss_ce = record[f"train_loss_ce_student{number}"]
        loss_kd = record[f"train_loss_kd_student{number}"]

        figures = {
            "loss": loss_ce + loss_kd,
            "loss_ce": loss_ce,
            "loss_kd": loss_kd,
            "top1": record[f"train_student{number}_top1"],
            "test_loss": record[f"test_student{number}_loss"],
            "test_top1": record[f"test_student{number}_top1"],
        }
        students.append(figures)

    return Epoch(
        number=int(record["epoch"]),
        lr=record["lr"],
        students=students,
        ensemble_top1=record["test_ensemble_top1"],
        ensemble_loss=record["test_ensemble_loss"],
    )
