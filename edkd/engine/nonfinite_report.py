"""What was not finite in a step, for the message and `nonfinite.json`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from edkd import world
from edkd.distillers import Distiller
from edkd.engine.device import autocast
from edkd.engine.log.background import Record
from edkd.engine.nonfinite import GRADIENT
from edkd.engine.nonfinite_cause import cause_in
from edkd.errors import ProcessError
from edkd.types import Batch

if TYPE_CHECKING:
    from edkd.engine.trainer import Trainer

REMEDY = "lower SOLVER.LR, or set SOLVER.CLIP_GRAD_NORM"

NAMED = 3
"""Parameters that a message names at most; `nonfinite.json` has all of them."""


class Findings(NamedTuple):
    """What was not finite besides the figures of the step."""

    gradients: list[str]
    """Parameters whose gradients were not finite, in the order of the network."""
    num_parameters: int
    terms: list[str]
    """Finite terms of the loss whose gradients are not."""
    weights: list[str]
    """Weights that were not finite before the step, in the order of the network."""
    cause: str
    """What in the batch, or of the teacher, is not finite, and what to do; "" for none."""

    def text(self) -> str:
        """The findings in one line, and what to do."""
        parts = []
        if self.weights:
            parts.append(f"{_owner(self.weights[0])} were not finite before")
        if self.terms:
            parts.append(f"the gradient of {', '.join(self.terms)} is not finite")
        if self.gradients and not self.weights:
            parts.append(self._of_gradients())
        return "; ".join([*parts, self.cause or REMEDY])

    def _of_gradients(self) -> str:
        first = ", ".join(self.gradients[:NAMED])
        number = len(self.gradients)
        more = ", ..." if number > NAMED else ""
        return f"gradients not finite: {number} of {self.num_parameters}, {first}{more}"


def explain_step(trainer: "Trainer", epoch: int, step: int, figures: Record) -> Findings:
    """Look at a step again, once; the weights have not been changed since.

    Args:
        epoch: from 1.
        step: of the epoch, from 0.
        figures: of that step; empty where the gradients were not checked.
    """
    batch = trainer.batch_of(epoch, step)
    parameters = trainer.update.parameters
    bad = trainer.update.watch.bad_parameters() if figures else []
    terms: list[str] = []

    # Only where the losses are finite, the backward pass tells the terms apart.
    losses = [value for name, value in figures.items() if name != GRADIENT]
    if all(math.isfinite(value) for value in losses):
        terms, recomputed = _repeat(trainer, batch)
        bad = bad or recomputed

    return Findings(
        gradients=_names(trainer.distiller, bad),
        num_parameters=len(parameters),
        terms=terms,
        weights=bad_weights(trainer.distiller),
        cause=_cause(trainer, batch),
    )


def _cause(trainer: "Trainer", batch: Batch) -> str:
    with autocast(trainer.amp, trainer.device):
        own = cause_in(batch, trainer.distiller.teachers(), trainer.data.num_classes)
    causes = [cause for cause in world.gather_objects(own) if cause]
    return causes[0] if causes else ""


def explain_state(distiller: Distiller) -> str:
    """The first weight or statistic that is not finite, where there is one, and what to do."""
    weights = bad_weights(distiller)
    if weights:
        return f"{_owner(weights[0])} are not finite; {REMEDY}"

    for name, buffer in distiller.named_buffers():
        if buffer.is_floating_point() and not buffer.isfinite().all():
            return f"the buffer {name} is not finite; {REMEDY}"
    return REMEDY


def _owner(name: str) -> str:
    """ "the weights of student.fc", from the name of a parameter."""
    return f"the weights of {name.rpartition('.')[0]}"


def _names(distiller: Distiller, parameters: Iterable[Tensor]) -> list[str]:
    """Names of parameters, in the order of the network."""
    wanted = {id(parameter) for parameter in parameters}
    return [name for name, each in distiller.named_parameters() if id(each) in wanted]


def _repeat(trainer: "Trainer", batch: Batch) -> tuple[list[str], list[Tensor]]:
    """Terms of a batch whose gradients are not finite, and the parameters of these."""
    try:
        for turn in range(trainer.distiller.turns):
            losses, _ = trainer.train_step.forward(batch, turn)
            terms = {name: loss for name, loss in losses.items() if name != "loss"}
            own, bad = bad_gradients(terms, trainer.update.parameters)
            names = sorted({name for each in world.gather_objects(own) for name in each})
            if names:
                return names, bad
    except ProcessError:
        raise
    except Exception as error:  # it may not hide the error that is reported
        trainer.logger.say(f"the step could not be repeated: {type(error).__name__}: {error}")
    return [], []


def bad_weights(distiller: Distiller) -> list[str]:
    """Names of weights that are not finite, and of the teachers' statistics.

    A step that was not finite changes the student's statistics, so that these do not count.
    """
    teachers = distiller.teachers()
    statistics = [
        (f"teacher.{name}", buffer)
        for teacher in teachers
        for name, buffer in teacher.named_buffers()
        if buffer.is_floating_point()
    ]
    of_teachers = [pair for each in teachers for pair in each.named_parameters("teacher")]
    tensors = [*of_teachers, *statistics, *distiller.named_parameters()]
    found = [name for name, tensor in tensors if not tensor.isfinite().all()]
    return list(dict.fromkeys(found))


def bad_gradients(
    terms: Mapping[str, Tensor], parameters: Sequence[Tensor]
) -> tuple[list[str], list[Tensor]]:
    """Finite terms of a loss whose gradients are not finite, and the parameters of these."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    names = []
    found: dict[int, Tensor] = {}

    for name, loss in terms.items():
        if not loss.requires_grad or not loss.isfinite().all():
            continue

        gradients = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
        pairs = zip(trained, gradients, strict=True)
        bad = [each for each, grad in pairs if grad is not None and not grad.isfinite().all()]
        if bad:
            names.append(name)
            found |= {id(parameter): parameter for parameter in bad}
    return names, list(found.values())


def describe_step(
    epoch: int,
    step: int,
    figures: dict[str, float],
    findings: Findings,
    index: Tensor | None,
) -> dict[str, Any]:
    """The content of `nonfinite.json`.

    Args:
        epoch: from 1.
        step: of the epoch, from 0.
        figures: losses and the norm of the gradient.
        findings: what else was not finite.
        index: numbers of the step's images, where they are known.
    """
    return {
        "epoch": epoch,
        "step": step + 1,
        "figures": {name: str(value) for name, value in figures.items()},
        "gradients_not_finite": findings.gradients,
        "parameters": findings.num_parameters,
        "terms_with_such_gradients": findings.terms,
        "weights_not_finite_before": findings.weights,
        "cause": findings.cause,
        "index": None if index is None else index.tolist(),
    }
