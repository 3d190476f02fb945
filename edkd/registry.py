"""The registries: what a configuration can name, each entry in a file of its own or in a plugin."""

import importlib
import inspect
import multiprocessing
import pkgutil
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any, NamedTuple, TypeVar

from edkd.errors import UserError, warn
from edkd.hints import unknown
from edkd.known_elsewhere import method_note

T = TypeVar("T", bound=Callable[..., Any])


class Entry(NamedTuple):
    """A registered class or function."""

    name: str
    value: Any
    defaults: dict[str, Any]
    """Its own configuration keys, see `edkd.keys`."""
    info: dict[str, Any]
    """Further facts given to `register`, as `family="cifar"`."""
    place: str
    """The file that defines it, for messages."""


class Registry:
    """Classes or functions by name.

    Args:
        kind: what is registered, for messages: "method".
        node: the configuration node that holds the entries' own nodes; "" for the top level.
        scope: name of the fact by which equal names are told apart, as "family"; "" for none.
        upper: whether the nodes of the entries are written in upper case.
        note: what a message adds about an unknown name, as "; X is known from ...", or "".
    """

    def __init__(
        self,
        kind: str,
        node: str = "",
        scope: str = "",
        upper: bool = True,
        note: Callable[[str], str] = lambda name: "",
    ) -> None:
        self.kind = kind
        self.node = node
        self.scope = scope
        self.upper = upper
        self.note = note
        self.check: Callable[[str, Any], None] = lambda name, value: None
        self.unavailable: dict[str, str] = {}  # reason by the name of a file, see import_files
        self._entries: dict[tuple[str, str], Entry] = {}

    def register(
        self, name: str, defaults: dict[str, Any] | None = None, **info: Any
    ) -> Callable[[T], T]:
        """Decorator: enter a class or function under a name.

        Args:
            name: how a configuration names it.
            defaults: its own keys; without them, the attribute `defaults` of a class.
            info: further facts, kept with the entry.

        Raises:
            UserError: another class or function holds that name, or the value breaks the contract.
        """

        def enter(value: T) -> T:
            self.add(name, value, defaults, **info)
            return value

        return enter

    def add(
        self, name: str, value: Any, defaults: dict[str, Any] | None = None, **info: Any
    ) -> None:
        """Enter a class or function; see `register`."""
        self.check(name, value)
        key = (info.get(self.scope, ""), name)
        held = self._entries.get(key)

        if held is not None and not _is_same(held.value, value):
            raise UserError(
                f"{self.kind} {name!r} of {place(value)} is already registered by {held.place}; "
                "rename one of them"
            )

        own = getattr(value, "defaults", {}) if defaults is None else defaults
        self._entries[key] = Entry(name, value, own, info, place(value))

    def remove(self, name: str, scope: str = "") -> None:
        """Take an entry out again; KeyError where there is none."""
        del self._entries[scope, name]

    def names(self, scope: str = "") -> list[str]:
        """The registered names, in the order of registration."""
        return [name for within, name in self._entries if within == scope]

    def scopes(self) -> list[str]:
        """The scopes that have entries."""
        return list(dict.fromkeys(scope for scope, _ in self._entries))

    def find(self, name: str, scope: str = "") -> Entry:
        """The entry of a name; upper and lower case are not told apart where one name fits.

        Raises:
            UserError: the name is unknown; the message has the nearest known one.
        """
        entry = self._entries.get((scope, name))
        if entry is not None:
            return entry

        known = self.names(scope)
        alike = [other for other in known if other.lower() == name.lower()]
        if len(alike) == 1:
            return self._entries[scope, alike[0]]

        what = f"{scope} {self.kind}" if scope else self.kind
        for file, reason in self.unavailable.items():
            if file.lower() == name.lower():
                raise UserError(f"{what} {name!r} is unavailable: {reason}")
        raise UserError(unknown(what, name, known, self.note(name)))

    def entries(self) -> Iterator[Entry]:
        """All entries, in the order of registration."""
        yield from self._entries.values()

    def node_of(self, entry: Entry) -> str:
        """The configuration node of an entry's own keys: "KD", "SOLVER.DOT"."""
        name = entry.name.upper() if self.upper else entry.name
        return f"{self.node}.{name}" if self.node else name

    def __contains__(self, name: object) -> bool:
        return any(name == known for _, known in self._entries)

    def __getitem__(self, name: str) -> Any:
        return self.find(name).value


class PublishedDict(MutableMapping[str, Any]):
    """A registry under the interface of a published dictionary, as `distiller_dict`.

    Args:
        registry: what is read and written.
        scope: only its entries.
        read: an entry -> the value of the dictionary.
        write: a value of the dictionary -> (class or function, further facts).
    """

    def __init__(
        self,
        registry: Registry,
        scope: str = "",
        read: Callable[[Entry], Any] = lambda entry: entry.value,
        write: Callable[[Any], tuple[Any, dict[str, Any]]] = lambda value: (value, {}),
    ) -> None:
        self.registry = registry
        self.scope = scope
        self.read = read
        self.write = write

    def __getitem__(self, name: str) -> Any:
        if name not in self.registry.names(self.scope):
            raise KeyError(name)
        return self.read(self.registry.find(name, self.scope))

    def __setitem__(self, name: str, value: Any) -> None:
        built, info = self.write(value)
        if self.registry.scope:
            info = info | {self.registry.scope: self.scope}
        self.registry.add(name, built, **info)

    def __delitem__(self, name: str) -> None:
        self.registry.remove(name, self.scope)

    def __iter__(self) -> Iterator[str]:
        return iter(self.registry.names(self.scope))

    def __len__(self) -> int:
        return len(self.registry.names(self.scope))


def import_files(package: str, folders: Iterable[str], registry: Registry) -> None:
    """Import all files of a package, so that they register what they define.

    A file that cannot be imported costs only what it defines: a warning gives the reason, and so
    does an error where a configuration names it.

    Args:
        package: name of the package; files whose names begin with "_" are left out.
        folders: its `__path__`.
        registry: where the files register.
    """
    for module in pkgutil.iter_modules(folders):
        if module.name.startswith("_"):
            continue
        try:
            importlib.import_module(f"{package}.{module.name}")
        except (Exception, SystemExit) as error:  # any that a user's code can raise
            reason = f"{package.replace('.', '/')}/{module.name}.py: {_described(error)}"
            registry.unavailable[module.name] = reason
            if multiprocessing.parent_process() is None:  # a data worker would repeat it
                warn(f"{registry.kind} unavailable: {reason}")


def _described(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def place(value: Any) -> str:
    """The file that defines a class or function, for messages."""
    try:
        file = inspect.getsourcefile(value)
    except (TypeError, OSError):  # a cell of a notebook, a partial, a class without a file
        file = None
    return file or getattr(value, "__module__", None) or "this session"


def _is_same(held: Any, value: Any) -> bool:
    """Whether a value is the held one, or its definition run again, as by a reload."""
    if held is value:
        return True
    names = [getattr(each, "__qualname__", None) for each in (held, value)]
    modules = [getattr(each, "__module__", None) for each in (held, value)]
    return names[0] is not None and names[0] == names[1] and modules[0] == modules[1]


METHODS = Registry("method", upper=False, note=method_note)
MODELS = Registry("model", node="MODEL", scope="family", upper=False)
DATASETS = Registry("data set", node="DATASET")
UPDATES = Registry("update rule", node="SOLVER")
