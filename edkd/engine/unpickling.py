"""What a checkpoint may hold beside tensors and plain values, without any code of its own running.

torch.load with weights_only=True looks up each class and function of a file in a list. This module
extends the list by what training scripts often save. A name is mapped to a class or function of
this module where the original does more than hold a value.
"""

import argparse
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import torch

_FORMATS = {
    "b1": "?",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "f2": "e",
    "f4": "f",
    "f8": "d",
}
"""NumPy's names of types, as formats of the module struct."""


class Skipped:
    """In the place of an object that is of no use here, as an array or a date."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Settings:
    """In the place of a dictionary with attributes, as a configuration; a plain one is made."""

    def __new__(cls, *args: Any) -> Any:
        """A dictionary of the one subclass that torch.load fills with items and attributes."""
        return OrderedDict()


class NumberType:
    """In the place of numpy.dtype."""

    def __init__(self, name: Any, *args: Any) -> None:
        self.name = str(name)
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = ">"


def number(kind: Any, content: Any = b"") -> Any:
    """In the place of NumPy's constructor of scalars: a Python number."""
    if not isinstance(kind, NumberType) or not isinstance(content, bytes):
        return Skipped()

    form = _FORMATS.get(kind.name, "")
    if not form or struct.calcsize(f"={form}") != len(content):
        return Skipped()
    [value] = struct.unpack(f"{kind.order}{form}", content)
    return value


def array(*args: Any) -> Skipped:
    """In the place of NumPy's constructor of arrays."""
    return Skipped()


def dictionary(*args: Any) -> dict[Any, Any]:
    """In the place of collections.defaultdict."""
    return {}


def sequence(*args: Any) -> list[Any]:
    """In the place of collections.deque."""
    return []


_ALLOWED: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": Skipped,
    "collections.defaultdict": dictionary,
    "collections.deque": sequence,
    "datetime.date": Skipped,
    "datetime.datetime": Skipped,
    "datetime.timedelta": Skipped,
    "numpy.dtype": NumberType,
    "numpy.ndarray": Skipped,
    "yacs.config.CfgNode": Settings,
    "easydict.EasyDict": Settings,
    "pytorch_lightning.utilities.parsing.AttributeDict": Settings,
    "lightning.pytorch.utilities.parsing.AttributeDict": Settings,
    "lightning_fabric.utilities.data.AttributeDict": Settings,
    "lightning.fabric.utilities.data.AttributeDict": Settings,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[f"{_module}.scalar"] = number
    _ALLOWED[f"{_module}._reconstruct"] = array
for _module in ("pathlib", "pathlib._local"):
    for _name in ("PosixPath", "PurePosixPath", "Path", "PurePath"):
        _ALLOWED[f"{_module}.{_name}"] = PurePosixPath
    for _name in ("WindowsPath", "PureWindowsPath"):
        _ALLOWED[f"{_module}.{_name}"] = PureWindowsPath
for _type in (bool, dict, float, frozenset, int, list, str, tuple):
    for _module in ("builtins", "__builtin__"):
        _ALLOWED[f"{_module}.{_type.__name__}"] = _type


def harmless_globals() -> AbstractContextManager[Any]:
    """Within it, torch.load with weights_only=True accepts the names of this module."""
    pairs: list[Callable[..., Any] | tuple[Any, str]] = [
        (value, name) for name, value in _ALLOWED.items()
    ]
    return torch.serialization.safe_globals(pairs)


def refused_global(error: Exception) -> str:
    """The name that torch.load did not allow, as "__main__.Net"; "" for another error."""
    match = re.search(r"GLOBAL ([\w.<>]+)", str(error))
    return match.group(1) if match else ""
