"""The slice "captured": steps as one CUDA graph against eager steps, for each method."""

from typing import Any, NamedTuple

import torch
from _common import in_turn
from _gpu_record import Record
from _gpu_setting import Figures, Part, Setting, Stepper, relative, require, stepper
from torch import Tensor

from edkd.dataset.sampling import seed_everything
from edkd.engine.device import deterministic
from edkd.errors import UserError

TOLERANCE = 1e-2
"""Largest relative difference of losses and weights after all steps, in float32.

Bits may differ where operations have no deterministic form, or where other kernels are chosen; the
difference grows with each step. The figures state whether the results are identical.
"""


class Trained(NamedTuple):
    """What some steps lead to."""

    losses: Tensor
    """(S,), one for each step."""
    weights: Tensor
    """(P,), all trained parameters."""
    captured: bool
    reason: str
    """Why nothing was captured."""


def captured_parts(setting: Setting, record: Record) -> list[Part]:
    """A part for each method, update rule and switch."""
    return [
        Part(variant, lambda variant=variant: compare(variant, setting))
        for variant in setting.methods()
    ]


def compare(variant: str, setting: Setting) -> Figures:
    """Train eagerly and captured from the same weights; compare results and times."""
    try:
        eager, captured, is_deterministic = both(variant, setting)
    except UserError as error:  # as of a method that cannot use these networks
        return {"skipped": str(error)}

    require(bool(eager.losses.isfinite().all()), "a loss of the eager steps is not finite")
    loss_difference = relative(captured.losses, eager.losses)
    weight_difference = relative(captured.weights, eager.weights)
    figures = {
        "captured": captured.captured,
        "deterministic": is_deterministic,
        "identical": loss_difference == 0 and weight_difference == 0,
        "difference of losses": loss_difference,
        "of weights": weight_difference,
    }
    if captured.reason:
        figures["reason"] = captured.reason

    largest = max(loss_difference, weight_difference)
    require(largest <= TOLERANCE, f"captured and eager steps differ: {figures}")
    return figures | times(variant, setting)


def both(variant: str, setting: Setting) -> tuple[Trained, Trained, bool]:
    """Eager and captured steps in float32, deterministic if the operations have such a form."""
    cfg = setting.config(variant, "SOLVER.AMP=off")
    for is_deterministic in (True, False):
        try:
            with deterministic(is_deterministic):
                eager = trained(cfg, setting, False)
                captured = trained(cfg, setting, True)
            return eager, captured, is_deterministic
        except UserError as error:
            if "SOLVER.DETERMINISTIC" not in str(error):
                raise
    raise AssertionError("the second turn returns or raises")


def trained(cfg: Any, setting: Setting, captured: bool) -> Trained:
    """Make so many steps that both shapes of batches are captured."""
    own = stepper(cfg, setting, captured)
    seed_everything(1)
    epochs = 2 if setting.small else 6
    losses = own.run(epochs * len(own.trainer.data.train))

    parameters = own.trainer.update.parameters
    weights = torch.cat([parameter.detach().flatten().float() for parameter in parameters])
    return Trained(torch.stack(losses), weights, own.captures(), "; ".join(own.said))


def times(variant: str, setting: Setting) -> dict[str, float]:
    """Milliseconds of an eager and a captured step in the usual precision, in turn."""
    cfg = setting.config(variant)
    steppers: dict[str, Stepper] = {
        "eager ms": stepper(cfg, setting, False),
        "captured ms": stepper(cfg, setting, True),
    }
    steps_of_epoch = len(steppers["eager ms"].trainer.data.train)
    steps = 1 if setting.small else 2 * steps_of_epoch
    if not setting.small:  # both shapes of batches are captured before anything is measured
        for each in steppers.values():
            each.run(6 * steps_of_epoch)

    runs = {name: lambda each=each: each.run(steps) for name, each in steppers.items()}
    seconds = in_turn(runs, 1 if setting.small else 3, setting.device)
    figures = {name: 1e3 * value / steps for name, value in seconds.items()}
    return figures | {"eager / captured": figures["eager ms"] / figures["captured ms"]}
