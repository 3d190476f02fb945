"""Types, ranges and choices of values, and the rules between several keys."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from edkd.dataset import dataset_dict
from edkd.distillers import SEPARATOR, canonical_name, find_method
from edkd.engine.config.recipe_check import check_recipe
from edkd.engine.config.scalars import Scalar, as_list, plain, shown
from edkd.engine.config.table import Keys
from edkd.engine.update import PUBLISHED_NAMES
from edkd.errors import UserError
from edkd.hints import hint, not_one_of
from edkd.keys import INF, Key
from edkd.models import check_model, elsewhere, is_qualified, model_names
from edkd.paths import expanded
from edkd.registry import DATASETS, METHODS, UPDATES, Registry

_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
_LIST = (list, tuple)

Networks = Mapping[str, Sequence[str]]
"""Names of the caller's own modules: {"student": [...], "teacher": [...]}."""


def typed(name: str, value: Any, key: Key, source: str) -> Any:
    """A parsed value in the type of its key.

    An integer is also accepted as a float, and a YAML list as a tuple; nothing else is converted.
    Text keeps what was written; null is empty where the default is. In a path, ~ and environment
    variables are replaced. A list whose default is empty contains numbers if its key has a
    range, and any values otherwise.

    Args:
        value: a `Scalar`, or lists and dictionaries of them.
        source: file or command line, for messages.

    Raises:
        UserError: it is of another type, is not a finite number, or has characters that no name
            can have.
    """
    default = key.default
    result: Any = plain(value)

    if isinstance(value, list) and isinstance(default, _LIST):
        items = [typed(name, item, _item_key(key), source) for item in value]
        result = type(default)(items)
    elif isinstance(value, list) and key.text_or_list:
        result = [typed(name, item, replace(key, text_or_list=False), source) for item in value]
    elif isinstance(value, Scalar):
        result = _typed_scalar(value, default)

    if not _has_type(result, key):
        kind = type(default).__name__
        advice = _advice(result, default)
        raise UserError(f"{name} ({source}): {shown(value)} is not of type {kind}{advice}")
    if isinstance(result, float) and not math.isfinite(result):
        raise UserError(f"{name} ({source}): {result} is not a finite number")
    if isinstance(result, str) and _NOT_TEXT.search(result):
        raise UserError(
            f"{name} ({source}): {shown(result)} contains a character that no name can have; "
            "remove it"
        )
    return _expanded(f"{name} ({source})", result) if key.is_path else result


def canonical(values: dict[str, Any]) -> dict[str, Any]:
    """The values with the registered spelling of the method and the update rule.

    Raises:
        UserError: one of them, or the data set, is unknown.
    """
    method = values["DISTILLER.TYPE"]
    for part in method.split(SEPARATOR):
        _find_name("DISTILLER.TYPE", part or method, METHODS)  # as KD++

    rule = values["SOLVER.TRAINER"]
    rule = PUBLISHED_NAMES.get(rule.lower(), rule)
    _find_name("SOLVER.TRAINER", rule, UPDATES)

    found = {"DISTILLER.TYPE": canonical_name(method), "SOLVER.TRAINER": UPDATES.find(rule).name}
    return values | found


def check(
    cfg: CfgNode,
    values: Mapping[str, Any],
    keys: Keys,
    given: Sequence[str] = (),
    networks: Networks | None = None,
) -> None:
    """Raise UserError for the first value that is not allowed; the message names its key.

    Args:
        cfg: the configuration.
        values: the same, by full names.
        keys: the table.
        given: keys of the command line.
        networks: names of the caller's own modules; those of the configuration are not checked.
    """
    for name, value in values.items():
        _check_value(name, value, keys[name])

    _check_solver(cfg.SOLVER)
    check_recipe(cfg, networks is not None)
    if networks is None:
        _check_choice("DATASET.TYPE", cfg.DATASET.TYPE, DATASETS.names())
        _check_students(cfg, given)
        _check_models(cfg)
    _check_teachers(cfg)


def _typed_scalar(value: Scalar, default: Any) -> Any:
    if isinstance(default, str):
        is_empty = value.value is None and default == ""
        return "" if is_empty else value.text
    if type(default) is float and type(value.value) is int:
        return float(value.value)
    return value.value


def _expanded(name: str, value: str | list[str]) -> str | list[str]:
    if isinstance(value, list):
        return [expanded(path, name) for path in value]
    return expanded(value, name)


def _advice(value: Any, default: Any) -> str:
    """How to write a value of the type of the default."""
    if isinstance(default, bool):
        return "; write True or False, without quotes"
    if isinstance(default, int) and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if isinstance(default, (int, float)):
        example = 10 if isinstance(default, int) else 0.1
        return f"; write a number in decimal, as {example}, without quotes"
    if isinstance(default, _LIST):
        return "; write a list, as [1, 2]"
    return "; put text in quotes" if isinstance(default, str) else ""


