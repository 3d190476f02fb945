"""What the loops share: a pass over a DataLoader that trains a cohort, and one that measures it."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from tqdm.auto import tqdm

from edkd.distillers.dml import mutual_loss
from edkd.engine.meter import Meter
from edkd.errors import NonFiniteError, StorageError, UserError

Divergence = Callable[[Tensor, Tensor], Tensor]
"""(logits of a student, logits of a peer) (N,C) -> a scalar."""


def kl_from_peer(logits_student: Tensor, logits_peer: Tensor) -> Tensor:
    """mean_n KL(p_peer || p_student), the divergence of deep mutual learning."""
    return mutual_loss(logits_student, [logits_peer])


def logits_of(model: nn.Module, image: Tensor) -> Tensor:
    """What a model answers: logits, or the first of (logits, features)."""
    answer = model(image)
    return answer[0] if isinstance(answer, (tuple, list)) else answer


def batches(
    loader: Iterable[Any], device: torch.device, doing: str, num_classes: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(image, target) of each batch on the device, with a progress bar in a terminal and in a notebook.

    Raises:
        UserError: there is no batch, or a class number is `num_classes` or higher, which spoils a CUDA device.
    """
    image, disable = None, False if in_notebook() else None
    for image, target in tqdm(loader, desc=doing, leave=False, disable=disable, dynamic_ncols=True):
        if num_classes and (highest := int(target.max())) >= num_classes:
            raise UserError(f"{doing}: an image has class {highest}, but num_classes is {num_classes}, counted from 0")
        yield image.to(device), target.to(device)
    if image is None:
        raise UserError(f"{doing}: the loader yields nothing")


def in_notebook() -> bool:
    """Whether this runs in Jupyter, which shows what is displayed."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell"


def make_folder(folder: Path) -> Path:
    """The folder, which is there from now on. Raises StorageError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror}") from None
    return folder


def student_loss(logits: Sequence[Tensor], target: Tensor, i: int, divergence: Divergence) -> dict[str, Tensor]:
    """`loss_ce`, `loss_kd` and `loss` of student i; its peers are taken as given (DML, equation of a cohort)."""
    peers = [divergence(logits[i], z.detach()) for j, z in enumerate(logits) if j != i]
    losses = {"loss_ce": F.cross_entropy(logits[i].float(), target), "loss_kd": torch.stack(peers).mean()}
    return losses | {"loss": losses["loss_ce"] + losses["loss_kd"]}


def train_cohort(
    students: Sequence[nn.Module],
    optimizers: Sequence[optim.Optimizer],
    loader: Iterable[Any],
    device: torch.device,
    divergence: Divergence = kl_from_peer,
    doing: str = "training",
    num_classes: int | None = None,
) -> list[dict[str, float]]:
    """A pass in which students learn from one another, with one forward pass each a batch.

    Args:
        loader: yields (images, targets).

    Returns:
        Of each student the means of `loss_ce`, `loss_kd`, `loss` and `top1` in percent.

    Raises:
        NonFiniteError: a loss was not finite.
    """
    for student in students:
        student.to(device).train()
    meters = [Meter() for _ in students]
    for image, target in batches(loader, device, doing, num_classes):
        logits = [logits_of(student, image) for student in students]
        for i, (optimizer, meter) in enumerate(zip(optimizers, meters, strict=True)):
            losses = student_loss(logits, target, i, divergence)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            meter.add({name: loss.detach() for name, loss in losses.items()}, logits[i].detach(), target)
        for optimizer in optimizers:
            optimizer.step()
    return [finite(meter.read(), doing) for meter in meters]


@torch.no_grad()
def measure(
    models: Sequence[nn.Module], loader: Iterable[Any], device: torch.device, num_classes: int | None = None
) -> list[dict[str, Any]]:
    """Loss, accuracy in percent and number of samples of each model, and last of their ensemble, in one pass.

    The ensemble answers with the mean of the models' probabilities. Each model is put back into the mode it was in.
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
                meter.add({"loss": F.cross_entropy(row, target)}, row, target)
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)
    figures = [(meter.read(), meter.count) for meter in meters]
    return [{"loss": read["loss"], "accuracy": read["top1"], "total_samples": count} for read, count in figures]


def finite(figures: dict[str, float], doing: str) -> dict[str, float]:
    """The figures; raises NonFiniteError where one is not finite."""
    if bad := [name for name, value in figures.items() if not math.isfinite(value)]:
        raise NonFiniteError(f"{doing}: {', '.join(bad)} is not finite; lower the learning rate")
    return figures
