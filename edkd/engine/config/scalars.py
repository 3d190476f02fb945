"""Single values of YAML: what was written, and what it means."""

import re
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_BASES = {"0b": 2, "0o": 8, "0x": 16}
_MAX_DIGITS = 250
"""Numbers of this length fit a float in each base."""


class Scalar(NamedTuple):
    """A single value."""

    text: str
    """As written, without quotes."""
    value: Any
    """What it means in YAML: a str, int, float, bool or None."""

    def __repr__(self) -> str:
        return repr(self.value)


class Kind(NamedTuple):
    """A type of single values: which texts are of it without quotes, and what they mean."""

    pattern: re.Pattern[str]
    read: Callable[[str], Any]


def plain(value: Any) -> Any:
    """What parsed content means: nested dictionaries and lists of Python's values."""
    return _plain(value, {})


def shown(value: Any) -> str:
    """A value for a message, shortened: a few lines of YAML can stand for a billion values."""
    short = reprlib.Repr()
    short.maxlevel = 2
    short.maxlist = 20
    short.maxstring = 200
    short.maxother = 200
    return short.repr(plain(value))[:400]


def as_list(value: str | Sequence[str]) -> list[str]:
    """The texts of a key that takes one or several."""
    return [value] if isinstance(value, str) else list(value)


def _plain(value: Any, done: dict[int, Any]) -> Any:
    if isinstance(value, Scalar):
        return value.value
    if id(value) in done:  # an anchor; the copy shares it, too
        return done[id(value)]

    result = value
    if isinstance(value, dict):
        result = {key: _plain(item, done) for key, item in value.items()}
    elif isinstance(value, list):
        result = [_plain(item, done) for item in value]
    done[id(value)] = result
    return result


def _boolean(text: str) -> bool:
    return text.lower() in ("yes", "true", "on")


def _integer(text: str) -> int | str:
    """The number; its text if it is too large to compute with, which no numeric key accepts."""
    digits = text.replace("_", "")
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-")

    base = _BASES.get(digits[:2], 10)
    if base != 10:
        digits = digits[2:]
    digits = digits.lstrip("0") or "0"
    return text if len(digits) > _MAX_DIGITS else sign * int(digits, base)


def _float(text: str) -> float:
    number = text.replace("_", "")
    if number.lower().endswith(("inf", "nan")):
        number = number.replace(".", "")
    return float(number)


def _nothing(text: str) -> None:
    return None


def _digits(digit: str) -> str:
    """The pattern of some digits, perhaps in groups, as 1_000."""
    return f"{digit}+(_{digit}+)*"


_DECIMAL = _digits(r"\d")
_INTEGERS = (
    rf"[-+]?(0b{_digits('[01]')}|0o{_digits('[0-7]')}|0x{_digits('[0-9a-fA-F]')}|{_DECIMAL})"
)
_FLOATS = (
    rf"[-+]?(({_DECIMAL}\.?({_DECIMAL})?|\.{_DECIMAL})([eE][-+]?\d+)?|\.inf|\.Inf|\.INF)"
    r"|\.nan|\.NaN|\.NAN"
)
_WORDS = ("yes", "no", "true", "false", "on", "off")
_BOOLEANS = "|".join(f"{w}|{w.title()}|{w.upper()}" for w in _WORDS)

KINDS = {
    "null": Kind(re.compile(r"~|null|Null|NULL|"), _nothing),
    "bool": Kind(re.compile(_BOOLEANS), _boolean),
    "int": Kind(re.compile(_INTEGERS, re.ASCII), _integer),
    "float": Kind(re.compile(_FLOATS, re.ASCII), _float),
    "timestamp": Kind(re.compile(r"(?!)"), str),  # only by its tag
    "str": Kind(re.compile(r"(?s:.*)"), str),
}
"""By the names of their YAML tags, in the order in which they are tried."""
