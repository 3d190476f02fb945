"""The cause of a loss that is not finite, where it is not the training itself."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edkd.types import Batch


@torch.no_grad()
def cause_in(batch: Batch, teachers: Sequence[Callable[[Tensor], Any]], num_classes: int) -> str:
    """What in a batch makes a loss not finite, and what to do; "" where it is none of these.

    Args:
        batch: of the step that failed.
        teachers: networks under the contract of `Network`, as the step ran them.
        num_classes: labels are below it.
    """
    images = [batch.image, *(view.image for view in batch.views.values())]
    for image in images:
        bad = ~image.flatten(1).isfinite().all(1)
        if bad.any():
            return (
                f"{_images(bad, batch)} has values that are NaN or infinite; repair or remove it, "
                "or check the normalisation of the data set"
            )

    bad = _bad_labels(batch.target, num_classes)
    if bad.any():
        return (
            f"the label of {_images(bad, batch)} is not finite, or not a class from 0 to "
            f"{num_classes - 1}; correct the labels"
        )

    for teacher in teachers:
        logits, _ = teacher(batch.image)
        bad = ~logits.isfinite().all(1)
        if bad.any():
            return (
                f"the teacher returns logits that are NaN or infinite for {_images(bad, batch)}; "
                "give a teacher that was trained without diverging, or set SOLVER.AMP off"
            )
    return ""


def _bad_labels(target: Tensor, num_classes: int) -> Tensor:
    if target.is_floating_point():
        return ~target.flatten(1).isfinite().all(1) if target.dim() > 1 else ~target.isfinite()
    return (target < 0) | (target >= num_classes)


def _images(bad: Tensor, batch: Batch) -> str:
    """The first image of some, by its number in the set where that is known."""
    row = int(bad.nonzero()[0])
    if batch.index is None:
        return f"image {row} of the batch"
    return f"training image {int(batch.index[row])}"
