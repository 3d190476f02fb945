"""How good a model is on a set."""

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
        classify: images (N,3,H,W) -> logits (N,C), in eval mode and in the precision that is wanted.
    """
    sums: Tensor | float = 0.0
    for batch in loader.epoch():
        logits = classify(batch.image).float()
        loss = F.cross_entropy(logits, batch.target, reduction="none")
        sums = sums + torch.cat([top_k_hits(logits, batch.target), loss[:, None]], 1).sum(0)
    assert isinstance(sums, Tensor)
    top1, top5, loss = (value / loader.num_images for value in sums.tolist())
    return {"top1": 100 * top1, "top5": 100 * top5, "loss": loss}
