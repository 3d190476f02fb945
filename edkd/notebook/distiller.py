"""A base for distillers whose training loop the user writes."""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim
from tqdm.auto import tqdm

from edkd.engine.checkpoint import load_checkpoint, save_checkpoint
from edkd.engine.given_back import modes_kept
from edkd.engine.meter import Meter
from edkd.errors import UserError
from edkd.notebook._loop import batches, checked_logits, make_folder

Objective = Callable[[Tensor, Tensor], Tensor]
"""(log-probabilities (N,C), class numbers (N,)) -> a scalar."""


class BaseDistiller:
    """Checkpoints, logs and validation; a subclass defines `train_step`.

    Args:
        logdir: folder of the checkpoints, `checkpoint_<epoch>.pt`, and of TensorBoard's files.

    Example:
        distiller = MyDistiller("runs")
        for epoch in range(1, 6):
            metrics = distiller.train_step(student, teacher, train_loader, optimizer)
            metrics |= distiller.validate(student, test_loader, nn.NLLLoss())
            distiller.print_epoch(epoch, 5, metrics)
            distiller.save(epoch, student, teacher, optimizer)
    """

    def __init__(self, logdir: str | Path = "runs") -> None:
        self.logdir = Path(logdir)
        self.writer: Any = None

    # What a subclass defines.

    def train_step(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Train for an epoch.

        Returns:
            Metrics by name, as {"Train/Loss": ..., "Train/Accuracy": ...}.
        """
        raise NotImplementedError(f"{type(self).__name__} must define train_step")

    # Checkpoints.

    def load_state(
        self,
        checkpoint: str | Path | None,
        student: nn.Module | None = None,
        teacher: nn.Module | None = None,
        optimizer: optim.Optimizer | None = None,
    ) -> int:
        """Load a checkpoint of `save` into the parts that are given.

        Args:
            checkpoint: a file; None: nothing is loaded.

        Returns:
            The epoch to train next: 1, or the one after the checkpoint's.

        Raises:
            UserError: the file is absent or damaged, or does not fit the parts, which then stay
                as they were.
        """
        if checkpoint is None:
            return 1

        state = load_checkpoint(Path(checkpoint))
        if not isinstance(state.get("epoch"), int):
            raise UserError(f"{checkpoint} has no epoch; give a checkpoint that `save` wrote")

        parts = _given(student, teacher, optimizer)
        before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        for name, part in parts.items():
            try:
                part.load_state_dict(state[name])
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                _restore(parts, before)
                kind = type(error).__name__
                raise UserError(f"{checkpoint} has no {name} that fits ({kind})") from None
        return state["epoch"] + 1

    def save(
        self,
        epoch: int,
        student: nn.Module | None,
        teacher: nn.Module | None,
        optimizer: optim.Optimizer | None,
    ) -> Path:
        """Write the parts that are given; return the path of the file."""
        parts = _given(student, teacher, optimizer)
        states = {name: part.state_dict() for name, part in parts.items()}

        path = make_folder(self.logdir) / f"checkpoint_{epoch}.pt"
        save_checkpoint({"epoch": epoch} | states, path)
        return path

    # Logs.

    def init_tensorboard_logger(self) -> None:
        """Make `log` write scalars for TensorBoard."""
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(make_folder(self.logdir)))

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        """Write the metrics of an epoch, after `init_tensorboard_logger`."""
        if self.writer is None:
            return
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def print_epoch(self, epoch: int, epochs: int, metrics: dict[str, float]) -> None:
        """Print the metrics of an epoch in one line."""
        figures = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        tqdm.write(f"epoch {epoch}/{epochs}: {figures}")

    # Validation.

    @torch.no_grad()
    def validate(
        self, student: nn.Module, dataloader: Iterable[Any], objective: Objective
    ) -> dict[str, float]:
        """Evaluate the student; each of its modules keeps its mode.

        Returns:
            "Validation/Loss", and "Validation/Accuracy" in percent.
        """
        meter = Meter()
        device = device_of(student)

        with modes_kept([student]):
            student.eval()
            for image, target in batches(dataloader, device, "validation"):
                logits = checked_logits("student", student, image, target)
                loss = objective(logits.log_softmax(1), target)
                meter.add({"loss": loss}, logits, target)

        means = meter.read()
        return {"Validation/Loss": means["loss"], "Validation/Accuracy": means["top1"]}


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters; the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _given(student: Any, teacher: Any, optimizer: Any) -> dict[str, Any]:
    parts = {"student": student, "teacher": teacher, "optimizer": optimizer}
    return {name: part for name, part in parts.items() if part is not None}


def _restore(parts: dict[str, Any], states: dict[str, Any]) -> None:
    for name, part in parts.items():
        part.load_state_dict(states[name])
