"""Plugins: Python files that register methods, models, data sets and update rules."""

import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from edkd.errors import UserError, warn

RELATIVE_TO = "edkd.distillers"
"""Package of a plugin file: `from ._base import Distiller`, as published methods have it, works."""

_ATTRIBUTE = "__plugins__"

_imported: dict[str, None] = {}
"""Files by absolute path, in the order of the first import."""


def import_plugins(plugins: Sequence[str]) -> None:
    """Import plugins in order; one that is named twice is run once."""
    files = {os.path.realpath(os.path.expanduser(plugin)): plugin for plugin in reversed(plugins)}
    wanted = set(files.values())
    for plugin in dict.fromkeys(plugins):
        if plugin in wanted:
            import_plugin(plugin)


def import_plugin(plugin: str) -> ModuleType:
    """Run a Python file, or the `__init__.py` of a folder, so that it registers what it defines.

    Files of one name in different folders are different modules. A plugin may import modules beside
    it, also later, in a function. A file that is imported again is run again.

    Raises:
        UserError: there is no such file, or it raises an exception; the message has its line.
    """
    path = _file_of(plugin)
    is_package = path.name == "__init__.py"
    name = _package_name(path.parent) if is_package else _module_name(path)
    folders = [str(path.parent)] if is_package else None

    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    assert spec is not None
    assert spec.loader is not None
    for child in _with_children([name]):
        del sys.modules[child]
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module

    try:
        with _neighbours_importable(path):
            spec.loader.exec_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # any that a user's code can raise
        sys.modules.pop(name, None)
        where = _line_of(error, path)
        kind = type(error).__name__
        raise UserError(f"--plugin {plugin}: {where}{kind}: {error}{_advice(error)}") from error

    _imported[str(path.resolve())] = None
    _warn_of_unregistered(plugin, module)
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


def _file_of(plugin: str) -> Path:
    """The file of a plugin that is a file or a folder."""
    path = Path(os.path.abspath(os.path.expanduser(plugin)))
    if os.path.isfile(path / "__init__.py"):
        return path / "__init__.py"
    if path.suffix != ".py" or not os.path.isfile(path):
        raise UserError(
            f"--plugin {plugin}: no such Python file, and no folder with an __init__.py"
        )
    return path


def _module_name(path: Path) -> str:
    """The same for each import of one file, another for each file."""
    stem = path.stem.replace(".", "_")
    return f"{RELATIVE_TO}._plugin_{stem}_{_digest(path)}"


def _package_name(folder: Path) -> str:
    """The folder's own name, so that its modules can import one another by it, where it is free."""
    name = folder.name
    if name.isidentifier() and _module_of(name) in ("", str(folder / "__init__.py")):
        return name
    return f"edkd_plugin_{name.replace('.', '_')}_{_digest(folder)}"


def _module_of(name: str) -> str:
    """The file of the module that has a name, imported or not; "" where the name is free."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None) or "built-in"
    spec = importlib.util.find_spec(name)
    return "" if spec is None or spec.origin is None else spec.origin


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]


# Modules beside a plugin.


class _Neighbours(MetaPathFinder):
    """Finds modules beside a plugin, for imports by the plugin and by these modules alone.

    So a file beside a plugin, as `queue.py` or `utils.py`, cannot take the place of a module that
    other code imports. The standard library always comes first.
    """

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}  # of the neighbours, by the file that may import them
        self.packages: dict[str, Path] = {}  # the same, by the folder of a package

    def add(self, file: str, folder: Path) -> None:
        """Let a file, or all files of a package, import the modules in a folder."""
        self.folders[file] = folder
        if os.path.basename(file) == "__init__.py":
            self.packages[os.path.dirname(file) + os.sep] = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if path is not None or name in sys.stdlib_module_names:
            return None
        folder = self._folder_of_importer()
        if folder is None:
            return None

        spec = PathFinder.find_spec(name, [str(folder)])
        if spec is None or spec.origin is None or spec.loader is None:
            return None
        self.add(spec.origin, folder)
        return spec

    def _folder_of_importer(self) -> Path | None:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            module = frame.f_globals.get("__name__", "")
            if module.partition(".")[0] not in ("importlib", "_frozen_importlib"):
                return self._folder_of(str(frame.f_globals.get("__file__", "")))
            frame = frame.f_back
        return None

    def _folder_of(self, file: str) -> Path | None:
        if file in self.folders:
            return self.folders[file]
        inside = [folder for package, folder in self.packages.items() if file.startswith(package)]
        return inside[-1] if inside else None


_NEIGHBOURS = _Neighbours()


@contextmanager
def _neighbours_importable(file: Path) -> Iterator[None]:
    """Let a plugin import the modules beside it, as a script can.

    Modules of the same names that are already imported, as those beside another plugin, are hidden
    meanwhile.
    """
    folder = file.parent
    _NEIGHBOURS.add(str(file), folder)
    if _NEIGHBOURS not in sys.meta_path:
        sys.meta_path.insert(0, _NEIGHBOURS)

    hidden = {name: sys.modules[name] for name in _namesakes(folder)}
    for name in hidden:
        del sys.modules[name]
    try:
        yield
    finally:
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


# Messages.


def _line_of(error: BaseException, path: Path) -> str:
    """ "line 3: ", the plugin's line at which an exception was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f"line {lines[-1]}: " if lines else ""


def _advice(error: BaseException) -> str:
    """How to import a file beside the plugin, after a relative import that found none."""
    absent = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
    beside = absent.removeprefix(f"{RELATIVE_TO}.")
    if beside == absent:
        return ""
    return f"; write 'import {beside}' for a file beside the plugin, without the dot"


def _warn_of_unregistered(plugin: str, module: ModuleType) -> None:
    """Warn of a method that no configuration can name."""
    from edkd.distillers import Distiller
    from edkd.registry import METHODS

    registered = [entry.value for entry in METHODS.entries()]
    for name, value in vars(module).items():
        is_own = isinstance(value, type) and value.__module__ == module.__name__
        if not is_own or not issubclass(value, Distiller):
            continue
        if not any(issubclass(other, value) for other in registered):
            warn(
                f'--plugin {plugin}: the method {name} is not registered; write @register("{name}")'
                " above the class, with register from edkd.distillers"
            )
