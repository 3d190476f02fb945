"""Single passes over a loader, for loops that the user writes: one trains, one evaluates."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim
from tqdm.auto import tqdm

from edkd.dataset.inspection import checked
from edkd.distillers._math import cross_entropy
from edkd.distillers.dml import mutual_loss
from edkd.engine.meter import Meter
from edkd.errors import NonFiniteError, StorageError, UserError

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
        UserError: the loader yields no batches, or batches of another form.
        NonFiniteError: a loss is not finite.
    """
    for student in students:
        student.to(device).train()
    meters = [Meter() for _ in students]

    for image, target in batches(loader, device, "training", num_classes):
        logits = [logits_of(student, image) for student in students]

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
    """Evaluate models, and their ensemble, in one pass; each model keeps its mode.

    Returns:
        For each model, and last for the mean of their probabilities: `loss` (cross-entropy),
        `accuracy` in percent, `total_samples`.

    Raises:
        UserError: there is no model, or see `train_cohort`.
    """
    if not models:
        raise UserError("there are no models to evaluate")
    modes = [model.training for model in models]
    meters = [Meter() for _ in range(len(models) + 1)]
    for model in models:
        model.to(device).eval()

    try:
        for image, target in batches(loader, device, "evaluation", num_classes):
            logits = torch.stack([logits_of(model, image).float() for model in models])
            ensemble = logits.log_softmax(2).logsumexp(0) - math.log(len(models))
            for meter, row in zip(meters, [*logits, ensemble], strict=True):
                meter.add({"loss": cross_entropy(row, target)}, row, target)
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)

    return [_figures(meter) for meter in meters]


def _figures(meter: Meter) -> dict[str, Any]:
    means = meter.read()
    return {"loss": means["loss"], "accuracy": means["top1"], "total_samples": meter.count}


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
    for number, batch in enumerate(bar, 1):
        image, target = checked(batch, f"{doing}: batch {number}", num_classes)
        yield image.to(device), target.to(device)
    if not number:
        raise UserError(f"{doing}: the loader yields no batches")


def logits_of(model: nn.Module, image: Tensor) -> Tensor:
    """The logits of a model that returns logits, or (logits, features)."""
    output = model(image)
    return output[0] if isinstance(output, (tuple, list)) else output


def check_finite(figures: dict[str, float], doing: str) -> dict[str, float]:
    """The figures; raises NonFiniteError if one is not finite."""
    bad = [name for name, value in figures.items() if not math.isfinite(value)]
    if bad:
        names = ", ".join(bad)
        raise NonFiniteError(f"{doing}: {names} is not finite; lower the learning rate")
    return figures


def in_notebook() -> bool:
    """Whether this runs in Jupyter."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell"


def make_folder(folder: Path) -> Path:
    """Create a folder where there is none; raises StorageError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create the folder {folder}: {error.strerror}") from None
    return folder
