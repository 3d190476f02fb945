"""The optimizer, and the learning rate as a pure function of how far training has come."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim


def make_optimizer(parameters: Iterable[nn.Parameter], cfg: Any) -> optim.Optimizer:
    """SGD, Adam or AdamW as SOLVER says, with the update of all parameters fused into one kernel where there is one."""
    solver = cfg.SOLVER
    parameters = list(parameters)
    common = dict(lr=solver.LR, weight_decay=solver.WEIGHT_DECAY, fused=parameters[0].device.type in ("cpu", "cuda"))
    if solver.TYPE == "SGD":
        sgd = optim.SGD(parameters, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **common)
        if solver.MOMENTUM:  # from the start: the fused kernel takes all or none, and keeps what a left-out first step
            for parameter in parameters:  # should have written; the first gradient makes the same of zeros
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
        return sgd
    return getattr(optim, solver.TYPE)(parameters, betas=tuple(solver.BETAS), **common)


def set_learning_rate(optimizer: optim.Optimizer, rate: float) -> float:
    """Set the rate of all parameters, in place where a captured step has made it a tensor; returns it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    return rate


def learning_rate(cfg: Any, step: int, steps: int) -> float:
    """The rate of a step.

    Args:
        step: steps done before it, from 0.
        steps: in an epoch.

    Returns:
        SOLVER.LR times the linear warm-up, which reaches 1 with the last step of WARMUP_EPOCHS, times LR_DECAY_RATE for
        each of LR_DECAY_STAGES that is past (step), or half a cosine from 1 to 0 after the warm-up (cosine;
        I. Loshchilov, F. Hutter, "SGDR", ICLR 2017, equation 5).
    """
    solver, epochs = cfg.SOLVER, step / steps
    rate, warm_steps = solver.LR, solver.WARMUP_EPOCHS * steps
    if step < warm_steps:
        rate *= (step + 1) / warm_steps
    if solver.SCHEDULE == "step":
        return rate * solver.LR_DECAY_RATE ** sum(epochs >= stage for stage in solver.LR_DECAY_STAGES)
    done = max(epochs - solver.WARMUP_EPOCHS, 0) / max(solver.EPOCHS - solver.WARMUP_EPOCHS, 1)
    return rate * (1 + math.cos(math.pi * done)) / 2
