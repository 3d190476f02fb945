"""Distillers whose loop you write yourself: a base to extend, and activation matching after Hinton et al.

G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", NIPS workshop 2014, arXiv:1503.02531.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from edkd.distillers import kd_loss
from edkd.distillers._common import at_least_float32
from edkd.engine.checkpoint import load_checkpoint, save_checkpoint
from edkd.engine.meter import Meter
from edkd.errors import UserError
from edkd.notebook._loop import batches, finite, logits_of, make_folder

Objective = Callable[[Tensor, Tensor], Tensor]


class KDLoss(nn.Module):
    """alpha * T^2 * KL(p_teacher || p_student) + (1 - alpha) * CE(student, target), p = softmax(logits / T).

    Args:
        T: temperature > 0.
        alpha: in [0, 1].
    """

    def __init__(self, T: float = 4.0, alpha: float = 0.5) -> None:
        super().__init__()
        self.T, self.alpha = T, alpha

    def forward(self, student_pred: Tensor, target: Tensor, teacher_pred: Tensor) -> Tensor:
        """Logits (N,C), class numbers (N,), logits (N,C); a scalar."""
        divergence = kd_loss(student_pred, teacher_pred.detach(), self.T)
        return self.alpha * divergence + (1 - self.alpha) * F.cross_entropy(at_least_float32(student_pred), target)


class BaseDistiller:
    """Checkpoints, logs and validation; a subclass defines `train_step`.

    Args:
        logdir: for checkpoints, `checkpoint_<epoch>.pt`, and for TensorBoard.
    """

    def __init__(self, logdir: str | Path = "runs") -> None:
        self.logdir = Path(logdir)
        self.writer: Any = None

    def load_state(
        self,
        checkpoint: str | Path | None,
        student: nn.Module | None = None,
        teacher: nn.Module | None = None,
        optimizer: optim.Optimizer | None = None,
    ) -> int:
        """Load what `save` wrote into those that are given; returns the epoch to begin with: 1, or the one after it."""
        if checkpoint is None:
            return 1
        state = load_checkpoint(Path(checkpoint))
        if not isinstance(state.get("epoch"), int):
            raise UserError(f"{checkpoint} tells no epoch; it is no checkpoint of a distiller")
        for name, part in (("student", student), ("teacher", teacher), ("optimizer", optimizer)):
            try:
                if part is not None:
                    part.load_state_dict(state[name])
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise UserError(f"{checkpoint} holds no such {name} ({type(error).__name__})") from None
        return state["epoch"] + 1

    def save(
        self, epoch: int, student: nn.Module | None, teacher: nn.Module | None, optimizer: optim.Optimizer | None
    ) -> Path:
        """Write those that are given; returns the path of the file."""
        path = make_folder(self.logdir) / f"checkpoint_{epoch}.pt"
        parts: dict[str, Any] = {"student": student, "teacher": teacher, "optimizer": optimizer}
        states = {name: part.state_dict() for name, part in parts.items() if part is not None}
        save_checkpoint({"epoch": epoch} | states, path)
        return path

    def init_tensorboard_logger(self) -> None:
        """From now on `log` writes scalars for TensorBoard."""
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(make_folder(self.logdir)))

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        """Write the metrics of an epoch, where there is a logger."""
        if self.writer is not None:
            for name, value in metrics.items():
                self.writer.add_scalar(name, value, epoch)
            self.writer.flush()

    def train_step(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Train for an epoch; returns metrics, as {"Train/Loss": ..., "Train/Accuracy": ...}."""
        raise NotImplementedError(f"{type(self).__name__} must define train_step")

    @torch.no_grad()
    def validate(self, student: nn.Module, dataloader: Iterable[Any], objective: Objective) -> dict[str, float]:
        """{"Validation/Loss", "Validation/Accuracy" (percent)}; the student is put back into the mode it was in."""
        meter, mode, device = Meter(), student.training, _device_of(student)
        student.eval()
        try:
            for image, target in batches(dataloader, device, "validation"):
                logits = logits_of(student, image)
                meter.add({"loss": objective(logits.log_softmax(1), target)}, logits, target)
        finally:
            student.train(mode)
        figures = meter.read()
        return {"Validation/Loss": figures["loss"], "Validation/Accuracy": figures["top1"]}

    def print_epoch(self, epoch: int, epochs: int, metrics: dict[str, float]) -> None:
        """A line for a person."""
        tqdm.write(f"epoch {epoch}/{epochs}: " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))


