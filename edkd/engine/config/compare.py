"""Comparing configurations: what may change on --resume, and what decides a result."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from yacs.config import CfgNode

from edkd.distillers import SEPARATOR, find_method
from edkd.engine.config.scalars import as_list, shown
from edkd.engine.config.table import REGISTRIES, as_node, defaults, table
from edkd.keys import Key
from edkd.models import registered_name
from edkd.registry import DATASETS, METHODS, MODELS, UPDATES, Registry


def flatten(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values, as ("SOLVER.LR", 0.05)."""
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def saved_config(text: str) -> dict[str, Any]:
    """The values of a configuration that a run saved as text, tuples as lists.

    Raises:
        ValueError: the text is not a configuration.
    """
    try:
        return dict(flatten(CfgNode(yaml.safe_load(text))))
    except Exception as error:  # damaged text can raise almost any
        raise ValueError(f"not a saved configuration: {error}") from None


def saved_text(cfg: CfgNode) -> str:
    """A configuration as YAML, without the groups of parts that are not used.

    `load_config` reads it back: the groups that are left out have their defaults then.
    """
    unused = unused_groups(cfg)
    used = {name: value for name, value in flatten(cfg) if not name.startswith(unused)}
    return as_node(used).dump()


def differences(old: Mapping[str, Any], cfg: CfgNode) -> dict[str, str]:
    """All differences by keys, as {"SOLVER.LR": "SOLVER.LR was 0.05 and is 0.1"}.

    Keys of methods, update rules, data sets and models that are not used do not count. A key that
    the saved configuration lacks had its default.

    Args:
        old: from `saved_config`.
        cfg: the configuration of now.
    """
    keys = table()
    before = {name: _as_saved(value) for name, value in defaults(keys).items()} | dict(old)
    unused = unused_groups(cfg)

    found = {}
    for name, value in flatten(cfg):
        key = keys.get(name)
        is_path = key is not None and key.is_path
        was = _as_path(before.get(name)) if is_path else before.get(name)
        now = _as_path(value) if is_path else _as_saved(value)
        if was != now and not name.startswith(unused):
            found[name] = f"{name} was {shown(was)} and is {shown(now)}{_reason(name, cfg)}"
    return found


def changed_keys(old: Mapping[str, Any], cfg: CfgNode) -> list[str]:
    """The differences that a resumed run may not have; see `differences`."""
    keys = table()
    found = differences(old, cfg)
    return [text for name, text in found.items() if not may_change(name, keys.get(name), cfg)]


def may_change(name: str, key: Key | None, cfg: CfgNode) -> bool:
    """Whether a resumed run may have another value of a key.

    This is the key's `free_on_resume`, with one exception: under the cosine schedule, which ends
    with the last epoch, another SOLVER.EPOCHS changes the learning rate of every step.
    """
    return key is not None and key.free_on_resume and not _reason(name, cfg)


def _reason(name: str, cfg: CfgNode) -> str:
    """Why a key may not change although it is free elsewhere, in brackets; or ""."""
    if name == "SOLVER.EPOCHS" and cfg.SOLVER.SCHEDULE == "cosine":
        return " (the cosine schedule ends with the last epoch)"
    return ""


def identifying(cfg: CfgNode) -> dict[str, Any]:
    """The values that decide a result, the seed aside: equal for the seeds of one experiment.

    Left out are the names of a run, paths that name no run, logging, and the keys of parts that are
    not used.
    """
    keys = table()
    left_out = ("EXPERIMENT.", "LOG.", "SOLVER.SEED", *unused_groups(cfg))

    found = {}
    for name, value in flatten(cfg):
        key = keys.get(name)
        is_free = key is not None and key.free_on_resume and name != "SOLVER.EPOCHS"
        is_place = key is not None and key.is_path and not key.names_run
        if not is_free and not is_place and not name.startswith(left_out):
            found[name] = _as_saved(value)
    return found


def hyper_parameters(cfg: CfgNode) -> dict[str, Any]:
    """What the logs of a run are filtered by: `identifying`, and the seed."""
    return {**identifying(cfg), "SOLVER.SEED": cfg.SOLVER.SEED}


def unused_groups(cfg: CfgNode) -> tuple[str, ...]:
    """The groups of registered parts that a configuration does not use, as "DKD."."""
    used = _used_names(cfg)
    groups = []
    for registry in REGISTRIES:
        for entry in registry.entries():
            if entry.name not in used[registry]:
                groups.append(f"{registry.node_of(entry)}.")

    if SEPARATOR not in cfg.DISTILLER.TYPE:
        groups.append("COMBINED.")
    return tuple(groups)


def long_warmups(cfg: CfgNode) -> list[str]:
    """A line for each warm-up, of the rate or of the method, that is longer than the run."""
    keys = table()
    epochs = cfg.SOLVER.EPOCHS
    unused = unused_groups(cfg)

    lines = []
    for name, value in flatten(cfg):
        is_warmup = "WARMUP" in name.rpartition(".")[2] and isinstance(value, (int, float))
        counts_epochs = name in keys and keys[name].unit == "epochs"
        if is_warmup and counts_epochs and value > epochs and not name.startswith(unused):
            lines.append(
                f"warning: {name} {value} is longer than the run of SOLVER.EPOCHS {epochs}: the "
                "warm-up does not reach its end"
            )
    return lines


def _used_names(cfg: CfgNode) -> dict[Registry, list[str]]:
    """The entries of each registry that a configuration names."""
    method = find_method(cfg.DISTILLER.TYPE)
    models = [*as_list(cfg.DISTILLER.TEACHER), *method.student_names(cfg)]
    return {
        METHODS: cfg.DISTILLER.TYPE.split(SEPARATOR),
        UPDATES: [cfg.SOLVER.TRAINER],
        DATASETS: [cfg.DATASET.TYPE],
        MODELS: [registered_name(name) for name in models],
    }


def _as_path(value: Any) -> Any:
    """A path, or a list of paths, as it is used; earlier versions saved it as written."""
    if isinstance(value, (list, tuple)):
        return [_as_path(item) for item in value]
    return os.path.expanduser(os.path.expandvars(value)) if isinstance(value, str) else value


def _as_saved(value: Any) -> Any:
    """A value as it is after saving and reading: tuples become lists."""
    if isinstance(value, (list, tuple)):
        return [_as_saved(item) for item in value]
    return value
