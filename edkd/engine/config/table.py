"""The table of all configuration keys, collected from their owners.

Type and range checks, help texts, run names, the rules of --resume and docs/keys.md read this table
and nothing else.
"""

import copy
import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from yacs.config import CfgNode

from edkd.errors import UserError
from edkd.hints import hint
from edkd.keys import INF, Key, flatten
from edkd.registry import DATASETS, METHODS, MODELS, UPDATES, Entry, Registry

OWNERS = (
    "edkd.engine.config.shared",
    "edkd.dataset._base",
    "edkd.dataset.image_folder",
    "edkd.dataset.strong",
    "edkd.dataset.folder_views",
    "edkd.engine.update",
    "edkd.engine.trainer",
    "edkd.engine.run_files",
    "edkd.engine.schedule",
    "edkd.engine.optimizer",
    "edkd.engine.device",
    "edkd.engine.captured_step",
    "edkd.engine.processes",
    "edkd.engine.memo.keys",
    "edkd.engine.teacher_check",
    "edkd.engine.student_files",
    "edkd.engine.log.logger",
    "edkd.distillers._combined",
    "edkd.distillers._head",
    "edkd.distillers._switches",
    "edkd.distillers._task",
    "edkd.dataset.mixing",
    "edkd.dataset.erasing",
    "edkd.engine.accumulate",
    "edkd.engine.weight_average",
)
"""Modules with `KEYS`. Some of them import this module, so they are imported on first use."""

REGISTRIES = (METHODS, UPDATES, DATASETS, MODELS)
"""Their entries own the keys in their `defaults`."""

_REGISTERING = ("edkd.distillers", "edkd.engine.updates", "edkd.dataset", "edkd.models")
"""Packages that fill the registries when they are imported."""

NAMES = {"DISTILLER.TYPE": METHODS, "SOLVER.TRAINER": UPDATES, "DATASET.TYPE": DATASETS}
"""Keys whose value is the name of a registered entry."""

_FIRST = ("EXPERIMENT", "DATASET", "DISTILLER", "SOLVER", "TEACHER_MEMO", "LOG")
"""Order of the groups in a configuration; methods and other groups follow."""

_TYPES = (str, int, float, bool, list, tuple, type(None))
"""What a configuration file can hold."""

_UNLIMITED = 2**31
"""Upper limits from here on protect counters; they are not shown to the user."""

Keys = Mapping[str, Key]
"""Keys by their full names."""


class Owner(NamedTuple):
    """What declares keys."""

    name: str
    """For messages: "the defaults of MyKD in my_kd.py"."""
    keys: dict[str, Key]


_added: dict[str, Owner] = {}
"""Owners given to `add_owner`, by the module that called it."""


def table() -> dict[str, Key]:
    """All keys by their full names, as {"SOLVER.LR": Key(...)}.

    This includes what the user wrote by hand into `edkd.engine.cfg.CFG`: new nodes, and other
    defaults of the engine's own keys.

    Raises:
        UserError: two owners declare one key, or a node written by hand contradicts the
            `defaults` of a registered class.
    """
    from edkd.engine import cfg

    keys = declared()
    by_hand = cfg.written_by_hand()
    _check_contradictions(by_hand, cfg.__file__)

    for name, key in by_hand.items():
        keys[name] = replace(keys[name], default=key.default) if name in keys else key
    return keys


def declared() -> dict[str, Key]:
    """All keys that code declares, grouped, in the order of a configuration."""
    found: dict[str, Key] = {}
    owners: dict[str, str] = {}

    for owner in _owners():
        for name, key in owner.keys.items():
            _check_default(name, key, owner)
            if found.setdefault(name, key) != key:
                raise UserError(
                    f"the key {name} is declared by {owners[name]} and by {owner.name}; rename one"
                )
            owners.setdefault(name, owner.name)

    _check_groups(found, owners)
    return _in_order(found)


def add_owner(keys: dict[str, Key]) -> None:
    """Declare keys from a plugin, as {"EXPERIMENT.NOTE": Key("", "free text")}.

    A module that runs again, as a plugin in a notebook, replaces the keys it declared before.

    Args:
        keys: by full names. `cfg.EXPERIMENT.NOTE` then reads the value.

    Raises:
        UserError: another owner has declared one of them, or a name has no group.
    """
    caller = sys._getframe(1).f_globals
    module = caller.get("__name__", "")
    file = str(caller.get("__file__", module))
    for name in keys:
        if "." not in name:
            raise UserError(f"the key {name} of {file} has no group; call it GROUP.{name}")

    before = dict(_added)
    _added[module] = Owner(file, dict(keys))
    try:
        declared()
    except UserError:
        _added.clear()
        _added.update(before)
        raise


def group_names(names: Iterable[str]) -> list[str]:
    """The groups of some keys, outer and inner: "KD", "KD.LOSS"."""
    groups: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        for length in range(1, len(parts)):
            groups[".".join(parts[:length])] = None
    return list(groups)


def as_node(values: Mapping[str, Any]) -> CfgNode:
    """A configuration from values by full names."""
    root = CfgNode()
    for name, value in values.items():
        *groups, last = name.split(".")
        node = root
        for group in groups:
            node = node.setdefault(group, CfgNode())
        node[last] = copy.deepcopy(value)
    return root


