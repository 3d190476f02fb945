"""What is searched: for each key a range of numbers, or a list of values."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edkd.engine.config.scalars import Scalar, plain
from edkd.engine.config.table import table
from edkd.engine.config.unknown_key import unknown_key
from edkd.errors import UserError
from edkd.hints import unknown
from edkd.sweep.options import text_of, wrong

_WORDS = ("low", "high", "log", "step")
"""Of a range."""

_DIGITS = 4
"""Significant digits of a number that is drawn from a range, so that files are readable."""

_SEARCH = "search"

_NO = Scalar("false", False)


@dataclass(frozen=True)
class Interval:
    """A range of numbers, both ends included.

    Args:
        low: the lowest number.
        high: the highest one.
        log: whether the logarithm is drawn evenly.
        step: between two numbers; None: any number between the ends.
        is_whole: whether the key is a whole number.
    """

    low: float
    high: float
    log: bool
    step: float | None
    is_whole: bool

    def suggest(self, trial: Any, key: str, own: Any = None) -> str:
        """The value of a trial of Optuna, as on a command line.

        Args:
            trial: of Optuna.
            key: of the configuration.
            own: value of the configuration, which is not rounded; None: none that is searched.
        """
        if self.is_whole:
            step = int(self.step or 1)
            return str(
                trial.suggest_int(key, int(self.low), int(self.high), step=step, log=self.log)
            )

        number = trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)
        if number == own:
            return _number_text(number)
        rounded = float(f"{number:.{_DIGITS}g}")
        inside = min(max(rounded, self.low), self.high)
        return _number_text(inside)

    def position(self, value: Any) -> Any:
        """The value of a configuration as Optuna has it; None where it is not in the range."""
        is_number = type(value) in (int, float)
        if not is_number or not self.low <= value <= self.high:
            return None

        is_on_step = not self.step or _is_near_whole((value - self.low) / self.step)
        return value if is_on_step else None

    def ends(self) -> list[str]:
        """The values to check: both ends, as on a command line."""
        return [self._text(self.low), self._text(self.high)]

    def __str__(self) -> str:
        text = " to ".join(self.ends())
        if self.log:
            text += " (log)"
        if self.step:
            text += f" (step {self._text(self.step)})"
        return text

    def _text(self, number: float) -> str:
        return str(int(number)) if self.is_whole else _number_text(number)


@dataclass(frozen=True)
class Choices:
    """A list of values.

    Args:
        texts: the values as on a command line.
    """

    texts: tuple[str, ...]

    def suggest(self, trial: Any, key: str, own: Any = None) -> str:
        """The value of a trial of Optuna, as on a command line."""
        return trial.suggest_categorical(key, self.texts)

    def ends(self) -> list[str]:
        """The values to check: all."""
        return list(self.texts)

    def __str__(self) -> str:
        return f"one of {', '.join(self.texts)}"


Dimension = Interval | Choices

Space = Mapping[str, Dimension]
"""What is searched, by configuration keys."""


def space_of(path: Path, search: Any) -> Space:
    """The content of `search`.

    Args:
        path: of the file, for messages.
        search: lists of values and ranges, by keys.

    Raises:
        UserError: it is empty, a key is unknown, or what stands beside it is neither a range of
            numbers nor a list of two values or more.
    """
    if not isinstance(search, dict) or not search:
        expected = "keys with ranges or lists, as {SOLVER.LR: {low: 0.01, high: 0.1, log: true}}"
        raise wrong(path, _SEARCH, expected, search)
    found: dict[str, Dimension] = {}
    for key, value in _leaves(search):
        if key in found:
            raise UserError(f"{path}: {_SEARCH}: {key} is written twice; remove one of them")
        found[key] = _dimension(path, key, value)
    return found


def _leaves(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Ranges and lists by full keys: `SOLVER: {LR: ...}` stands for `SOLVER.LR: ...`."""
    for key, value in group.items():
        is_group = isinstance(value, dict) and not any(word in value for word in _WORDS)
        if is_group and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _dimension(path: Path, key: str, value: Any) -> Dimension:
    keys = table()
    where = f"{_SEARCH}: {key}"
    if key not in keys:
        group, dot, last = key.rpartition(".")
        raise UserError(unknown_key(last, f"{group}{dot}", keys, f"{path}: {_SEARCH}"))

    default = keys[key].default
    if isinstance(value, dict):
        return _interval(path, where, value, default)
    if not isinstance(value, list) or len(value) < 2:
        expected = "a list of two values or more, or a range as {low: 0.1, high: 10, log: true}"
        raise wrong(path, where, expected, value)

    texts = tuple(text_of(path, where, item) for item in value)
    if len(set(texts)) < len(texts):
        raise wrong(path, where, "a list of different values", value)
    return Choices(texts)


def _interval(path: Path, where: str, value: Mapping[str, Any], default: Any) -> Interval:
    """A range for a key with this default."""
    for word in value:
        if word not in _WORDS:
            raise UserError(f"{path}: {where}: {unknown('word', word, _WORDS)}")
    if type(default) not in (int, float):
        raise UserError(
            f"{path}: {where} is not a number; give a list of values instead of a range"
        )

    # The ends.
    is_whole = type(default) is int
    low = _number(path, f"{where}: low", value.get("low"), is_whole)
    high = _number(path, f"{where}: high", value.get("high"), is_whole)
    if low >= high:
        raise UserError(f"{path}: {where}: low is {low:g}, but must be below high, {high:g}")

    # What lies between them.
    log = plain(value.get("log", _NO))
    if type(log) is not bool:
        raise wrong(path, f"{where}: log", "true or false", value["log"])
    if log and low <= 0:
        raise UserError(f"{path}: {where}: low is {low:g}, but must be above 0 where log is true")
    step = _step(path, where, value, is_whole)
    if step and not _is_near_whole((high - low) / step):
        expected = f"a whole part of the range from {low:g} to {high:g}, whose ends are included"
        raise wrong(path, f"{where}: step", expected, value["step"])
    return Interval(low, high, log, step, is_whole)


def _step(path: Path, where: str, value: Mapping[str, Any], is_whole: bool) -> float | None:
    if "step" not in value:
        return None
    step = _number(path, f"{where}: step", value["step"], is_whole)
    if step <= 0 or plain(value.get("log")):
        raise wrong(path, f"{where}: step", "above 0, and without log", value["step"])
    return step


def _number(path: Path, where: str, value: Any, is_whole: bool) -> float:
    number = plain(value)
    types = (int,) if is_whole else (int, float)
    if type(number) not in types or not math.isfinite(number):
        raise wrong(path, where, "a whole number" if is_whole else "a number", value)
    return number if is_whole else float(number)


def _is_near_whole(number: float) -> bool:
    """Whether a number is whole, up to rounding."""
    return math.isclose(number, round(number), abs_tol=1e-9)


def _number_text(number: float) -> str:
    """A number as a person writes it: 4 instead of 4.0."""
    return repr(number).removesuffix(".0")
