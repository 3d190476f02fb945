"""Checks of networks and optimizers that the caller made, for `edkd.distill` and own loops."""

import weakref
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn, optim

from edkd.errors import UserError, warn
from edkd.models import unwrapped

_warned_of_missing: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
_warned_of_softmax: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
"""Networks about which there was a warning; loops check them in each epoch."""


def check_trainable(student: nn.Module) -> None:
    """Raise UserError if a student cannot be trained.

    Args:
        student: at least one of its parameters must need a gradient.
    """
    kind = name_of(student)
    parameters = list(student.parameters())
    if any(parameter.is_meta for parameter in parameters):
        raise UserError(f"the student {kind} is on the device meta and has no weights; load them")
    if any(parameter.is_inference() for parameter in parameters):
        raise UserError(
            f"the student {kind} was made in torch.inference_mode() and cannot be trained; make it "
            "outside of that block"
        )
    if not any(parameter.requires_grad for parameter in parameters):
        raise UserError(
            f"the student {kind} has no parameter that requires a gradient; call "
            "requires_grad_(True) of it or of the layers to train"
        )


def check_precision(role: str, network: nn.Module) -> None:
    """Raise UserError if a network holds parameters of another type than float32.

    Args:
        role: "student" or "teacher", for messages.
    """
    floating = (p.dtype for p in network.parameters() if p.is_floating_point())
    others = [dtype for dtype in floating if dtype != torch.float32]
    if others:
        name = str(others[0]).removeprefix("torch.")
        raise UserError(
            f"the {role} {name_of(network)} has parameters of type {name}, not float32; convert "
            "it with .float(). SOLVER.AMP sets the precision in which it computes"
        )


def check_apart(students: Sequence[nn.Module], teachers: Sequence[nn.Module] = ()) -> None:
    """Raise UserError if one network is given twice, or a student shares weights with a teacher."""
    networks = [*students, *teachers]
    if len({id(network) for network in networks}) < len(networks):
        raise UserError("one network is given twice; use copy.deepcopy for a copy of it")

    of_teachers = {id(p) for teacher in teachers for p in teacher.parameters()}
    for student in students:
        shared = [name for name, p in student.named_parameters() if id(p) in of_teachers]
        if shared:
            raise UserError(
                f"the student {name_of(student)} and the teacher share "
                f"{_listed(shared)}; use copy.deepcopy for a copy of the teacher"
            )


def check_optimizer(
    optimizer: optim.Optimizer, student: nn.Module, others: Sequence[nn.Module]
) -> None:
    """Raise UserError if an optimizer does not belong to a student.

    It may hold further parameters, as of a loss that learns. Trained parameters of the student that
    it lacks cause a warning, once for each student.

    Args:
        optimizer: steps the student.
        student: that it trains.
        others: networks whose parameters it must not hold.
    """
    kind = name_of(student)
    held = held_parameters([optimizer])
    if not any(id(parameter) in held for parameter in student.parameters()):
        raise UserError(
            f"the optimizer of the student {kind} holds none of its parameters; make it with "
            "optimizer = ...(network.parameters()), after the last change of its layers"
        )
    for other in others:
        if any(id(parameter) in held for parameter in other.parameters()):
            raise UserError(
                f"the optimizer of the student {kind} holds parameters of another network "
                f"({name_of(other)}); give each network an optimizer of its own"
            )

    if student not in _warned_of_missing:
        warn_of_missing(student.named_parameters(), held)
        _warned_of_missing.add(student)


def held_parameters(optimizers: Iterable[optim.Optimizer]) -> set[int]:
    """The id of each parameter of optimizers."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return {id(parameter) for group in groups for parameter in group["params"]}


def warn_of_missing(named: Iterable[tuple[str, nn.Parameter]], held: set[int]) -> None:
    """Warn of parameters that require a gradient and are in no optimizer.

    Args:
        named: name and parameter.
        held: ids of the parameters in the optimizers.
    """
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    missing = [name for name, parameter in trained if id(parameter) not in held]
    if missing:
        warn(
            f"{_listed(missing)} of the student, of {len(trained)}, are in no "
            "optimizer and keep their values"
        )


@torch.no_grad()
def are_probabilities(logits: Tensor) -> bool:
    """Whether outputs (N,C) are distributions, as after softmax."""
    if logits.dim() != 2 or logits.shape[1] < 2 or logits.min() < 0:
        return False
    return bool(((logits.float().sum(1) - 1).abs() < 1e-2).all())


def warn_of_probabilities(role: str, network: nn.Module, logits: Tensor) -> None:
    """Warn, once for each network, where its outputs are probabilities instead of logits."""
    if network in _warned_of_softmax or not are_probabilities(logits):
        return
    _warned_of_softmax.add(network)
    warn(
        f"the {role} {name_of(network)} returns probabilities; methods expect logits and "
        "apply softmax themselves: remove the last softmax of the network"
    )


def name_of(network: nn.Module) -> str:
    """The name of a network's class, for messages."""
    return type(unwrapped(network)).__name__


def _listed(names: Sequence[str]) -> str:
    """Parameters for a message: "3 parameters (a, b, ...)"."""
    shown = ", ".join(name.replace("module.", "") for name in names[:2])  # of the wrapper
    more = ", ..." if len(names) > 2 else ""
    plural = "s" if len(names) > 1 else ""
    return f"{len(names)} parameter{plural} ({shown}{more})"
