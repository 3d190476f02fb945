"""Plugins: Python files that register methods, models, data sets and update rules."""

import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from edkd.errors import UserError

_ATTRIBUTE = "__plugins__"

_imported: dict[str, None] = {}
"""Files by absolute path, in the order of the first import."""


def import_plugin(plugin: str) -> ModuleType:
    """Run a Python file, so that it registers what it defines.

    Files of one name in different folders are different modules. A file may import modules beside
    it. A file that is imported again is run again.

    Raises:
        UserError: there is no such file, or it raises an exception; the message has its line.
    """
    path = Path(plugin)
    if path.suffix != ".py" or not os.path.isfile(path):
        raise UserError(f"--plugin {plugin}: no such Python file")

    spec = importlib.util.spec_from_file_location(_module_name(path), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module

    try:
        with _neighbours_importable(path.resolve().parent):
            spec.loader.exec_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # any that a user's code can raise
        where = _line_of(error, path)
        kind = type(error).__name__
        raise UserError(f"--plugin {plugin}: {where}{kind}: {error}") from error

    _imported[str(path.resolve())] = None
    return module


def remember_plugins(cfg: Any, plugins: Sequence[str]) -> None:
    """Note the plugins of a configuration, outside its keys."""
    cfg.__dict__[_ATTRIBUTE] = [str(Path(plugin).expanduser().resolve()) for plugin in plugins]


def plugins_of(cfg: Any) -> list[str]:
    """Absolute paths of the plugins that a configuration needs.

    Those that it was loaded with; where there are none, all that this process has imported.
    """
    files = cfg.__dict__.get(_ATTRIBUTE) or _imported
    return [file for file in files if os.path.exists(file)]


def _module_name(path: Path) -> str:
    """The same for each import of one file, another for each file."""
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return f"edkd_plugin_{path.stem}_{digest[:12]}"


@contextmanager
def _neighbours_importable(folder: Path) -> Iterator[None]:
    """Let a plugin import the modules beside it, as a script can.

    Modules of the same names that are already imported, as those beside another plugin, are hidden
    meanwhile.
    """
    hidden = {name: sys.modules[name] for name in _namesakes(folder)}
    for name in hidden:
        del sys.modules[name]

    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # the plugin has replaced the path
            sys.path.remove(str(folder))
        for name in _with_children(hidden):
            del sys.modules[name]
        sys.modules.update(hidden)


def _namesakes(folder: Path) -> list[str]:
    """Imported modules from elsewhere that hide a module of the folder."""
    beside = {file.stem: file for file in folder.glob("*.py")}
    beside |= {file.parent.name: file for file in folder.glob("*/__init__.py")}

    names = []
    for name, file in beside.items():
        is_elsewhere = getattr(sys.modules.get(name), "__file__", None) not in (None, str(file))
        if is_elsewhere and name not in sys.stdlib_module_names:
            names.append(name)
    return _with_children(names)


def _with_children(names: Iterable[str]) -> list[str]:
    """The imported modules of these names, and their submodules."""
    roots = tuple(names)
    prefixes = tuple(f"{name}." for name in roots)
    return [name for name in sys.modules if name in roots or name.startswith(prefixes)]


def _line_of(error: BaseException, path: Path) -> str:
    """ "line 3: ", the plugin's line at which an exception was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f"line {lines[-1]}: " if lines else ""
