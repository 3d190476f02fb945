"""The whole batch in each process, for losses that relate its images to one another."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from edkd import world
from edkd.shared_layers import alone
from edkd.types import Batch, ChangedFeatures, Output
from edkd.world import Counts


class _Gathered(torch.autograd.Function):
    """Rows of all processes.

    All processes compute the same loss of them, so the gradient of the own rows is known without a
    message. It is multiplied by the number of processes: gradients of parameters are averaged.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, counts: Counts) -> Tensor:
        """(N,...) of this process to (M,...) of all."""
        ctx.counts = counts
        return world.gather_rows(tensor, counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The own rows; 0 for an image that does not count."""
        counts = ctx.counts
        own = gradient[world.own_rows(counts, len(gradient))] * len(counts)
        is_counted = counts[world.rank()] > 0
        return own * is_counted, None


class LazyList(Sequence[Any]):
    """A list whose elements are made when they are looked at, once.

    Args:
        elements: what they are made of.
        make: makes one.
    """

    def __init__(self, elements: Sequence[Any], make: Callable[[Any], Any]) -> None:
        self._elements = elements
        self._make = make
        self._made: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._elements)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[each] for each in range(len(self))[place]]
        place = range(len(self))[place]
        if place not in self._made:
            self._made[place] = self._make(self._elements[place])
        return self._made[place]

    def __iter__(self) -> Iterator[Any]:
        return (self[place] for place in range(len(self)))


@contextmanager
def whole_batch(
    distiller: Any, student: Any, teacher: Any, batch: Batch
) -> Iterator[tuple[Any, Any, Batch]]:
    """A block in which a method that `relates_images` computes the losses of the whole batch.

    Its own layers then get the whole batch in each process.

    Args:
        student: its outputs for the share of this process, see `gather_outputs`.
        teacher: the same.

    Returns:
        Outputs and targets: of the whole batch, or as they are, where one process has all or the
        method relates no images.
    """
    counts = batch.counts
    if not counts or not distiller.relates_images():
        yield student, teacher, batch
        return

    world.share_random_state(batch.image.device)
    with alone():
        outputs = [gather_outputs(each, counts) for each in (student, teacher)]
        yield outputs[0], outputs[1], gather_batch(batch)


def gather_batch(batch: Batch) -> Batch:
    """The targets and numbers of the whole batch; its images stay those of this process."""
    counts = batch.counts
    index = None if batch.index is None else world.gather_rows(batch.index, counts)
    return replace(batch, target=world.gather_rows(batch.target, counts), index=index, counts=())


def gather_outputs(outputs: Any, counts: Counts) -> Any:
    """Outputs for the whole batch; features are gathered when they are looked at.

    Args:
        outputs: an Output, Outputs by view, or a list of those; None stays None.
        counts: images of each process.
    """
    if outputs is None or not counts:
        return outputs
    if isinstance(outputs, Output):
        features = ChangedFeatures(outputs.features, lambda feature: _gathered(feature, counts))
        return Output(_gathered(outputs.logits, counts), features)
    if isinstance(outputs, Mapping):
        return {name: gather_outputs(view, counts) for name, view in outputs.items()}
    return [gather_outputs(each, counts) for each in outputs]


def _gathered(feature: Any, counts: Counts) -> Any:
    if isinstance(feature, Tensor):
        return _Gathered.apply(feature, counts)
    return LazyList(feature, lambda each: _Gathered.apply(each, counts))