class HintonDistiller(BaseDistiller):
    """Matches activations a of two layers, and learns from the labels.

    (1 - alpha) * distillObjective(log_softmax(a_student), softmax(a_teacher))
    + alpha * objective(log_softmax(logits_student), target)

    Args:
        alpha: share of the labels, in [0, 1].
        studentLayer, teacherLayer: whose outputs a (the first, of several) are matched, flattened; counted among a
            model's children, from the end where negative.
        logdir: see `BaseDistiller`.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        studentLayer: int = -2,
        teacherLayer: int = -2,
        logdir: str | Path = "runs",
    ) -> None:
        super().__init__(logdir)
        self.alpha, self.studentLayer, self.teacherLayer = alpha, studentLayer, teacherLayer

    def train_step(
        self,
        student: nn.Module,
        teacher: nn.Module,
        dataloader: Iterable[Any],
        objective: Objective,
        distillObjective: Objective,
        optimizer: optim.Optimizer,
    ) -> dict[str, float]:
        """Train the student for an epoch; the teacher is in eval mode meanwhile, and no gradient reaches it.

        Returns:
            {"Train/Loss", "Train/Distillation", "Train/Objective", "Train/Accuracy" (percent)}.

        Raises:
            UserError: there are no such layers, or their outputs differ in shape.
            NonFiniteError: a loss was not finite.
        """
        meter, mode, device = Meter(), teacher.training, _device_of(student)
        teacher.to(device).eval()
        student.train()
        try:
            with (
                output_of(student, self.studentLayer, "studentLayer") as said_student,
                output_of(teacher, self.teacherLayer, "teacherLayer") as said_teacher,
            ):
                for image, target in batches(dataloader, device, "training"):
                    logits = logits_of(student, image)
                    with torch.no_grad():
                        teacher(image)
                    if not (said_student and said_teacher):
                        raise UserError(
                            "studentLayer or teacherLayer is a layer that its network does not call; name another"
                        )
                    a_student, a_teacher = said_student[-1].flatten(1), said_teacher[-1].flatten(1)
                    if a_student.shape != a_teacher.shape:
                        shapes = f"{tuple(a_student.shape)} and {tuple(a_teacher.shape)}"
                        raise UserError(f"studentLayer and teacherLayer give {shapes}; name two that agree")
                    matched = distillObjective(a_student.log_softmax(1), a_teacher.softmax(1))
                    labelled = objective(logits.log_softmax(1), target)
                    loss = (1 - self.alpha) * matched + self.alpha * labelled
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    terms = {"Loss": loss.detach(), "Distillation": matched.detach(), "Objective": labelled.detach()}
                    meter.add(terms, logits.detach(), target)
                    said_student.clear()
                    said_teacher.clear()
        finally:
            teacher.train(mode)
        figures = finite(meter.read(), "training")
        return {f"Train/{'Accuracy' if name == 'top1' else name}": value for name, value in figures.items()}


@contextmanager
def output_of(model: nn.Module, layer: int, name: str) -> Iterator[list[Tensor]]:
    """A list to which the output of a child of a model, the first of several, is added at each forward pass."""
    children, said = list(model.children()), []
    if not -len(children) <= layer < len(children):
        raise UserError(f"{name} is {layer}, but {type(model).__name__} has {len(children)} children")
    hook = children[layer].register_forward_hook(
        lambda module, given, output: said.append(output[0] if isinstance(output, (tuple, list)) else output)
    )
    try:
        yield said
    finally:
        hook.remove()


class MLP(nn.Module):
    """Three linear layers with ReLU between them: (N,in_features) -> (N,out_features)."""

    def __init__(self, in_features: int, out_features: int, hidden: int) -> None:
        super().__init__()
        self.linear1, self.relu1 = nn.Linear(in_features, hidden), nn.ReLU()
        self.linear2, self.relu2 = nn.Linear(hidden, hidden), nn.ReLU()
        self.linear3 = nn.Linear(hidden, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        for layer in self.children():
            x = layer(x)
        return x


class PseudoDataset(Dataset):
    """Random inputs of a size with random labels, always the same, to try a loop with.

    Args:
        size: of an input, a number or several.
        num_samples, num_classes: of the set.
    """

    def __init__(self, size: int | tuple[int, ...] = 100, num_samples: int = 1000, num_classes: int = 10) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (size,) if isinstance(size, int) else tuple(size)
        self.inputs = torch.randn(num_samples, *shape, generator=generator)
        self.targets = torch.randint(num_classes, (num_samples,), generator=generator)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