def defaults(keys: Keys) -> dict[str, Any]:
    """The default of each key."""
    return {name: key.default for name, key in keys.items()}


def select(prefixes: Sequence[str] = ()) -> dict[str, Key]:
    """The keys of some groups, or single keys; all without `prefixes`.

    Raises:
        UserError: a prefix fits no key; the message has the nearest one.
    """
    keys = table()
    if not prefixes:
        return keys

    chosen: dict[str, Key] = {}
    folded = {name.lower(): name for name in keys}
    for prefix in prefixes:
        found = _within(folded, prefix.rstrip(".").lower())
        if not found:
            names = [*group_names(keys), *keys]
            raise UserError(f"no key or group {prefix}{hint(prefix, names)}")
        chosen |= {folded[name]: keys[folded[name]] for name in found}
    return chosen


def help_text(prefixes: Sequence[str] = ()) -> str:
    """Two lines for each key: name and default, then its meaning and what is allowed."""
    lines = []
    for name, key in select(prefixes).items():
        lines.append(f"  {name}: {shown_default(key)}")
        meaning = f"{key.help} {facts(name, key)}".strip()
        if meaning:
            lines.append(f"      {meaning}")
    return "\n".join(lines)


def shown_default(key: Key) -> str:
    """The default as in YAML, with its unit."""
    text = '""' if key.default == "" else str(key.default)
    return f"{text} {key.unit}" if key.unit else text


def facts(name: str, key: Key) -> str:
    """Allowed values, source and use on --resume, in brackets; "" if there is nothing to tell."""
    found = [allowed(name, key)]
    if key.source:
        found.append(f"default from {key.source}")
    if key.free_on_resume:
        found.append("may change on --resume")
    text = "; ".join(fact for fact in found if fact)
    return f"({text})" if text else ""


def allowed(name: str, key: Key) -> str:
    """The allowed values of a key, as "step, cosine" or "at least 0"; "" if there is no limit."""
    registry = NAMES.get(name)
    choices = registry.names() if registry else key.choices
    if choices:
        return f"one of {', '.join(choices)}"

    limits = []
    if key.low > -INF:
        limits.append(f"at least {key.low:g}")
    if key.high < _UNLIMITED:
        limits.append(key.upper_limit())
    return " and ".join(limits)


def _owners() -> Iterator[Owner]:
    for module in (*_REGISTERING, *OWNERS):
        importlib.import_module(module)

    for module in OWNERS:
        yield Owner(module, sys.modules[module].KEYS)
    for registry, entry in _entries():
        yield Owner(_title(entry), _own_keys(registry, entry))
    yield from _added.values()


def _in_order(keys: Keys) -> dict[str, Key]:
    """The keys with each group together; the groups of the engine come first."""
    places: dict[str, int] = {}
    for place, group in enumerate((*_FIRST, *group_names(keys))):
        places.setdefault(group, place)

    def place_of(name: str) -> int:
        return min(places[each] for each in (*group_names([name]), name) if each in places)

    return {name: keys[name] for name in sorted(keys, key=place_of)}


def _entries() -> Iterator[tuple[Registry, Entry]]:
    for registry in REGISTRIES:
        for entry in registry.entries():
            yield registry, entry


def _own_keys(registry: Registry, entry: Entry) -> dict[str, Key]:
    """The keys of a registered entry, by full names."""
    if not isinstance(entry.defaults, Mapping):
        raise UserError(f"{_title(entry)} must be a dictionary, as dict(WEIGHT=1.0)")
    return dict(flatten(entry.defaults, f"{registry.node_of(entry)}."))


def _title(entry: Entry) -> str:
    name = getattr(entry.value, "__name__", entry.name)
    return f"the defaults of {name} in {entry.place}"


def _within(keys: Mapping[str, Any], prefix: str) -> list[str]:
    """The names of a group, or the one key of this name."""
    return [name for name in keys if name == prefix or name.startswith(f"{prefix}.")]


def _check_default(name: str, key: Key, owner: Owner) -> None:
    if not isinstance(key.default, _TYPES):
        raise UserError(
            f"{owner.name}: {name} is of type {type(key.default).__name__}; use text, a number, "
            "True or False, or a list of them"
        )


def _check_groups(keys: Keys, owners: Mapping[str, str]) -> None:
    for group in group_names(keys):
        if group in keys:
            raise UserError(
                f"{group} is a key of {owners[group]} and also a group of keys; rename one of them"
            )


def _check_contradictions(by_hand: Keys, file: str) -> None:
    """Refuse a node that is written by hand and differs from the class's `defaults`."""
    if not by_hand:
        return

    for registry, entry in _entries():
        node = registry.node_of(entry)
        own = defaults(_own_keys(registry, entry))
        hand = {name: by_hand[name].default for name in _within(by_hand, node)}
        if own and any(name not in own or own[name] != value for name, value in hand.items()):
            raise UserError(
                f"CFG.{node} is {hand} in {file} but {own} in {_title(entry)}; keep one of them"
            )
