"""Reading a configuration strictly: YAML files and KEY VALUE pairs are merged into the defaults, typed and checked."""

import importlib.util
import math
import os
import re
import reprlib
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from edkd.dataset import dataset_dict
from edkd.distillers import distiller_dict
from edkd.engine import cfg as defaults
from edkd.engine.teacher_memo import DTYPES
from edkd.engine.trainer import trainer_dict
from edkd.errors import UserError, nearest
from edkd.models import model_names

CHOICES = {
    "SOLVER.TYPE": ("SGD", "Adam", "AdamW"),
    "SOLVER.SCHEDULE": ("step", "cosine"),
    "SOLVER.AMP": ("auto", "off", "bf16", "fp16"),
    "TEACHER_MEMO.DTYPE": ("auto", *DTYPES),
}
RANGES = {  # lowest, highest (excluded); of each item where the value is a list
    "DATASET.NUM_WORKERS": (0, math.inf),
    "DATASET.WORKER_TIMEOUT": (1e-3, math.inf),
    "DATASET.VAL_SPLIT": (0, 1),
    "DATASET.TEST.BATCH_SIZE": (0, 2**31),
    "SOLVER.SEED": (0, 2**63),
    "SOLVER.BATCH_SIZE": (1, 2**31),
    "SOLVER.EPOCHS": (1, 2**31),
    "SOLVER.LR": (0, math.inf),
    "SOLVER.LR_DECAY_STAGES": (0, math.inf),
    "SOLVER.LR_DECAY_RATE": (0, math.inf),
    "SOLVER.WARMUP_EPOCHS": (0, math.inf),
    "SOLVER.WEIGHT_DECAY": (0, math.inf),
    "SOLVER.MOMENTUM": (0, 1),
    "SOLVER.BETAS": (0, 1),
    "SOLVER.CLIP_GRAD_NORM": (0, math.inf),
    "SOLVER.CHECKPOINT_MINUTES": (0, math.inf),
    "TEACHER_MEMO.MAX_GB": (0, math.inf),
    "LOG.KEEP": (0, math.inf),
    "LOG.TENSORBOARD_FREQ": (0, math.inf),
    "LOG.SAVE_CHECKPOINT_FREQ": (0, math.inf),
    "*.NUM_STUDENTS": (2, 1000),
    "*.WARMUP": (0, math.inf),
    "*.T": (1e-3, math.inf),
    "*.TEMPERATURE": (1e-3, math.inf),
    "*.ALPHA": (0, math.inf),
    "*.BETA": (0, math.inf),
    "*_WEIGHT": (0, math.inf),
}
PLACES = ("DATASET.ROOT", "DISTILLER.TEACHER_CKPT", "TEACHER_MEMO.FOLDER", "LOG.PREFIX")
FREE_OF_A_NAME = (
    "SOLVER.EPOCHS",
    "SOLVER.CHECKPOINT_MINUTES",
    "LOG.",
    "TEACHER_MEMO.FOLDER",
    "TEACHER_MEMO.MAX_GB",
    "DATASET.ROOT",
    "DATASET.NUM_WORKERS",
    "DATASET.WORKER_TIMEOUT",
    "DATASET.TEST.BATCH_SIZE",
)
"""Keys that may change when a run goes on: they do not decide what a step does."""
FREE_ON_RESUME = (*FREE_OF_A_NAME, "EXPERIMENT.")


class _Text(str):
    """A value of the command line, not read yet: what it means depends on the type of its key."""


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses a key that is written twice and reads 1e-4 as a number."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; YAMLError where it does not fit its tag, or is a number too large to count with."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int):
                float(value)
        except (ArithmeticError, AttributeError, LookupError, ValueError):  # PyYAML's own, as for !!bool 3
            raise yaml.MarkedYAMLError(problem="a value does not fit its type", problem_mark=node.start_mark) from None
        return value


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key is not a word", problem_mark=key_node.start_mark)
        if key_node.value in seen:
            raise yaml.MarkedYAMLError(
                problem=f"the key {key_node.value} is written twice", problem_mark=key_node.start_mark
            )
        seen.add(key_node.value)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_cfg(file: str = "", opts: Sequence[str] = (), plugins: Sequence[str] = ()) -> CfgNode:
    """Merge defaults, plugins' defaults, a YAML file and `KEY VALUE` pairs, in that order, and check the result.

    Args:
        file: a YAML file, or "" for none.
        opts: KEY, VALUE, KEY, VALUE, ...; values are written as in YAML.
        plugins: Python files whose methods register themselves.

    Returns:
        A frozen configuration.

    Raises:
        UserError: an unknown key, a value of a wrong type or out of its range; the message names the key.
    """
    for plugin in plugins:
        _import(plugin)
    cfg = defaults.with_methods(defaults.CFG)
    if file:
        _merge(cfg, _read_yaml(Path(file)), source=file)
    if len(opts) % 2:
        raise UserError(f"options come as KEY VALUE pairs, but {opts[-1]!r} has no partner")
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        _merge(cfg, _nested(key, _Text(text)), source="command line")
    _check(cfg)
    _check_students(cfg, opts[::2])
    cfg.freeze()
    return cfg


