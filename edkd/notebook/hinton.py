"""Distillation by soft labels, and by the activations of two layers.

G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", NIPS workshop
2014, arXiv:1503.02531.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim

from edkd.dataset.inspection import check_target_form
from edkd.distillers import kd_loss
from edkd.distillers._math import cross_entropy
from edkd.engine.given_back import modes_kept
from edkd.engine.meter import Meter
from edkd.errors import UserError
from edkd.notebook._loop import batches, check_finite, check_pair, checked_logits, logits_of
from edkd.notebook.distiller import BaseDistiller, Objective, device_of


class KDLoss(nn.Module):
    """alpha * T^2 * KL(p_t || p_s) + (1 - alpha) * CE(student, target), p = softmax(logits / T).

    Args:
        T: temperature > 0.
        alpha: share of the teacher, in [0, 1].

    Raises:
        UserError: one is out of its range.
    """

    def __init__(self, T: float = 4.0, alpha: float = 0.5) -> None:
        super().__init__()
        if not 0 < T < math.inf:
            raise UserError(f"KDLoss: T is {T}, but must be greater than 0")
        _check_share("KDLoss", alpha)
        self.T = T
        self.alpha = alpha

    def forward(self, student_pred: Tensor, target: Tensor, teacher_pred: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            student_pred: logits (N,C).
            target: class numbers (N,), or class probabilities (N,C).
            teacher_pred: logits (N,C); they get no gradient.

        Raises:
            UserError: the shapes do not fit.
        """
        shapes = [tuple(part.shape) for part in (student_pred, teacher_pred)]
        if shapes[0] != shapes[1] or student_pred.dim() != 2:
            raise UserError(
                f"KDLoss: student_pred has the shape {shapes[0]}, teacher_pred {shapes[1]}; "
                "expected logits (N,C) of both; the order is (student_pred, target, teacher_pred)"
            )
        check_target_form(target, len(student_pred), "the batch")
        loss_kd = kd_loss(student_pred, teacher_pred.detach(), self.T)
        loss_ce = cross_entropy(student_pred, target)
        return self.alpha * loss_kd + (1 - self.alpha) * loss_ce


class HintonDistiller(BaseDistiller):
    """Matches the activations a of two layers, and learns from the labels.

    (1 - alpha) * distillObjective(log_softmax(a_student), softmax(a_teacher))
    + alpha * objective(log_softmax(logits_student), target)

    Args:
        alpha: share of the labels, in [0, 1].
        studentLayer: the layer whose output is a_student, flattened; if it returns several
            tensors, the first. A number among the model's children, from the end if negative.
        teacherLayer: the same for the teacher.
        logdir: see `BaseDistiller`.

    Raises:
        UserError: `alpha` is out of its range.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        studentLayer: int = -2,
        teacherLayer: int = -2,
        logdir: str | Path = "runs",
    ) -> None:
        super().__init__(logdir)
        _check_share("HintonDistiller", alpha)
        self.alpha = alpha
        self.studentLayer = studentLayer
        self.teacherLayer = teacherLayer

    def train_step(
        self,
        student: nn.Module,
        teacher: nn.Module,
        dataloader: Iterable[Any],
        objective: Objective,
        distillObjective: Callable[[Tensor, Tensor], Tensor],
        optimizer: optim.Optimizer,
    ) -> dict[str, float]:
        """Train the student for an epoch; the teacher runs in eval mode and gets no gradient.

        Args:
            dataloader: yields (images, targets).
            objective: (log-probabilities (N,C), class numbers (N,)) -> a scalar.
            distillObjective: (log-probabilities (N,D), probabilities (N,D)) -> a scalar.

        Returns:
            "Train/Loss", "Train/Distillation", "Train/Objective", and "Train/Accuracy" in percent.

        Raises:
            UserError: there are no such layers, or the shapes of their outputs differ; a network,
                the optimizer or a batch cannot be used.
            NonFiniteError: a loss is not finite.
        """
        check_pair(student, teacher, optimizer)
        meter = Meter()
        device = device_of(student)
        student.train()

        with (
            modes_kept([teacher]),
            output_of(student, self.studentLayer, "studentLayer") as of_student,
            output_of(teacher, self.teacherLayer, "teacherLayer") as of_teacher,
        ):
            teacher.to(device).eval()
            for image, target in batches(dataloader, device, "training"):
                # Both networks; the hooks keep the outputs of the layers.
                logits = checked_logits("student", student, image, target)
                with torch.no_grad():
                    logits_of(teacher, image)
                a_student, a_teacher = _activations(of_student, of_teacher)

                # The loss.
                matched = distillObjective(a_student.log_softmax(1), a_teacher.softmax(1))
                labelled = objective(logits.log_softmax(1), target)
                loss = (1 - self.alpha) * matched + self.alpha * labelled

                # The update.
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

                terms = {"Loss": loss, "Distillation": matched, "Objective": labelled}
                detached = {name: term.detach() for name, term in terms.items()}
                meter.add(detached, logits.detach(), target)

        means = check_finite(meter.read(), "training")
        means["Accuracy"] = means.pop("top1")
        return {f"Train/{name}": value for name, value in means.items()}


def _check_share(name: str, alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise UserError(f"{name}: alpha is {alpha}, but must be from 0 to 1")


@contextmanager
def output_of(model: nn.Module, layer: int, name: str) -> Iterator[list[Tensor]]:
    """A list that gets the output of a child of a model at each forward pass.

    Args:
        layer: number of the child, from the end if negative.
        name: of the setting, for messages.

    Raises:
        UserError: there is no such child.
    """
    children = list(model.children())
    if not -len(children) <= layer < len(children):
        kind = type(model).__name__
        raise UserError(f"{name} is {layer}, but {kind} has {len(children)} children")

    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, (tuple, list)) else output)

    hook = children[layer].register_forward_hook(keep)
    try:
        yield outputs
    finally:
        hook.remove()


def _activations(of_student: list[Tensor], of_teacher: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The last outputs, flattened to (N,D) each; both lists are emptied."""
    if not (of_student and of_teacher):
        raise UserError(
            "studentLayer or teacherLayer is a layer that its network does not call; name another"
        )
    a_student = of_student[-1].flatten(1)
    a_teacher = of_teacher[-1].flatten(1)
    of_student.clear()
    of_teacher.clear()

    if a_student.shape != a_teacher.shape:
        shapes = f"{tuple(a_student.shape)} and {tuple(a_teacher.shape)}"
        raise UserError(
            f"studentLayer and teacherLayer have outputs of shape {shapes}; name two that agree"
        )
    return a_student, a_teacher
