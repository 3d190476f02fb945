"""Steps of a configuration, without what a run writes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edkd.dataset import DataSet
from edkd.engine.build import build_data, build_distiller, build_trainer
from edkd.engine.collection import collect
from edkd.engine.memo.cache import attach
from edkd.engine.trainer import Trainer


def stepper(cfg: Any, folder: Path, device: torch.device) -> Callable[[int], None]:
    """A function that makes some steps, with a full teacher cache where there is one."""
    trainer = ready_trainer(cfg, folder, device)
    inputs = forever(trainer.data)

    def run(steps: int) -> None:
        for _ in range(steps):
            trainer.step(1, *next(inputs))

    return run


def ready_trainer(cfg: Any, folder: Path, device: torch.device) -> Trainer:
    """A trainer in its first epoch, with a full teacher cache where there is one."""
    data = build_data(cfg, device)
    distiller = build_distiller(cfg, data)
    trainer = build_trainer(cfg, data, distiller, folder, device)
    cache = attach(distiller, data.train, cfg, device, trainer.amp, range(1, 2), ignore)
    trainer.train_step.cache = cache
    if cache:
        cache.prepare(1, ignore)
    if distiller.collects:
        collect(distiller, data.train, cache, trainer.amp, device, ignore)

    distiller.train()
    distiller.start_epoch(1)
    return trainer


def forever(data: DataSet) -> Iterator[tuple[Tensor, ...]]:
    """The inputs of the first epoch's steps, again and again."""
    while True:
        yield from data.train.inputs(1)


def ignore(line: str) -> None:
    """Take a line of the log."""
