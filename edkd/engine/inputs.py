"""Fills the keys of a data set that say how images are prepared, from the networks of a run.

A data set that is registered with `input_keys=True` has some of the keys SIZE, MEAN, STD, RESIZE
and INTERPOLATION in its own node. Those that are empty, or 0, get the values of the pretrained
student, else those of the teacher; of several, those of the first. Where neither says how its
images are prepared, the keys stay empty, and the data set uses its own default.

Its entry may have `own_input`, a function of the configuration that returns values which the images
decide, as the size of small ones. They come first.
"""

from collections.abc import Callable
from typing import Any

from yacs.config import CfgNode

from edkd.distillers import find_method
from edkd.engine.config.scalars import as_list
from edkd.engine.networks import read_student, read_teacher, student_files, teacher_files
from edkd.engine.weight_source import PRETRAINED, input_of, is_of_library
from edkd.registry import DATASETS
from edkd.types import InputSpec

_VALUES: dict[str, Callable[[InputSpec], Any]] = {
    "SIZE": lambda spec: max(spec.image_shape[1:]),
    "MEAN": lambda spec: list(spec.mean),
    "STD": lambda spec: list(spec.std),
    "RESIZE": lambda spec: spec.resize,
    "INTERPOLATION": lambda spec: spec.interpolation,
}
"""The value of each key."""

_NORMALISATION = ("MEAN", "STD")
"""Filled together, or not at all: a mean of one network and a std of another fit none."""


def with_input_of_networks(cfg: CfgNode) -> CfgNode:
    """A configuration in which the data are prepared as for its pretrained networks.

    Raises:
        UserError: the weights of a network are absent or damaged, or cannot be downloaded.
    """
    cfg = _with_own_input(cfg)
    if not _empty_keys(cfg):
        return cfg
    return _with_spec(cfg, _input_of_students(cfg) or _input_of_teachers(cfg))


def with_input(cfg: CfgNode, spec: InputSpec | None) -> CfgNode:
    """The same for one network.

    Args:
        cfg: is not changed.
        spec: how the images of that network are prepared; None: not known.
    """
    return _with_spec(_with_own_input(cfg), spec)


def _with_spec(cfg: CfgNode, spec: InputSpec | None) -> CfgNode:
    empty = _empty_keys(cfg)
    if spec is None or not empty:
        return cfg
    return _filled(cfg, {name: _VALUES[name](spec) for name in empty})


def _with_own_input(cfg: CfgNode) -> CfgNode:
    """A configuration with what the images themselves decide."""
    own_input = DATASETS.find(cfg.DATASET.TYPE).info.get("own_input")
    return _filled(cfg, own_input(cfg)) if own_input and _empty_keys(cfg) else cfg


def _filled(cfg: CfgNode, values: dict[str, Any]) -> CfgNode:
    """A copy with other values in the data set's node."""
    filled = cfg.clone()
    filled.defrost()
    _node_of(filled).update(values)
    filled.freeze()
    return filled


def _empty_keys(cfg: CfgNode) -> list[str]:
    """The keys of the data set's node that are to be filled."""
    if not DATASETS.find(cfg.DATASET.TYPE).info.get("input_keys"):
        return []
    node = _node_of(cfg)
    empty = [name for name in _VALUES if name in node and not node[name]]
    if len({name in empty for name in _NORMALISATION}) > 1:
        empty = [name for name in empty if name not in _NORMALISATION]
    return empty


def _node_of(cfg: CfgNode) -> CfgNode:
    node = cfg
    for part in DATASETS.node_of(DATASETS.find(cfg.DATASET.TYPE)).split("."):
        node = node[part]
    return node


def _input_of_students(cfg: CfgNode) -> InputSpec | None:
    names = find_method(cfg.DISTILLER.TYPE).student_names(cfg)
    for name, given in zip(names, student_files(cfg, names), strict=True):
        if given == PRETRAINED and is_of_library(name):
            return input_of(name)
        if given:
            return input_of(name, read_student(cfg, name, given).facts)
    return None


def _input_of_teachers(cfg: CfgNode) -> InputSpec | None:
    if not find_method(cfg.DISTILLER.TYPE).needs_teacher:
        return None
    names = as_list(cfg.DISTILLER.TEACHER)
    name = names[0]
    given = teacher_files(cfg, names)[0]
    if not given and is_of_library(name):
        return input_of(name)
    return input_of(name, read_teacher(cfg, name, given).facts)