def _item_key(key: Key) -> Key:
    """The key of one item of a list."""
    if key.default:
        return replace(key, default=key.default[0])
    has_range = key.low > -INF or key.high < INF
    return replace(key, default=0.0 if has_range else _ANY)


class _Any:
    """Default of items that may be of any type."""


_ANY = _Any()


def _has_type(value: Any, key: Key) -> bool:
    if key.default is _ANY:
        return True
    if key.text_or_list and isinstance(value, list):
        return True
    return type(value) is type(key.default)


def _check_value(name: str, value: Any, key: Key) -> None:
    parts = value if key.choices and isinstance(value, _LIST) else [value]
    for part in parts:
        problem = key.problem(part)
        if problem:
            near = hint(part, key.choices) if isinstance(part, str) else ""
            raise UserError(f"{name} {problem}{near}")
    if key.is_path:
        for path in as_list(value):
            _check_path(name, path)


def _check_path(name: str, path: str) -> None:
    try:
        Path(path).expanduser().exists()
    except (OSError, RuntimeError) as error:  # no home folder of such a user, a name too long
        raise UserError(
            f"{name} is {shown(path)}, which is not a possible path ({error}); give another one"
        ) from None


def _check_solver(solver: CfgNode) -> None:
    if solver.NESTEROV and not solver.MOMENTUM:
        raise UserError("SOLVER.NESTEROV needs a SOLVER.MOMENTUM above 0")
    if solver.NESTEROV and solver.TYPE != "SGD":
        raise UserError(f"SOLVER.NESTEROV has no effect on SOLVER.TYPE {solver.TYPE}; use SGD")
    if solver.CUDA_GRAPH and solver.AMP == "fp16":
        raise UserError(
            "SOLVER.CUDA_GRAPH cannot capture the loss scaling of SOLVER.AMP fp16; use bf16 or off"
        )
    if len(solver.BETAS) != 2:
        raise UserError(f"SOLVER.BETAS is {solver.BETAS}, but must be two numbers")


def _check_models(cfg: CfgNode) -> None:
    family = dataset_dict[cfg.DATASET.TYPE].family
    method = find_method(cfg.DISTILLER.TYPE)

    for name in method.student_names(cfg):
        is_single = name == cfg.DISTILLER.STUDENT
        key = "DISTILLER.STUDENT" if is_single else f"{cfg.DISTILLER.TYPE}.STUDENTS"
        _check_model(key, name if isinstance(name, str) else shown(name), family)

    if method.needs_teacher:
        for name in as_list(cfg.DISTILLER.TEACHER):
            _check_model("DISTILLER.TEACHER", name, family)


def _check_model(key: str, name: str, family: str) -> None:
    if is_qualified(name):
        try:
            check_model(family, name)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
        return

    known = model_names(family)
    note = "" if name in known else elsewhere(family, name)
    _check_choice(key, name, known, note)


def _check_students(cfg: CfgNode, given: Sequence[str]) -> None:
    """Refuse too few students, and keys that would have no effect."""
    kind = cfg.DISTILLER.TYPE
    method = find_method(kind)
    names = method.student_names(cfg)
    if len(names) < method.min_students:
        raise UserError(f"{kind} takes {method.min_students} students or more, not {len(names)}")

    if not method.is_cohort or not cfg[kind].get("STUDENTS"):
        return
    for key in ("DISTILLER.STUDENT", f"{kind}.NUM_STUDENTS"):
        if key in given:
            raise UserError(
                f"{key} has no effect beside {kind}.STUDENTS {names}; change that, or set it to []"
            )


def _check_teachers(cfg: CfgNode) -> None:
    if not find_method(cfg.DISTILLER.TYPE).needs_teacher:
        return

    names = as_list(cfg.DISTILLER.TEACHER)
    weights = cfg.DISTILLER.TEACHER_WEIGHTS
    if not names:
        raise UserError(f"DISTILLER.TEACHER is empty, but {cfg.DISTILLER.TYPE} needs a teacher")
    if weights and len(weights) != len(names):
        raise UserError(
            f"DISTILLER.TEACHER_WEIGHTS has {len(weights)} numbers, but DISTILLER.TEACHER names "
            f"{len(names)} teachers; give one for each"
        )
    if weights and not any(weights):
        raise UserError("DISTILLER.TEACHER_WEIGHTS are all 0; give one teacher a weight above 0")


def _find_name(key: str, name: str, registry: Registry) -> None:
    """Raise UserError for a name that is not registered, in whatever case."""
    known = registry.names()
    alike = [other for other in known if other.lower() == name.lower()]
    if name not in known and len(alike) != 1:
        _check_choice(key, name, known, registry.note(name))


def _check_choice(key: str, value: str, known: Iterable[str], note: str = "") -> None:
    names = list(known)
    if value not in names:
        raise UserError(not_one_of(key, value, names, note))
