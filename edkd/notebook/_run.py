"""A run of the engine in which students learn from one another."""

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn, optim
from tqdm.auto import tqdm

from edkd.api import distill
from edkd.distillers._cohort import COHORT_KEYS, Cohort
from edkd.engine.log.logger import Record
from edkd.notebook._loop import Divergence, in_notebook, kl_from_peer, peer_loss
from edkd.registry import METHODS
from edkd.types import Batch, Output

METHOD = "MutualLearning"


class MutualLearning(Cohort):
    """For each student: CE(student, target) + the mean divergence from its peers.

    It also counts the correct predictions of each student in training: the engine reports their
    mean. The counts are part of the checkpoints.
    """

    defaults = dict(COHORT_KEYS)
    divergence: ClassVar[Divergence]
    instances: ClassVar[list["MutualLearning"]]
    hits: Tensor
    images: Tensor
    counted_epoch: Tensor

    def __init__(self, student: nn.ModuleList, *args: Any, **kwargs: Any) -> None:
        super().__init__(student, *args, **kwargs)
        self.register_buffer("hits", torch.zeros(len(student), dtype=torch.long))
        self.register_buffer("images", torch.zeros((), dtype=torch.long))
        self.register_buffer("counted_epoch", torch.zeros((), dtype=torch.long))
        self.instances.append(self)

    def start_epoch(self, epoch: int) -> None:
        """Start to count, unless a resumed run is within this epoch."""
        if int(self.counted_epoch) != epoch:
            self.hits.zero_()
            self.images.zero_()
            self.counted_epoch.fill_(epoch)

    def losses(self, students: list[Output], teacher: None, batch: Batch) -> dict[str, Tensor]:
        """See `Cohort`."""
        logits = [student.logits for student in students]
        self._count(logits, batch.target)

        numbers = range(len(logits))
        return {f"loss_kd_student{i + 1}": peer_loss(logits, i, self.divergence) for i in numbers}

    @torch.no_grad()
    def _count(self, logits: list[Tensor], target: Tensor) -> None:
        classes = target.argmax(1) if target.dim() == 2 else target
        self.hits += torch.stack([(row.argmax(1) == classes).sum() for row in logits])
        self.images += len(classes)

    def accuracies(self) -> list[float]:
        """Top-1 of each student in the present epoch of training, in percent."""
        return (100 * self.hits.cpu().double() / self.images.cpu()).tolist()


class Epoch(NamedTuple):
    """Figures of a finished epoch."""

    number: int
    """From 1."""
    lr: float
    """Learning rate of its last step, on the scale of SOLVER.LR."""
    students: list[dict[str, float]]
    """For each student: loss, loss_ce, loss_kd, top1 of training; test_loss, test_top1."""
    ensemble_top1: float
    """Of the mean of the students' probabilities, on the test set, in percent."""


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
    settings = {
        "output": folder.parent.parent,
        "EXPERIMENT.PROJECT": folder.parent.name,
        "name": folder.name,
        "SOLVER.AMP": "off",
    } | settings

    with _shown_epochs(epochs) as show:

        def report(record: Record) -> None:
            epoch = _epoch_of(record, method.instances[-1].accuracies())
            show(epoch, on_epoch)

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
                **settings,
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
    """The method for a run; it keeps the distiller that the engine creates."""
    own = {"divergence": staticmethod(divergence), "instances": []}
    return type(METHOD, (MutualLearning,), own)


def _epoch_of(record: Record, accuracies: Sequence[float]) -> Epoch:
    students = []
    for number, top1 in enumerate(accuracies, 1):
        loss_ce = record[f"train_loss_ce_student{number}"]
        loss_kd = record[f"train_loss_kd_student{number}"]
        figures = {
            "loss": loss_ce + loss_kd,
            "loss_ce": loss_ce,
            "loss_kd": loss_kd,
            "top1": top1,
            "test_loss": record[f"test_student{number}_loss"],
            "test_top1": record[f"test_student{number}_top1"],
        }
        students.append(figures)
    return Epoch(int(record["epoch"]), record["lr"], students, record["test_ensemble_top1"])


@contextmanager
def _shown_epochs(epochs: int) -> Iterator[Callable[..., None]]:
    """Show lines of `on_epoch` instead of the engine's, which stay in `worklog.txt`.

    In Jupyter, where the engine has no progress bar, a bar counts the epochs.
    """
    screen = sys.stdout
    bar = tqdm(total=epochs, desc="epochs", leave=False, disable=not in_notebook())

    def show(epoch: Epoch, on_epoch: Callable[[Epoch], None]) -> None:
        bar.update(epoch.number - bar.n)
        with redirect_stdout(screen):
            on_epoch(epoch)

    with bar, redirect_stdout(io.StringIO()):
        yield show
