"""Finds the weights of a model in a file, or says why they are not there."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from torch import Tensor

from edkd.engine.file_facts import Use, other_classes
from edkd.engine.matching import (
    Match,
    fits,
    has_tensors,
    head_of,
    is_numbered,
    is_same,
    matches,
    without,
    without_heads,
    wrong_shapes,
)
from edkd.errors import UserError, warn

_SHOWN = 4
"""Names that a message lists."""


class Advice(NamedTuple):
    """What messages say to do."""

    use: Use
    """What the file is loaded for."""
    fit: str
    """Where its network is another one."""
    names_other: bool = False
    """Whether the file names a network of another kind."""


def found_in(
    path: Path | str,
    content: dict[str, Any],
    wanted: Mapping[str, Tensor],
    advice: Advice,
    unused: Sequence[str] = (),
    new_head: int = 0,
) -> Match:
    """The one place in a file that fits a model.

    Args:
        path: of the file, for messages.
        content: of the file.
        wanted: the model's tensors.
        advice: for messages.
        unused: beginnings of names that may be there and are not used, see `without_heads`.
        new_head: number of the model's classes where a head for others may be left out; 0: it may
            not.

    Raises:
        UserError: nothing there fits, or several networks do.
    """
    found = [without_heads(match, unused) for match in matches(content, wanted)]
    fitting = [match for match in found if fits(match, wanted)]
    if not fitting and new_head:
        heads = [(match, head_of(match, wanted, new_head)) for match in found]
        fitting = [without(match, head) for match, head in heads if head]
    if not fitting:
        _refuse(path, content, wanted, found, advice)
    fitting.sort(key=lambda match: match.rank)

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
        warn(f"{path}: ignored weights that the network does not have: {_some(match.extras)}")
    return match


def _several(match: Match, found: Sequence[Match]) -> str:
    """What is said of networks that a number tells apart."""
    if "student" in match.prefix:
        return "holds several students; give the file of one beside it, such as student1_best"
    names = _some([_place_name(each) for each in found if not each.misfits])
    return f"holds several networks that fit ({names}); save the state dict of one of them"


def _refuse(
    path: Path | str,
    content: dict[str, Any],
    wanted: Mapping[str, Tensor],
    found: Sequence[Match],
    advice: Advice,
) -> NoReturn:
    """Raise UserError with the reason why nothing in a file fits."""
    top = _some(list(map(str, content))) or "none"
    if not found:
        reason = _why_nothing(content, wanted)
        raise UserError(f"{path} {reason} (top-level keys: {top}); {advice.fit}")

    best = found[0]
    changed = _changed_names(best)
    if re.search(r"-\d+-of-\d+$", Path(path).stem):
        raise UserError(f"{path} is one part of several; load all, and save them as one state dict")
    if changed:
        raise UserError(f"{path} {changed}; then save the state dict")
    if not advice.names_other:
        _refuse_head(path, best, wanted, advice.use)
    if best.misfits:
        first = best.misfits[0]
        verb = "lacks" if first in best.lacking else "has"
        where = f"in {_place_name(best)}, " if best.prefix else ""
        right = len(best.weights)
        raise UserError(
            f"{path} is of another architecture: it {verb} {first} (and {len(best.misfits) - 1} "
            f"more keys differ; {where}{right} of {len(wanted)} names are there; top-level keys: "
            f"{top}); {advice.fit}"
        )

    key = wrong_shapes(best, wanted)[0]
    there = tuple(best.weights[key].shape)
    here = tuple(wanted[key].shape)
    kind = "another architecture or number of classes"
    if len(there) > 1 and there == here[::-1]:
        kind = "another layout (transposed, as other libraries store it) or architecture"
    raise UserError(f"{path} is of {kind}: {key} is {there} there but {here} here; {advice.fit}")


def _refuse_head(path: Path | str, best: Match, wanted: Mapping[str, Tensor], use: Use) -> None:
    """Raise UserError where only the head is for other classes than those of the data."""
    if use.data is None:
        return
    number = use.data.num_classes
    head = head_of(best, wanted, number)
    if not head:
        return

    first = head[0]
    here = tuple(wanted[first].shape)
    data = f"the data set {use.dataset}" if use.dataset else "the data set"
    what = f"has no head: it lacks {first}, which is {here} for the {number} classes of {data}"
    if first in best.weights:
        there = tuple(best.weights[first].shape)
        what = (
            f"has a head for another number of classes: {first} is {there} there but {here} here, "
            f"for the {number} classes of {data}"
        )
    raise UserError(f"{path} {what}; {other_classes(path, use)}")


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
    return match.prefix.rstrip(".") or "the top level"


def _some(names: Sequence[str]) -> str:
    """The first of many names."""
    shown = ", ".join(name[:60] for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
