"""Statistics of a teacher's outputs, gathered before the first step."""

import dataclasses
from collections.abc import Callable

import torch

from edkd.dataset import Loader
from edkd.distillers import Distiller, gather_batch, gather_outputs, prepare_batch
from edkd.engine.device import autocast
from edkd.engine.memo.cache import TeacherCache

SAY_EVERY = 50
"""Batches between two lines of progress."""


@torch.no_grad()
def collect(
    distiller: Distiller,
    loader: Loader,
    cache: TeacherCache | None,
    amp: torch.dtype | None,
    device: torch.device,
    show: Callable[[str], None],
) -> None:
    """Give a method the teacher's outputs for the batches of the first epoch.

    These are the outputs that the first epoch needs anyway, so a teacher cache keeps them.

    Args:
        distiller: on the device; its method `collects`.
        loader: of the training images.
        cache: attached to the distiller; None: the teacher runs here.
        amp: precision in which the teacher runs; None: float32.
        show: called with the progress, often.
    """
    if cache:
        cache.prepare(1, show)

    for number, inputs in enumerate(loader.inputs(1)):
        if number % SAY_EVERY == 0:
            show(f"statistics of the teacher {number}/{len(loader)}")
        batch = dataclasses.replace(loader.batch(*inputs), epoch=1)
        batch = prepare_batch(distiller, batch)
        if cache:
            cache.expect(batch)
        with autocast(amp, device):
            outputs = gather_outputs(distiller.run_teachers(batch), batch.counts)
            distiller.collect(outputs, gather_batch(batch))
    distiller.end_collection()
