"""The parts of `train_dml` for a loop that the user writes: one pass each."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, optim

from edkd.dataset.inspection import checked
from edkd.engine.device import as_current_gpu, pick_device
from edkd.engine.given_networks import check_apart
from edkd.errors import UserError
from edkd.notebook._loop import (
    check_classes,
    kl_from_peer,
    logits_of,
    measure,
    student_losses,
    train_cohort,
)


class Average(NamedTuple):
    """The mean of a figure over an epoch."""

    avg: float


def compute_dml_loss(
    models: Sequence[nn.Module], x: Tensor, y: Tensor, model_idx: int
) -> tuple[Tensor, dict[str, float]]:
    """The loss of model i for a batch, CE + 1 / (S - 1) * sum_j KL(p_j || p_i), for `backward`.

    Each call runs all models, so in training mode their batch norms count the batch each time;
    `train_epoch_dml` runs each model once per batch.

    Args:
        models: S >= 2 models.
        x: images (N,C,H,W).
        y: class numbers (N,).
        model_idx: number i of the model that gets the gradient.

    Returns:
        The loss, a scalar, and "ce_loss", "kl_loss", "total_loss" as numbers.

    Raises:
        UserError: there are fewer than two models, or one twice; the batch does not fit.
    """
    if len(models) < 2:
        raise UserError(f"models has {len(models)} network, but mutual learning needs two")
    check_apart(models)
    image, target = checked((x, y), "the batch (x, y)")
    model_idx %= len(models)

    own = logits_of(models[model_idx], image)
    check_classes(own, target)
    with torch.no_grad():
        peers = [
            None if i == model_idx else logits_of(model, image) for i, model in enumerate(models)
        ]
    logits = [own if row is None else row for row in peers]

    losses = student_losses(logits, target, model_idx, kl_from_peer)
    numbers = {
        "ce_loss": losses["loss_ce"].item(),
        "kl_loss": losses["loss_kd"].item(),
        "total_loss": losses["loss"].item(),
    }
    return losses["loss"], numbers


def train_epoch_dml(
    models: Sequence[nn.Module],
    optimizers: Sequence[optim.Optimizer],
    train_loader: Iterable[Any],
    device: str | torch.device,
    config: dict[str, Any] | None = None,
) -> tuple[list[Average], list[Average]]:
    """Train the models for an epoch, with one forward pass each per batch.

    Args:
        optimizers: one for each model.
        train_loader: yields (images, targets).
        config: `num_classes` is read, as a limit for class numbers.

    Returns:
        The mean loss of each model, and its accuracy in percent.
    """
    with as_current_gpu(str(device)):
        where = pick_device(str(device))
        rows = train_cohort(models, optimizers, train_loader, where, _num_classes(config))
    return _averages(rows, "loss"), _averages(rows, "top1")


def validate_dml(
    models: Sequence[nn.Module],
    val_loader: Iterable[Any],
    device: str | torch.device,
    config: dict[str, Any] | None = None,
) -> tuple[list[Average], list[Average]]:
    """The mean cross-entropy of each model on a set, and its accuracy in percent."""
    rows = evaluate_dml_models(models, val_loader, device, config)[:-1]
    return _averages(rows, "loss"), _averages(rows, "accuracy")


def evaluate_dml_models(
    models: Sequence[nn.Module],
    data_loader: Iterable[Any],
    device: str | torch.device = "auto",
    config: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Evaluate models and their ensemble, the mean of their probabilities.

    Returns:
        For each model, and last for the ensemble: `model_idx` (a number, or "ensemble"), `loss`
        (cross-entropy), `accuracy` in percent, `total_samples`.
    """
    with as_current_gpu(str(device)):
        where = pick_device(str(device))
        rows = measure(models, data_loader, where, _num_classes(config))
    names = [*range(len(models)), "ensemble"]
    return [row | {"model_idx": name} for name, row in zip(names, rows, strict=True)]


def evaluate_ensemble(
    models: Sequence[nn.Module],
    data_loader: Iterable[Any],
    device: str | torch.device = "auto",
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The last row of `evaluate_dml_models`."""
    return evaluate_dml_models(models, data_loader, device, config)[-1]


def _num_classes(config: dict[str, Any] | None) -> int | None:
    return config.get("num_classes") if config else None


def _averages(rows: Sequence[dict[str, Any]], name: str) -> list[Average]:
    return [Average(row[name]) for row in rows]
