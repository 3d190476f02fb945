"""Gradient accumulation: a batch runs in parts, which need less memory than the whole.

The gradient is that of the whole batch, up to rounding and to layers that relate the images of a
batch, as batch norm does.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edkd.distillers import Distiller
from edkd.engine.update import Losses
from edkd.errors import UserError
from edkd.keys import Key
from edkd.types import Batch, View

KEYS = {
    "SOLVER.ACCUMULATE": Key(
        1,
        "split each batch into this many parts to save memory; their gradients are averaged",
        low=1,
        high=2**31,
    ),
}


def split(batch: Batch, number: int) -> list[Batch]:
    """The batch in `number` parts of nearly equal size, or in fewer of two images each.

    Batch norm cannot train on one image.
    """
    size = len(batch.image)
    number = min(number, min(batch.counts or (size,)) // 2)
    if number <= 1:
        return [batch]

    # All processes make as many parts.
    of_processes = [_sizes(count, number) for count in batch.counts]
    counts = list(zip(*of_processes, strict=True)) or [()] * number
    ends = list(itertools.accumulate(_sizes(size, number)))
    starts = [0, *ends[:-1]]
    return [
        _part(batch, slice(start, end), each)
        for start, end, each in zip(starts, ends, counts, strict=True)
    ]


def weighted(losses: Losses, part: Batch, whole: Batch) -> Losses:
    """The losses of a part times its share of the images, so that those of all parts add up."""
    if part is whole:
        return losses
    share = len(part.image) / len(whole.image)
    return {name: share * loss for name, loss in losses.items()}


def add_up(parts: Sequence[Losses]) -> Losses:
    """The losses of a batch, without gradients, from the weighted ones of its parts."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.stack([each[name].detach() for each in parts]).sum() for name in parts[0]}


def joined(logits: Sequence[Tensor]) -> Tensor:
    """The logits of a batch, (N,C) or (S,N,C) of S students, from those of its parts."""
    if len(logits) == 1:
        return logits[0]
    return torch.cat([each.detach() for each in logits], -2)


def check_accumulate(cfg: Any, distiller: Distiller) -> None:
    """Raise UserError where the losses of parts are not those of the whole batch.

    Args:
        cfg: SOLVER.ACCUMULATE and DISTILLER.TYPE are read.
    """
    if cfg.SOLVER.ACCUMULATE == 1:
        return

    name = cfg.DISTILLER.TYPE
    reason = ""
    if distiller.relates_images():
        reason = "relates the images of a batch to one another, as it is configured"
    elif distiller.turns > 1:
        reason = f"makes {distiller.turns} updates for a batch"
    if reason:
        raise UserError(
            f"SOLVER.ACCUMULATE {cfg.SOLVER.ACCUMULATE} splits batches, but DISTILLER.TYPE {name} "
            f"{reason}; set SOLVER.ACCUMULATE 1, and lower SOLVER.BATCH_SIZE to save memory"
        )


def _sizes(size: int, number: int) -> list[int]:
    """Sizes of `number` parts, which differ by 1 at most."""
    return [len(part) for part in torch.arange(size).tensor_split(number)]


def _part(batch: Batch, rows: slice, counts: tuple[int, ...]) -> Batch:
    views = {
        name: View(view.image[rows], None if view.number is None else view.number[rows])
        for name, view in batch.views.items()
    }
    return dataclasses.replace(
        batch,
        image=batch.image[rows],
        target=batch.target[rows],
        index=None if batch.index is None else batch.index[rows],
        views=views,
        counts=counts,
    )
