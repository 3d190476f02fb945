"""Single passes over a loader, for loops that the user writes: one trains, one evaluates."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim
from tqdm.auto import tqdm

from edkd.dataset.inspection import (
    check_range,
    check_same_form,
    checked,
    described,
    with_clear_faults,
)
from edkd.distillers._math import cross_entropy
from edkd.distillers.dml import mutual_loss
from edkd.engine.environment import in_notebook
from edkd.engine.evaluate import ensemble_logits
from edkd.engine.given_back import modes_kept
from edkd.engine.given_networks import (
    check_apart,
    check_optimizer,
    check_trainable,
    warn_of_probabilities,
)
from edkd.engine.meter import Meter
from edkd.errors import NonFiniteError, StorageError, UserError, batch_norm_explained

Divergence = Callable[[Tensor, Tensor], Tensor]
"""(logits of a student (N,C), logits of a peer (N,C)) -> a scalar."""


# Losses.


def kl_from_peer(logits_student: Tensor, logits_peer: Tensor) -> Tensor:
    """mean_n KL(p_peer || p_student), the divergence of deep mutual learning."""
    return mutual_loss(logits_student, [logits_peer])


def peer_loss(logits: Sequence[Tensor], i: int, divergence: Divergence) -> Tensor:
    """The mean divergence of student i from its peers, which get no gradient; a scalar.

    Args:
        logits: of all students, (N,C) each.
        i: number of the student, from 0.
    """
    peers = [row.detach() for j, row in enumerate(logits) if j != i]
    return torch.stack([divergence(logits[i], peer) for peer in peers]).mean()


def student_losses(
    logits: Sequence[Tensor], target: Tensor, i: int, divergence: Divergence
) -> dict[str, Tensor]:
    """`loss_ce`, `loss_kd`, and their sum `loss`, of student i; see `peer_loss`."""
    loss_ce = cross_entropy(logits[i], target)
    loss_kd = peer_loss(logits, i, divergence)
    return {"loss_ce": loss_ce, "loss_kd": loss_kd, "loss": loss_ce + loss_kd}


# Passes.


def train_cohort(
    students: Sequence[nn.Module],
    optimizers: Sequence[optim.Optimizer],
    loader: Iterable[Any],
    device: torch.device,
    num_classes: int | None = None,
) -> list[dict[str, float]]:
    """A pass in which students learn from one another, with one forward pass each per batch.

    Args:
        optimizers: one for each student.
        loader: yields (images, targets).
        num_classes: class numbers must be below it.

    Returns:
        For each student the means of `loss_ce`, `loss_kd`, `loss`, and `top1` in percent.

    Raises:
        UserError: the loader yields no batches, or batches of another form; a network or an
            optimizer cannot be used.
        NonFiniteError: a loss is not finite.
    """
    check_cohort(students, optimizers)
    for student in students:
        student.to(device).train()
    meters = [Meter() for _ in students]

    for image, target in batches(loader, device, "training", num_classes):
        logits = [checked_logits("student", student, image, target) for student in students]

        # All gradients before the first update: each student learns from the same predictions.
        for i, (optimizer, meter) in enumerate(zip(optimizers, meters, strict=True)):
            losses = student_losses(logits, target, i, kl_from_peer)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            detached = {name: loss.detach() for name, loss in losses.items()}
            meter.add(detached, logits[i].detach(), target)

        for optimizer in optimizers:
            optimizer.step()

    return [check_finite(meter.read(), "training") for meter in meters]


@torch.no_grad()
def measure(
    models: Sequence[nn.Module],
    loader: Iterable[Any],
    device: torch.device,
    num_classes: int | None = None,
) -> list[dict[str, Any]]:
    """Evaluate models, and their ensemble, in one pass; each module keeps its mode.

    Returns:
        For each model, and last for the mean of their probabilities: `loss` (cross-entropy),
        `accuracy` in percent, `total_samples`.

    Raises:
        UserError: there is no model, or see `train_cohort`.
    """
    if not models:
        raise UserError("there are no models to evaluate")
    meters = [Meter() for _ in range(len(models) + 1)]

    with modes_kept(models):
        for model in models:
            model.to(device).eval()
        for image, target in batches(loader, device, "evaluation", num_classes):
            rows = [checked_logits("model", model, image, target) for model in models]
            logits = torch.stack([row.float() for row in rows])
            networks = [*logits, ensemble_logits(logits)]
            for meter, row in zip(meters, networks, strict=True):
                meter.add({"loss": cross_entropy(row, target)}, row, target)

    return [_figures(meter) for meter in meters]


def _figures(meter: Meter) -> dict[str, Any]:
    means = meter.read()
    return {"loss": means["loss"], "accuracy": means["top1"], "total_samples": meter.count}


# Checks.


def check_cohort(students: Sequence[nn.Module], optimizers: Sequence[optim.Optimizer]) -> None:
    """Raise UserError if networks are given twice, or an optimizer is not that of its student."""
    if len(optimizers) != len(students):
        raise UserError(
            f"{len(students)} students need {len(students)} optimizers, not {len(optimizers)}"
        )
    check_apart(students)
    for i, (student, optimizer) in enumerate(zip(students, optimizers, strict=True)):
        others = [other for j, other in enumerate(students) if j != i]
        check_trainable(student)
        check_optimizer(optimizer, student, others)


def check_pair(student: nn.Module, teacher: nn.Module, optimizer: optim.Optimizer) -> None:
    """The same for a student with a teacher."""
    check_apart([student], [teacher])
    check_trainable(student)
    check_optimizer(optimizer, student, [teacher])


def check_classes(logits: Tensor, target: Tensor) -> None:
    """Raise UserError if targets do not fit the number of logits (N,C)."""
    num_classes = logits.shape[1]
    if target.dim() == 1:
        check_range(target, "the batch", num_classes)
    elif target.shape[1] != num_classes:
        raise UserError(
            f"the batch has {target.shape[1]} class probabilities, but the network returns "
            f"{num_classes} logits"
        )


# Parts of them.


def batches(
    loader: Iterable[Any], device: torch.device, doing: str, num_classes: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(image, target) of each batch on the device, with a progress bar.

    Args:
        doing: what the batches are for: "training".
        num_classes: class numbers must be below it.

    Raises:
        UserError: there is no batch, or one of another form.
    """
    disable = False if in_notebook() else None  # None: where the output is not a terminal
    bar = tqdm(loader, desc=doing, leave=False, disable=disable, dynamic_ncols=True)

    number = 0
    first_shape: tuple[int, ...] = ()
    for number, batch in enumerate(with_clear_faults(bar, doing), 1):
        what = f"{doing}: batch {number}"
        image, target = checked(batch, what, num_classes)
        first_shape = first_shape or tuple(image.shape[1:])
        check_same_form(image, first_shape, what)

        target = target.float() if target.is_floating_point() else target.long()
        yield image.to(device), target.to(device)

    if not number:
        used_up = " any more; it can be read once" if hasattr(loader, "__next__") else ""
        raise UserError(f"{doing}: the loader yields no batches{used_up}")


