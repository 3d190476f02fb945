"""A configuration key, declared by what owns it: its default, its meaning, the values it allows.

Owners (methods, data sets, models, update rules, parts of the engine) declare `Key`s. The engine
collects them into one table (`edkd.engine.config.table`), which everything else reads.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

INF = float("inf")


@dataclass(frozen=True)
class Key:
    """One configuration key.

    Args:
        default: the value where nothing else is given; its type is the type of the key.
        help: what the key does, in one sentence.
        unit: of the value, as "epochs".
        source: where the default comes from, as a paper.
        low: lowest allowed value; of each item where the value is a list.
        high: values must stay below it.
        includes_high: whether `high` itself is allowed too.
        choices: allowed values, where there are few; the default may stand for one of them.
        free_on_resume: whether a resumed run may have another value.
        names_run: whether a value given on the command line becomes part of the run's name.
        is_path: whether the value is a file or a folder.
        text_or_list: whether a text key also takes a list of texts.
    """

    default: Any
    help: str
    unit: str = ""
    source: str = ""
    low: float = -INF
    high: float = INF
    includes_high: bool = False
    choices: tuple[str, ...] = ()
    free_on_resume: bool = False
    names_run: bool = True
    is_path: bool = False
    text_or_list: bool = False

    def problem(self, value: Any) -> str:
        """Why a value of the right type is not allowed, or ""."""
        if self.choices and value not in (*self.choices, self.default):
            return f"is {value!r}, not one of {', '.join(self.choices)}"

        items = value if isinstance(value, (list, tuple)) else [value]
        numbers = [item for item in items if isinstance(item, (int, float))]
        if all(self._allows(number) for number in numbers):
            return ""

        if self.high == INF:
            return f"is {value}, but must be at least {self.low:g}"
        if self.low == -INF:
            return f"is {value}, but must be {self.upper_limit()}"
        return f"is {value}, but must be at least {self.low:g} and {self.upper_limit()}"

    def upper_limit(self) -> str:
        """ "below 1", or "at most 1"."""
        word = "at most" if self.includes_high else "below"
        return f"{word} {self.high:.10g}"

    def _allows(self, number: float) -> bool:
        if self.includes_high and number == self.high:
            return True
        return self.low <= number < self.high


_STANDARD_RANGES = {
    "T": (1e-3, INF),
    "TEMPERATURE": (1e-3, INF),
    "ALPHA": (0.0, INF),
    "BETA": (0.0, INF),
    "WARMUP": (0.0, INF),
    "NUM_STUDENTS": (2, 1000),
}
"""Ranges of hyper-parameters that are declared as plain values, by their usual names."""


def as_key(name: str, value: Any) -> Key:
    """The Key of an entry of `defaults`; a plain value gets the usual range of its name."""
    if isinstance(value, Key):
        return value
    if name.endswith("_WEIGHT"):
        return Key(value, "", low=0.0)
    low, high = _STANDARD_RANGES.get(name, (-INF, INF))
    return Key(value, "", low=low, high=high)


def flatten(defaults: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Key]]:
    """The keys of nested `defaults`, as ("KD.LOSS.CE_WEIGHT", Key)."""
    for name, value in defaults.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", as_key(name, value)