def flatten(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves, as ("SOLVER.LR", value)."""
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def saved_config(text: str) -> dict[str, Any]:
    """The leaves of a configuration that a run has saved as text, tuples as lists; ValueError where it is none."""
    try:
        return dict(flatten(CfgNode(yaml.safe_load(text))))
    except Exception as error:  # there is hardly one that damaged text cannot raise
        raise ValueError(f"no saved configuration: {error}") from None


def changed_keys(old: dict[str, Any], cfg: CfgNode, free: tuple[str, ...] = FREE_ON_RESUME) -> list[str]:
    """The keys, in words, in which `cfg` differs from the leaves of a saved configuration, but for the free ones.

    Nodes of methods that are not used do not count, and a key that the saved one lacks had its default.
    """
    default, new = saved_config(defaults.with_methods(defaults.CFG).dump()), saved_config(cfg.dump())
    unused = tuple(f"{name}." for name in distiller_dict if name != cfg.DISTILLER.TYPE)
    if cfg.SOLVER.SCHEDULE == "cosine":  # which ends with the last epoch: another number of them is another curve
        free = tuple(key for key in free if key != "SOLVER.EPOCHS")
    return [
        f"{key} was {_shown(was)} and is {_shown(value)}"
        for key, value in new.items()
        if (was := old.get(key, default.get(key))) != value and not key.startswith((*free, *unused))
    ]


def _import(plugin: str) -> None:
    path = Path(plugin)
    if path.suffix != ".py" or not os.path.isfile(path):
        raise UserError(f"--plugin {plugin}: no such Python file")
    spec = importlib.util.spec_from_file_location(f"edkd_plugin_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the file does
        lines = [
            f"line {frame.lineno}: "
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(path)
        ]
        raise UserError(f"--plugin {plugin}: {lines[-1] if lines else ''}{type(error).__name__}: {error}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"--cfg {path}: a configuration is a .yaml file")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except FileNotFoundError:
        siblings = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise UserError(f"--cfg {path}: no such file{nearest(str(path), siblings)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--cfg {path}: cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--cfg {path}: not valid YAML: {error}") from None
    if not isinstance(content or {}, dict):
        raise UserError(f"--cfg {path}: holds {type(content).__name__}, not KEY: VALUE lines")
    return content or {}


def _parse(name: str, text: str) -> Any:
    """The value of a pair on the command line: YAML, where a Python tuple passes for a list."""
    if text.startswith("(") and text.endswith(")"):
        text = f"[{text[1:-1]}]"
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"{name} (command line): cannot read the value {text!r}") from None


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merge(cfg: CfgNode, updates: dict[str, Any], source: str, prefix: str = "") -> None:
    for key, value in updates.items():
        name = f"{prefix}{key}"
        if key not in cfg:
            raise UserError(_unknown_key(cfg, str(key), prefix, source))
        if isinstance(cfg[key], CfgNode):
            if value is not None and not isinstance(value, dict):
                raise UserError(f"{name} ({source}): is a group of keys ({', '.join(cfg[key])}), not a value")
            _merge(cfg[key], value or {}, source, f"{name}.")
        else:
            cfg[key] = _coerce(name, value, cfg[key], source)


def _unknown_key(cfg: CfgNode, key: str, prefix: str, source: str) -> str:
    here = [f"{prefix}{known}" for known in cfg]
    everywhere = [name for name, _ in flatten(defaults.with_methods(defaults.CFG))]
    hint = nearest(prefix + key, here) or nearest(prefix + key, everywhere)
    return f"unknown key {prefix}{key} ({source}){hint or '; the known ones here are ' + ', '.join(here)}"


def _coerce(name: str, value: Any, default: Any, source: str) -> Any:
    """Give `value` the type of the default: an int passes for a float, a YAML list for a tuple; nothing else."""
    if isinstance(default, str):
        if value is None or value is False:  # how YAML reads nothing, and a bare off
            value = "" if value is None else "off"
        if isinstance(value, (str, int, float)):
            value = str(value).strip("'\"")
    elif isinstance(value, _Text):
        value = _parse(name, value)
    if type(default) is float and type(value) is int:
        value = float(value)
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        value = type(default)(_coerce(name, item, default[0], source) if default else item for item in value)
    if type(value) is not type(default):
        raise UserError(f"{name} ({source}): {_shown(value)} is not of type {type(default).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} ({source}): {value} is not a finite number")
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        raise UserError(
            f"{name} ({source}): {_shown(value)} holds what is no character, or no name may hold; leave it out"
        )
    return value


def _shown(value: Any) -> str:
    """A value for a message, cut short: a few lines of YAML can name each other to stand for a thousand million."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxstring, short.maxother = 2, 20, 200, 200
    return short.repr(value)[:400]


def _check(cfg: CfgNode) -> None:
    leaves = dict(flatten(cfg))
    choices = {
        **CHOICES,
        "SOLVER.TRAINER": trainer_dict,
        "DATASET.TYPE": dataset_dict,
        "DISTILLER.TYPE": distiller_dict,
    }
    for name, method in distiller_dict.items():
        choices |= {f"{name}.{key}": known for key, known in method.choices.items()}
    for key, known in choices.items():
        _check_choice(key, leaves[key], known)
    for key, value in leaves.items():
        for pattern, (low, high) in RANGES.items():
            items = value if isinstance(value, (list, tuple)) else [value]
            numbers = [item for item in items if isinstance(item, (int, float))]
            if fnmatch(key, pattern) and not all(low <= number < high for number in numbers):
                below = "" if high == math.inf else f" and below {high}"
                raise UserError(f"{key} is {value}, but must be at least {low}{below}")
    for key in PLACES:
        try:
            Path(leaves[key]).expanduser().exists()
        except (OSError, RuntimeError) as error:  # no home of such a user, a name too long
            raise UserError(
                f"{key} is {_shown(leaves[key])}, where nothing can lie ({error}); name another place"
            ) from None
    if cfg.SOLVER.NESTEROV and not cfg.SOLVER.MOMENTUM:
        raise UserError("SOLVER.NESTEROV needs a SOLVER.MOMENTUM above 0")
    if cfg.SOLVER.CUDA_GRAPH and cfg.SOLVER.AMP == "fp16":
        raise UserError("SOLVER.CUDA_GRAPH cannot capture the loss scaling of SOLVER.AMP fp16; use bf16 or off")
    if len(cfg.SOLVER.BETAS) != 2:
        raise UserError(f"SOLVER.BETAS is {cfg.SOLVER.BETAS}, but must be two numbers")
    known_models = model_names(dataset_dict[cfg.DATASET.TYPE].family)
    method = distiller_dict[cfg.DISTILLER.TYPE]
    students = method.student_names(cfg)
    for name in students:
        key = "DISTILLER.STUDENT" if name == cfg.DISTILLER.STUDENT else f"{cfg.DISTILLER.TYPE}.STUDENTS"
        _check_choice(key, str(name), known_models)
    if method.needs_teacher:
        _check_choice("DISTILLER.TEACHER", cfg.DISTILLER.TEACHER, known_models)


def _check_students(cfg: CfgNode, given: Sequence[str]) -> None:
    """That there are enough of them, and that no key was given that would change nothing."""
    kind, method = cfg.DISTILLER.TYPE, distiller_dict[cfg.DISTILLER.TYPE]
    names = method.student_names(cfg)
    if len(names) < method.min_students:
        raise UserError(f"{kind} takes {method.min_students} students or more, not {len(names)}")
    for key in ("DISTILLER.STUDENT", f"{kind}.NUM_STUDENTS"):
        if method.is_cohort and cfg[kind].get("STUDENTS") and key in given:
            raise UserError(f"{key} changes nothing beside {kind}.STUDENTS {names}; change that, or set it to []")


def _check_choice(key: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UserError(f"{key} is {value!r}, not one of {', '.join(known)}{nearest(value, known)}")
