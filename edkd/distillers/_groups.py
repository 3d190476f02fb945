"""Parameter groups: what a method returns, checked, in one form."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from edkd.errors import UserError
from edkd.registry import place

_FACTORS = ("lr_factor", "lr_mult")
"""Names of a group's factor of the learning rate; the first is the one that the engine reads."""


class Owner(NamedTuple):
    """The method whose parameters are grouped."""

    method: type
    names: dict[int, str]
    """By the id of each parameter."""
    frozen: set[int]
    """Ids of the teachers' parameters."""

    def error(self, text: str) -> UserError:
        """The mistake in one line."""
        name = self.method.__name__
        return UserError(f"get_learnable_parameters of {name} ({place(self.method)}) {text}")


def owner_of(distiller: nn.Module, teachers: Sequence[nn.Module]) -> Owner:
    """A method and the names of its parameters, as its state dict has them."""
    names: dict[int, str] = {}
    for teacher in teachers:
        for name, parameter in teacher.named_parameters("teacher"):
            names[id(parameter)] = name
    frozen = set(names)

    for name, parameter in distiller.named_parameters():
        names[id(parameter)] = name
    return Owner(type(distiller), names, frozen)


def as_groups(owner: Owner, given: Any) -> list[dict[str, Any]]:
    """Parameters, or groups of them, as a list of groups.

    Args:
        given: a parameter, a (name, parameter), or any iterable of these; or a group, or a list of
            groups. A group has `params`, and optionally a learning rate `lr`, a factor `lr_factor`
            of SOLVER.LR, and options of the optimizer.

    Returns:
        Groups without empty ones; each parameter once.

    Raises:
        UserError: something else, a parameter in two groups, one of the teacher's, or one that is
            not a part of the method.
    """
    items = _items(given, owner)
    mappings = [item for item in items if isinstance(item, Mapping)]
    if mappings and len(mappings) < len(items):
        raise owner.error("mixes parameters and groups; put all parameters into groups")

    if mappings:
        groups = [_group(item, owner) for item in mappings]
    else:
        groups = [{"params": _parameters(items, owner)}]
    _refuse_repeated(groups, owner)

    groups = [group for group in groups if group["params"]]
    if not groups:
        raise UserError(f"{owner.method.__name__}: neither student nor method has a parameter")
    return groups


def _items(given: Any, owner: Owner) -> list[Any]:
    if isinstance(given, (Tensor, Mapping)) or _is_named(given):
        return [given]
    if isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
        return list(given)
    raise owner.error(
        f"returned {type(given).__name__}, but must return parameters or parameter groups"
    )


def _is_named(item: Any) -> bool:
    """Whether it is a (name, parameter), as `named_parameters` yields them."""
    is_pair = isinstance(item, tuple) and len(item) == 2
    return is_pair and isinstance(item[0], str) and isinstance(item[1], Tensor)


def _group(item: Mapping[str, Any], owner: Owner) -> dict[str, Any]:
    if "params" not in item:
        raise owner.error(f"returned a group without 'params', with {', '.join(map(str, item))}")

    group = {key: value for key, value in item.items() if key not in _FACTORS}
    group["params"] = _parameters(_items(item["params"], owner), owner)

    rates = [key for key in ("lr", *_FACTORS) if key in item]
    if len(rates) > 1:
        raise owner.error(f"gives a group both {' and '.join(rates)}; keep one")
    if rates and rates[0] in _FACTORS:
        group["lr_factor"] = item[rates[0]]
    for key in ("lr", "lr_factor", "weight_decay"):
        _check_number(key, group.get(key, 0.0), owner)
    return group


def _check_number(key: str, value: Any, owner: Owner) -> None:
    if type(value) in (int, float) and math.isfinite(value) and value >= 0:
        return
    raise owner.error(f"gives a group {key} {value!r}; it must be a number that is not below 0")


def _parameters(items: Sequence[Any], owner: Owner) -> list[Tensor]:
    """Each parameter once, in order."""
    found: dict[int, Tensor] = {}
    for item in items:
        parameter = item[1] if _is_named(item) else item
        if not isinstance(parameter, Tensor):
            raise owner.error(
                f"returned {type(item).__name__} in the place of a parameter; `list.append` and "
                "`+` take parameters, `module.parameters()` has those of a module"
            )
        _check_parameter(parameter, owner)
        found[id(parameter)] = parameter
    return list(found.values())


def _check_parameter(parameter: Tensor, owner: Owner) -> None:
    name = owner.names.get(id(parameter))
    if name is None:
        shape = tuple(parameter.shape)
        raise owner.error(
            f"returned a tensor of shape {shape} that is not a parameter of the method, so that no "
            "checkpoint would hold it; use nn.Parameter, nn.ParameterList or nn.ModuleList"
        )
    if id(parameter) in owner.frozen:
        raise owner.error(f"returned the teacher's parameter {name}, which is frozen; leave it out")


def _refuse_repeated(groups: Sequence[Mapping[str, Any]], owner: Owner) -> None:
    """Raise UserError where a parameter is in two groups."""
    all_ids = [id(parameter) for group in groups for parameter in group["params"]]
    repeated = {each for each, number in Counter(all_ids).items() if number > 1}

    for each in repeated:
        raise owner.error(
            f"has {owner.names[each]} in two groups; "
            "super().get_learnable_parameters() returns all parameters outside the teacher, "
            "self.student.parameters() those of the student"
        )
