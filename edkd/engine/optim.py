"""The optimizer, and the learning rate as a pure function of how far training has come."""

import math
from collections.abc import Iterable
from typing import Any

from torch import nn, optim


def make_optimizer(parameters: Iterable[nn.Parameter], cfg: Any) -> optim.Optimizer:
    """SGD, Adam or AdamW as SOLVER says, with the update of all parameters fused into one kernel where there is one."""
    solver = cfg.SOLVER
    parameters = list(parameters)
    common = dict(lr=solver.LR, weight_decay=solver.WEIGHT_DECAY, fused=parameters[0].device.type in ("cpu", "cuda"))
    if solver.TYPE == "SGD":
        return optim.SGD(parameters, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **common)
    return getattr(optim, solver.TYPE)(parameters, betas=tuple(solver.BETAS), **common)


def learning_rate(cfg: Any, progress: float) -> float:
    """The rate of a step.

    Args:
        progress: epochs done before the step, in [0, EPOCHS): 0 for the first step, 1.5 in the middle of epoch 2.

    Returns:
        SOLVER.LR times the linear warm-up, times LR_DECAY_RATE for each of LR_DECAY_STAGES that is past (step) or
        half a cosine from 1 to 0 after the warm-up (cosine; I. Loshchilov, F. Hutter, "SGDR", ICLR 2017, equation 5).
    """
    solver = cfg.SOLVER
    if progress < solver.WARMUP_EPOCHS:
        return solver.LR * progress / solver.WARMUP_EPOCHS
    if solver.SCHEDULE == "cosine":
        done = (progress - solver.WARMUP_EPOCHS) / max(solver.EPOCHS - solver.WARMUP_EPOCHS, 1)
        return solver.LR * (1 + math.cos(math.pi * done)) / 2
    return solver.LR * solver.LR_DECAY_RATE ** sum(progress >= stage for stage in solver.LR_DECAY_STAGES)
