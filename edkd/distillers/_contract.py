"""Checks of a method: what it takes, and what a training step returns."""

import functools
import inspect
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from edkd.errors import UserError
from edkd.registry import place

LOSSES = "a dictionary of scalar tensors by name, as {'loss_kd': loss}"

STEP_ARGUMENTS = ("image", "target", "index", "epoch", "turn")
"""Keyword arguments of `forward_train`."""

MADE_WITH = ("student", "teacher", "cfg", "data")
"""Arguments of a constructor."""

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


# What a method takes.


def check_arguments(method: type) -> None:
    """Raise UserError where a method needs arguments that only its own trainer would give."""
    step: Any = method.forward_train  # type: ignore[attr-defined]
    needed = [name for name in _required(step)[1:] if name not in STEP_ARGUMENTS]
    if needed:
        raise UserError(
            f"forward_train of {method.__name__} ({place(method)}) needs {', '.join(needed)}, "
            "which only a trainer or data loader of its own would give; edkd passes image, target, "
            "index and epoch"
        )

    # Further ones by position are the student, the teacher and the configuration.
    needed = [name for name in _required(method)[3:] if name not in MADE_WITH]
    if needed:
        raise UserError(
            f"the constructor of {method.__name__} ({place(method)}) needs {', '.join(needed)}; "
            "edkd passes student, teacher, cfg and, where it is named, data"
        )


@functools.cache
def accepted_arguments(function: Any) -> frozenset[str] | None:
    """The keyword arguments that a function takes; None: any."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters if parameter.kind in _NAMED)


def _required(function: Any) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind in _NAMED]


# What a step does.


@contextmanager
def explained(method: type, has_soft_targets: bool = False) -> Iterator[None]:
    """Raise UserError for what a method assumes of tensors and does not hold.

    It calls `view` on a tensor that is not contiguous, or takes class probabilities for numbers.

    Args:
        has_soft_targets: whether it gets class probabilities for the first time.
    """
    try:
        yield
    except UserError:  # it says what is wrong
        raise
    except (RuntimeError, IndexError, ValueError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        if "view size is not compatible" in str(error):
            raise UserError(
                f"{method.__name__}: {last.filename}, line {last.lineno}, calls `view` on a tensor "
                "that is not contiguous, as activations within a network are; write `reshape`"
            ) from error

        if has_soft_targets and not isinstance(error, torch.OutOfMemoryError):
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"{method.__name__} failed with class probabilities (N,C) as targets, in "
                f"{last.filename}, line {last.lineno} ({reason}); set SOLVER.MIXUP and "
                "SOLVER.CUTMIX to 0, or let it take such targets"
            ) from error
        raise


# What a step returns.


def check_result(method: type, result: Any) -> tuple[Any, Any]:
    """Raise UserError where a training step returned no pair of logits and losses."""
    if isinstance(result, (tuple, list)) and len(result) == 2:
        return result[0], result[1]
    raise UserError(
        f"{method.__name__} returned {describe(result)} from a training step, but must return the "
        f"pair (logits (N,C), {LOSSES}); see {place(method)}"
    )


def check_logits(method: type, logits: Any) -> None:
    """Raise UserError where the logits of a step are no tensor (N,C)."""
    is_tensor = isinstance(logits, Tensor)
    if is_tensor and logits.dim() >= 2 and logits.is_floating_point():
        return
    raise UserError(
        f"{method.__name__} returned {describe(logits)} as logits, but must return a tensor (N,C); "
        f"see {place(method)}"
    )


def check_losses(method: type, terms: Any, only_scalars: bool) -> None:
    """Raise UserError where terms of the loss are no dictionary of tensors.

    Args:
        only_scalars: whether a term must have one element.
    """
    if not isinstance(terms, dict):
        raise UserError(
            f"{method.__name__} returned {describe(terms)} as losses, but must return {LOSSES}; "
            f"see {place(method)}"
        )

    for name, loss in terms.items():
        if isinstance(name, str) and _is_loss(loss, only_scalars):
            continue
        raise UserError(
            f"{method.__name__} returned {describe(loss)} as {name!r}, but must return {LOSSES}; "
            f"see {place(method)}"
        )


def _is_loss(value: Any, only_scalars: bool) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return value.numel() == 1 or not only_scalars


def check_not_empty(method: type, terms: Mapping[str, Any]) -> None:
    """Raise UserError where there is no term of the loss."""
    if not terms:
        raise UserError(
            f"{method.__name__} returned {{}} as losses, but must return {LOSSES}; see "
            f"{place(method)}"
        )


def check_gradients(method: type, terms: Mapping[str, Tensor]) -> None:
    """Raise UserError where a term of the loss trains nothing. Waits for the device.

    A term that is 0 may be without gradient, as a placeholder until a later epoch.
    """
    constant = {name: loss for name, loss in terms.items() if not loss.requires_grad}
    wrong = [name for name, loss in constant.items() if loss.count_nonzero()]
    if len(constant) == len(terms):
        wrong = list(terms)

    if wrong:
        raise UserError(
            f"{method.__name__} returned {', '.join(wrong)} without a gradient, so that nothing "
            "learns from it: it was computed under no_grad, detached, or from a number; see "
            f"{place(method)}"
        )


def describe(value: Any) -> str:
    """A value in a few words, for messages."""
    kind = type(value).__name__.removesuffix("Type")
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a {dtype} tensor of shape {tuple(value.shape)}"

    if isinstance(value, (tuple, list)):
        return f"a {kind} of {len(value)}"
    if isinstance(value, (int, float, str)):
        return f"the {kind} {value!r:.40}"
    return "{}" if value == {} else kind
