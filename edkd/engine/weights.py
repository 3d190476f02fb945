"""Loading weights into a network, from the files of this package and of other training scripts."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.file_facts import (
    Facts,
    Use,
    check_classes,
    facts_of,
    note_facts,
    suggestion,
)
from edkd.engine.matching import (
    Match,
    fits,
    has_tensors,
    is_counter,
    is_numbered,
    is_same,
    matches,
    wrong_shapes,
)
from edkd.errors import UserError, warn

_PLAIN_TYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
)

_SHOWN = 4
"""Names that a message lists."""


def load_weights(
    model: nn.Module, path: Path, use: Use | None = None, content: dict[str, Any] | None = None
) -> Facts:
    """Load a checkpoint into a model with the same keys and shapes.

    The weights may be in nested dictionaries and have a prefix, as "state_dict" or "module.". Files
    from before 2018 lack the batch norms' counters of batches, which are not used here.

    Args:
        model: its weights are replaced; where an error is raised, they stay.
        path: a file, see `load_checkpoint`.
        use: what the network is loaded for; its classes are compared.
        content: of that file, where it was read already.

    Returns:
        What the file says about its network.

    Raises:
        UserError: the file cannot be read (see `load_checkpoint`), its weights are not finite, or
            they belong to another architecture, number of classes or set of classes.
    """
    use = use or Use()
    content = content or load_checkpoint(path)
    facts = facts_of(content)
    check_classes(path, facts, use)

    state = model.state_dict()
    wanted = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    match = _find(path, content, wanted, suggestion(facts, use))
    weights = {
        key: _checked(path, key, tensor, match.weights.get(key, tensor))
        for key, tensor in wanted.items()
    }
    model.load_state_dict(state | weights)
    note_facts(model, facts)
    return facts


# Finding the weights.


def _find(path: Path, content: dict[str, Any], wanted: Mapping[str, Tensor], remedy: str) -> Match:
    """The one place in a file that fits the model."""
    found = matches(content, wanted)
    fitting = sorted((match for match in found if fits(match, wanted)), key=lambda m: m.rank)
    if not fitting:
        _refuse(path, content, wanted, found, remedy)

    # Several networks?
    match = fitting[0]
    others = [other for other in fitting[1:] if not is_same(match, other)]
    names = ", ".join(_place_name(each) for each in [match, *others])
    if is_numbered(match, found):
        raise UserError(f"{path} {_several(match, found)}")
    if any(other.rank == match.rank for other in others):
        raise UserError(
            f"{path} holds several networks that fit ({names}); save the state dict of one of them"
        )
    if others:
        warn(f"{path}: several networks fit ({names}); {_place_name(match)} is used")

    if match.extras:
        warn(f"{path}: ignored what is not the network's: {_some(match.extras)}")
    return match


def _several(match: Match, found: Sequence[Match]) -> str:
    """What is said of networks that a number tells apart."""
    if "student" in match.prefix:
        return "holds several students; name the file of one beside it, as student1_best"
    names = _some([_place_name(each) for each in found if not each.misfits])
    return f"holds several networks that fit ({names}); save the state dict of one of them"


def _refuse(
    path: Path,
    content: dict[str, Any],
    wanted: Mapping[str, Tensor],
    found: Sequence[Match],
    remedy: str,
) -> None:
    """Raise UserError with the reason why nothing in a file fits."""
    top = _some(list(map(str, content))) or "none"
    if not found:
        reason = _why_nothing(content, wanted)
        raise UserError(f"{path} {reason} (keys at its top: {top}); {remedy}")

    best = found[0]
    changed = _changed_names(best)
    if re.search(r"-\d+-of-\d+$", path.stem):
        raise UserError(f"{path} is one part of several; load them, and save one state dict of all")
    if changed:
        raise UserError(f"{path} {changed}; then save the state dict")
    if best.misfits:
        first = best.misfits[0]
        verb = "lacks" if first in best.lacking else "has"
        where = f"in {_place_name(best)}, " if best.prefix else ""
        right = len(best.weights)
        raise UserError(
            f"{path} is of another architecture: it {verb} {first} (and {len(best.misfits) - 1} "
            f"more keys differ; {where}{right} of {len(wanted)} names are there; keys at its top: "
            f"{top}); {remedy}"
        )

    key = wrong_shapes(best, wanted)[0]
    there = tuple(best.weights[key].shape)
    here = tuple(wanted[key].shape)
    kind = "another architecture or number of classes"
    if len(there) > 1 and there == here[::-1]:
        kind = "another layout (transposed, as other libraries store it) or architecture"
    raise UserError(f"{path} is of {kind}: {key} is {there} there but {here} here; {remedy}")


def _changed_names(match: Match) -> str:
    """The tool that has split weights in two, and how to undo it; "" for none."""
    if any(".parametrizations." in name for name in match.surplus):
        return "holds parametrized weights; call torch.nn.utils.parametrize.remove_parametrizations"
    if any(f"{name}_orig" in match.surplus for name in match.lacking):
        return "holds pruned weights and their masks; call torch.nn.utils.prune.remove"
    return ""


def _why_nothing(content: Mapping[Any, Any], wanted: Mapping[str, Tensor]) -> str:
    """The reason where a file has no name of the network."""
    first = min(wanted, default="any")
    if {"state", "param_groups"} <= _keys_of_optimizer(content):
        return "holds the state of an optimizer, no weights of a network"
    if not has_tensors(content):
        return "holds no weights, as it has no tensors"
    return f"is of another architecture: it lacks {first} (and all other names differ)"


def _keys_of_optimizer(content: Mapping[Any, Any]) -> set[Any]:
    """The keys at the top, and within an entry that is named after the optimizer."""
    keys = set(content)
    for name in ("optimizer", "optimizer_state_dict"):
        inner = content.get(name)
        keys |= set(inner) if isinstance(inner, Mapping) else set()
    return keys


def _place_name(match: Match) -> str:
    return match.prefix.rstrip(".") or "its top"


def _some(names: Sequence[str]) -> str:
    """The first of many names."""
    shown = ", ".join(name[:60] for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


# Checking the weights.


def _checked(path: Path, key: str, wanted: Tensor, given: Tensor) -> Tensor:
    """A tensor of a file in the model's type."""
    if is_counter(key):
        is_dense = given.layout == torch.strided and not given.is_meta
        is_number = is_dense and given.numel() == 1 and not given.is_complex()
        return given.reshape(wanted.shape).to(wanted.dtype) if is_number else wanted

    if not _is_plain(given) or given.is_floating_point() != wanted.is_floating_point():
        kind = given.dtype if given.layout == torch.strided else given.layout
        where = " without content" if given.is_meta else ""
        raise UserError(
            f"{path}: {key} is {kind}{where}, not plain numbers as {wanted.dtype}; save the "
            "weights as float32"
        )

    tensor = given.to(wanted.dtype)
    bad = int((~tensor.isfinite() & wanted.isfinite()).sum())
    if bad:
        raise UserError(
            f"{path}: {bad} of {tensor.numel()} values of {key} are NaN or infinite, so the run "
            "that wrote it diverged; give an earlier checkpoint, or train again"
        )
    if key.endswith("running_var") and (tensor < 0).any():
        raise UserError(f"{path}: {key} has negative values, which no variance has; save it again")
    return tensor


def check_finite(teacher: nn.Module) -> None:
    """Raise UserError where a teacher has weights or statistics that are not finite.

    Args:
        teacher: may be wrapped in another module, as its attribute `module`.
    """
    own = getattr(teacher, "module", teacher)
    statistics = {name: value for name, value in own.named_buffers() if "running_" in name}

    for name, tensor in (dict(own.named_parameters()) | statistics).items():
        if is_lazy(tensor) or not _is_plain(tensor) or tensor.isfinite().all():
            continue
        kind = type(own).__name__
        raise UserError(
            f"the teacher {kind} has values in {name} that are NaN or infinite; give one that was "
            "trained without diverging"
        )


def _is_plain(tensor: Tensor) -> bool:
    is_dense = tensor.layout == torch.strided and not tensor.is_meta
    return is_dense and tensor.dtype in _PLAIN_TYPES
