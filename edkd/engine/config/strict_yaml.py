"""Strict YAML: each mistake is one line, and no value is silently read as something else.

Differences to PyYAML's safe loader:

- A scalar keeps its text beside its value, so that text keys keep what was written: no, 007, 1.10,
  12:30 and dates stay text there.
- 010 is ten, and 1:30 is text. Octal numbers are written 0o10. 1e-4 is a number.
- A key that is written twice is refused.
- `_BASE_: other.yaml` at the top of a file names a file, relative to this one, that it changes.
"""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from edkd.engine.config.scalars import KINDS, Scalar, plain, shown
from edkd.errors import UserError
from edkd.hints import closest
from edkd.paths import expanded, shipped

BASE = "_BASE_"

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_Content = dict[str, Any]
_UNQUOTED = re.compile(r"are not allowed here|character '[^\\].* cannot start any token")
_INVALID = (yaml.YAMLError, ValueError, RecursionError)


class Source(NamedTuple):
    """A file that was read."""

    name: str
    """Its path, for messages."""
    content: dict[str, Any]
    """Nested dictionaries and lists of `Scalar`s."""


class NotYaml(ValueError):
    """A text is not valid YAML; the message is one line."""


class _Loader(yaml.SafeLoader):
    """Finds the kinds of scalars without quotes; `_Builder` makes the values."""

    yaml_implicit_resolvers: dict[str, Any] = {}


_Loader.add_implicit_resolver(_MERGE, re.compile("^<<$"), ["<"])
for _name, _kind in KINDS.items():
    _whole = re.compile(rf"(?:{_kind.pattern.pattern})\Z", _kind.pattern.flags)
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", _whole, None)


def parse(text: str) -> Any:
    """The content of a YAML text: nested dictionaries and lists of `Scalar`s; None for no content.

    Raises:
        NotYaml: it is not valid.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
        return None if root is None else _Builder().build(root)
    except _INVALID as error:
        line = " ".join(str(error).split())
        raise NotYaml(f"{line}{_advice(line)}") from None


def _advice(message: str) -> str:
    """How to write what PyYAML cannot read, or ""."""
    if _UNQUOTED.search(message):
        return "; put text with such characters in quotes"
    if "unknown escape character" in message:
        return "; a backslash needs single quotes, as 'C:\\data'"
    return ""


def read_chain(file: str) -> list[Source]:
    """A YAML file and the files it is based on, the innermost base first.

    configs/... is found from every folder, see `shipped`.

    Raises:
        UserError: a file is absent or not valid, or the chain returns to one of its files.
    """
    chain: list[Source] = []
    seen: list[Path] = []
    path = shipped(Path(expanded(file, "--cfg")))
    where = f"--cfg {path}"

    while True:
        _check_cycle(path, seen, where)
        content = read_file(path, where)
        base = content.pop(BASE, None)
        chain.insert(0, Source(str(path), content))
        if base is None:
            return chain

        name = _base_name(base, path)
        where = f"{path}: {BASE} {name}"
        path = path.parent / expanded(name, where)


def read_file(path: Path, where: str) -> dict[str, Any]:
    """The content of one YAML file: nested dictionaries and lists of `Scalar`s.

    Args:
        path: of the file.
        where: how messages name it.

    Raises:
        UserError: it is absent, empty, not valid, or has no keys.
    """
    if path.suffix not in (".yaml", ".yml"):
        inside = path / "config.yaml"
        advice = f"; give {inside}" if os.path.isfile(inside) else ""
        raise UserError(f"{where}: a configuration is a .yaml file{advice}")

    try:
        content = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{where}: no such file{_nearest_file(path)}") from None
    except NotYaml as error:
        raise UserError(f"{where}: not valid YAML: {error}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: cannot be read: {error}") from None

    if plain(content) is None:
        raise UserError(f"{where}: the file is empty; write keys into it, as SOLVER: {{LR: 0.1}}")
    if not isinstance(content, dict):
        raise UserError(f"{where}: contains {shown(content)} instead of KEY: VALUE lines")
    return content


def _base_name(base: Any, path: Path) -> str:
    if isinstance(base, Scalar) and base.text and "\0" not in base.text:
        return base.text
    raise UserError(f"{path}: {BASE} must be the name of one YAML file, not {shown(base)}")


def _check_cycle(path: Path, seen: list[Path], where: str) -> None:
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError, ValueError):  # a link to itself
        resolved = path
    if resolved in seen:
        raise UserError(f"{where}: the file is based on itself; remove one {BASE} of the chain")
    seen.append(resolved)


def _nearest_file(path: Path) -> str:
    siblings = path.parent.glob("*.y*ml") if path.parent.is_dir() else []
    name = closest(path.name, sorted(sibling.name for sibling in siblings))
    return f", did you mean '{path.with_name(name)}'?" if name else ""


class _Builder:
    """Makes the values of composed nodes; a node that several aliases name is made once."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}
        self._open: set[int] = set()

    def build(self, node: yaml.Node) -> Any:
        """The value of a node and of all nodes inside."""
        number = id(node)
        if number in self._open:
            raise _problem("an anchor contains itself", node)

        if number not in self._made:
            self._open.add(number)
            self._made[number] = self._build(node)
            self._open.remove(number)
        return self._made[number]

    def _build(self, node: yaml.Node) -> Any:
        tag = f"{_TAG}str" if node.tag == _MERGE else node.tag  # << as a value
        kind = tag.removeprefix(_TAG)
        if isinstance(node, yaml.ScalarNode) and kind in KINDS:
            return _scalar(node, kind)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.build(item) for item in node.value]
        raise _problem(f"the tag {node.tag} is not allowed", node)

    def _mapping(self, node: yaml.MappingNode) -> _Content:
        """Own keys override those of a merge, `<<: *anchor` or `<<: [*first, *second]`."""
        own: _Content = {}
        merged: _Content = {}
        seen: set[str] = set()

        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _problem("a key is not a single word", key)
            if key.tag == _MERGE:
                merged |= self._further(merged, value)
                continue

            if key.value in seen:
                raise _problem(f"the key {key.value} is written twice", key)
            seen.add(key.value)
            own[key.value] = self.build(value)
        return merged | own

    def _further(self, merged: _Content, node: yaml.Node) -> _Content:
        """The keys of one more merge, which must not contradict those before it."""
        found = self._merge(node)
        for name in merged.keys() & found.keys():
            if merged[name] != found[name]:
                raise _problem(
                    f"the key {name} comes from two merges with different values; write "
                    "<<: [*first, *second], where the first one wins",
                    node,
                )
        return found

    def _merge(self, node: yaml.Node) -> _Content:
        built = self.build(node)
        sources = built if isinstance(built, list) else [built]
        merged: _Content = {}

        for source in reversed(sources):  # of equal keys the first one wins
            if not isinstance(source, dict):
                raise _problem("<< needs a group of keys, as <<: *anchor", node)
            merged |= source
        return merged


def _scalar(node: yaml.ScalarNode, name: str) -> Scalar:
    kind = KINDS[name]
    if name != "timestamp" and not kind.pattern.fullmatch(node.value):
        raise _problem(f"{node.value[:100]!r} is not a value of type {name}", node)
    return Scalar(node.value, kind.read(node.value))


def _problem(text: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark)
