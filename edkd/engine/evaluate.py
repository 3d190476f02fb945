"""How good a model is on a set."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from edkd.dataset import Loader


def top_k_hits(logits: Tensor, target: Tensor, k: int = 5) -> Tensor:
    """Of each image: is the target the first choice, is it among the first k. (N,C), (N,) -> (N,2), bool."""
    hits = logits.topk(min(k, logits.shape[1]), 1).indices == target[:, None]
    return torch.stack([hits[:, 0], hits.any(1)], 1)


@torch.inference_mode()
def evaluate(classify: Callable[[Tensor], Tensor], loader: Loader) -> dict[str, float]:
    """Top-1 and top-5 accuracy (percent; top-C where there are fewer classes) and the mean cross-entropy of a set.

    Args:
        classify: images (N,3,H,W) -> logits (N,C), in eval mode and in the precision that is wanted; or (S,N,C) of S
            students.

    Returns:
        top1, top5 and loss. Of several students these are means over them; student1_top1, ... are their own, and
        ensemble_top1, ... are those of the mean of their probabilities.
    """
    sums: Tensor | float = 0.0
    for batch in loader.epoch():
        logits = classify(batch.image).float()
        each = logits if logits.dim() == 3 else logits[None]
        if len(each) > 1:  # the logarithm of the mean probability
            each = torch.cat([each, each.log_softmax(2).logsumexp(0, keepdim=True) - math.log(len(each))])
        sums = sums + torch.stack([_sums(row, batch.target) for row in each])
    assert isinstance(sums, Tensor)
    rows = [[value / loader.num_images for value in row] for row in sums.tolist()]
    figures = [{"top1": 100 * top1, "top5": 100 * top5, "loss": loss} for top1, top5, loss in rows]
    if len(figures) == 1:
        return figures[0]
    students = figures[:-1]
    names = [*(f"student{i}" for i in range(1, len(figures))), "ensemble"]
    means = {key: sum(student[key] for student in students) / len(students) for key in figures[0]}
    return means | {f"{name}_{key}": row[key] for name, row in zip(names, figures, strict=True) for key in row}


def _sums(logits: Tensor, target: Tensor) -> Tensor:
    """Hits of the first choice and of the first five, and cross-entropies, summed over the images: (3,)."""
    loss = F.cross_entropy(logits, target, reduction="none")
    return torch.cat([top_k_hits(logits, target), loss[:, None]], 1).sum(0)
