"""The learning rate as a pure function of the number of steps done."""

import math
from typing import Any

from edkd.keys import INF, Key

KEYS = {
    "SOLVER.EPOCHS": Key(
        240, "passes over the training images", low=1, high=2**31, free_on_resume=True
    ),
    "SOLVER.LR": Key(0.05, "learning rate at its highest", low=0.0),
    "SOLVER.SCHEDULE": Key(
        "step", "how the rate falls; cosine ends at 0", choices=("step", "cosine")
    ),
    "SOLVER.LR_DECAY_STAGES": Key(
        [150, 180, 210], "step: the rate falls after these epochs", unit="epochs", low=0, high=INF
    ),
    "SOLVER.LR_DECAY_RATE": Key(0.1, "step: factor of each fall", low=0.0),
    "SOLVER.WARMUP_EPOCHS": Key(
        0, "the rate grows linearly over these epochs, step by step", unit="epochs", low=0
    ),
}


def learning_rate(cfg: Any, step: int, steps: int) -> float:
    """The rate of a step.

    Args:
        cfg: SOLVER is read.
        step: steps done before it, from 0.
        steps: steps of an epoch.

    Returns:
        SOLVER.LR times the linear warm-up, which reaches 1 with the last step of WARMUP_EPOCHS,
        times either LR_DECAY_RATE for each of LR_DECAY_STAGES that has passed (step), or half a
        cosine from 1 to 0 after the warm-up (cosine; I. Loshchilov, F. Hutter, "SGDR", ICLR 2017,
        equation 5).
    """
    solver = cfg.SOLVER
    epochs = step / steps
    rate = solver.LR

    warm_steps = solver.WARMUP_EPOCHS * steps
    if step < warm_steps:
        rate *= (step + 1) / warm_steps

    if solver.SCHEDULE == "step":
        falls = sum(epochs >= stage for stage in solver.LR_DECAY_STAGES)
        return rate * solver.LR_DECAY_RATE**falls

    done = max(epochs - solver.WARMUP_EPOCHS, 0)
    length = max(solver.EPOCHS - solver.WARMUP_EPOCHS, 1)
    return rate * (1 + math.cos(math.pi * done / length)) / 2