def logits_of(model: nn.Module, image: Tensor) -> Tensor:
    """The logits (N,C) of a model that returns logits, or (logits, features).

    The images get the type of the model's parameters.

    Raises:
        UserError: the model returns anything else, or cannot train on a batch of one image.
    """
    dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
    with batch_norm_explained():
        output = model(image.to(dtypes[0]) if dtypes else image)
    logits = output[0] if isinstance(output, (tuple, list)) else output

    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(image):
        raise UserError(
            f"{type(model).__name__} returned {described(output)} for {len(image)} images; "
            "expected logits (N, number of classes), or (logits, features)"
        )
    return logits


def checked_logits(role: str, model: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    """`logits_of` a model, whose number must fit the targets; a warning if they are not logits.

    Args:
        role: of the model, for messages.
    """
    logits = logits_of(model, image)
    check_classes(logits, target)
    warn_of_probabilities(role, model, logits)
    return logits


def check_finite(figures: dict[str, float], doing: str) -> dict[str, float]:
    """The figures; raises NonFiniteError if one is not finite."""
    bad = [name for name, value in figures.items() if not math.isfinite(value)]
    if bad:
        names = ", ".join(bad)
        raise NonFiniteError(f"{doing}: {names} is not finite; lower the learning rate")
    return figures


def make_folder(folder: Path) -> Path:
    """Create a folder where there is none; raises StorageError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create the folder {folder}: {error.strerror}") from None
    return folder
