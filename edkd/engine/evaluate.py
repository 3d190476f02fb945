"""Accuracy and loss of a model on a set of images."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from edkd import world
from edkd.dataset import Loader
from edkd.types import class_numbers


@torch.inference_mode()
def evaluate(classify: Callable[[Tensor], Tensor], loader: Loader) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent, and the mean cross-entropy, of a set.

    Each process runs its share of the images; all return the figures of the whole set.

    With fewer than five classes, top-5 is top-C.

    Args:
        classify: images (N,3,H,W) -> logits (N,C), or (S,N,C) of S students; in eval mode.
        loader: batches of the set.

    Returns:
        `top1`, `top5` and `loss`. With several students these are means over them;
        `student1_top1`, ... belong to each student, and `ensemble_top1`, ... to the mean of their
        probabilities.
    """
    sums: Tensor | float = 0.0
    for batch in loader.epoch():
        logits = classify(batch.image).float()
        networks = list(logits) if logits.dim() == 3 else [logits]
        if len(networks) > 1:
            networks.append(ensemble_logits(logits))

        of_batch = [_sums(row, batch.target) for row in networks]
        sums = sums + torch.stack(of_batch)

    assert isinstance(sums, Tensor), "the loader has no batch"
    sums = world.add_up(sums.clone())
    rows = [_figures(row, loader.num_images) for row in sums.tolist()]
    if len(rows) == 1:
        return rows[0]

    *students, ensemble = rows
    result = {key: _mean(students, key) for key in ensemble}
    for number, row in enumerate(students, 1):
        result |= _named(f"student{number}", row)
    return result | _named("ensemble", ensemble)


def ensemble_logits(logits: Tensor) -> Tensor:
    """The logarithm of the mean probability of S students.

    Args:
        logits: (S,N,C).

    Returns:
        (N,C).
    """
    total = logits.log_softmax(2).logsumexp(0)
    return total - math.log(len(logits))


def top_k_hits(logits: Tensor, target: Tensor, k: int = 5) -> Tensor:
    """Whether the target is the first choice, and whether it is among the first k.

    Args:
        logits: (N,C).
        target: (N,), class numbers.

    Returns:
        (N,2), bool.
    """
    choices = logits.topk(min(k, logits.shape[1]), 1).indices
    hits = choices == target[:, None]
    return torch.stack([hits[:, 0], hits.any(1)], 1)


def _sums(logits: Tensor, target: Tensor) -> Tensor:
    """Sums over the images, (3,): hits of the first choice, of the first five, cross-entropy."""
    loss = F.cross_entropy(logits, target, reduction="none")
    hits = top_k_hits(logits, class_numbers(target))
    return torch.cat([hits, loss[:, None]], 1).sum(0)


def _mean(rows: list[dict[str, float]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def _named(name: str, figures: dict[str, float]) -> dict[str, float]:
    return {f"{name}_{key}": value for key, value in figures.items()}


def _figures(sums: list[float], num_images: int) -> dict[str, float]:
    top1, top5, loss = (value / num_images for value in sums)
    return {"top1": 100 * top1, "top5": 100 * top5, "loss": loss}
