"""A line about a learning rate that was chosen for another batch size."""

from collections.abc import Mapping, Sequence
from typing import Any

RATE = "SOLVER.LR"
SIZE = "SOLVER.BATCH_SIZE"

_ATTRIBUTE = "__hints__"


def batch_hints(layers: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> list[str]:
    """A line where SOLVER.BATCH_SIZE was changed after SOLVER.LR was set; else none.

    SGD alone follows the linear rule: P. Goyal et al., "Accurate, Large Minibatch SGD", 2017.

    Args:
        layers: the values of the defaults, of each file, the innermost base first, and of the
            command line.
        values: those that result.
    """
    setters = [number for number, layer in enumerate(layers) if RATE in layer]
    before: dict[str, Any] = {}
    for layer in layers[: setters[-1] + 1]:
        before.update(layer)

    size = values[SIZE]
    base = before[SIZE]
    is_default = setters == [0]
    if is_default or size == base or values["SOLVER.TYPE"] != "SGD":
        return []

    rate = values[RATE]
    scaled = f"{rate * size / base:.3g}"
    return [
        f"{RATE} {rate:g} was set for {SIZE} {base}; for {size}, linear scaling suggests "
        f"{RATE} {scaled}"
    ]


def remember_hints(cfg: Any, hints: Sequence[str]) -> None:
    """Note lines for the log of a run, outside the keys of its configuration."""
    cfg.__dict__[_ATTRIBUTE] = list(hints)


def hints_of(cfg: Any) -> list[str]:
    """The lines that were noted."""
    return list(cfg.__dict__.get(_ATTRIBUTE, ()))
