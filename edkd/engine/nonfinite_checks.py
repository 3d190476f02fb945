"""Ends a run at a step or a figure that is not finite, with what is known about the cause."""

import json
import math
from typing import TYPE_CHECKING, NoReturn

from edkd.engine.log.background import Record
from edkd.engine.nonfinite_report import describe_step, explain_state, explain_step
from edkd.errors import NonFiniteError

if TYPE_CHECKING:
    from edkd.engine.trainer import Trainer


def check_steps(trainer: "Trainer", epoch: int) -> None:
    """Raise NonFiniteError where a step was not finite; no update was made since."""
    update = trainer.update
    found = update.watch.read()
    if found is not None:
        steps, figures = found
        _refuse_step(trainer, epoch, trainer.state.first_step + steps, figures)

    if update.has_no_scale():
        last = trainer.state.step_done - 1
        findings = explain_step(trainer, epoch, last, {})
        raise NonFiniteError(
            f"fp16 has no scale at which the gradient of epoch {epoch} is finite; set "
            f"SOLVER.AMP bf16 or off; {findings.text()}; {trainer.files.last_checkpoint()}"
        )


def check_figures(trainer: "Trainer", epoch: int, figures: Record) -> None:
    """Raise NonFiniteError where a figure is not finite."""
    bad = _bad(figures)
    if not bad:
        return

    found = " and ".join(f"{name} is {value}" for name, value in bad.items())
    reason = explain_state(trainer.distiller)
    checkpoint = trainer.files.last_checkpoint()
    raise NonFiniteError(f"{found} in epoch {epoch}; {reason}; {checkpoint}")


def _refuse_step(trainer: "Trainer", epoch: int, step: int, figures: Record) -> NoReturn:
    """Write `nonfinite.json` for a step, from 0, and raise NonFiniteError."""
    findings = explain_step(trainer, epoch, step, figures)
    index = trainer.batch_of(epoch, step).index
    about = describe_step(epoch, step, figures, findings, index)
    trainer.logger.save(json.dumps(about, indent=1) + "\n", "nonfinite.json")

    names = ", ".join(_bad(figures))
    checkpoint = trainer.files.last_checkpoint()
    raise NonFiniteError(
        f"{names} not finite in epoch {epoch}, step {step + 1}; {findings.text()}; "
        f"{checkpoint}; nonfinite.json there has the figures and the images"
    )


def _bad(figures: Record) -> Record:
    """The figures that are not finite."""
    return {name: value for name, value in figures.items() if not math.isfinite(value)}
