"""Loading a configuration: defaults, a YAML file and the command line, typed and checked."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from yacs.config import CfgNode

from edkd.engine.config.check import Networks, canonical, check, typed
from edkd.engine.config.plugins import import_plugin, import_plugins
from edkd.engine.config.scalars import Scalar
from edkd.engine.config.strict_yaml import NotYaml, parse, read_chain
from edkd.engine.config.table import Keys, as_node, defaults, group_names, table
from edkd.errors import UserError
from edkd.hints import closest
from edkd.keys import Key

__all__ = ["import_plugin", "load_config", "pairs"]

COMMAND_LINE = "command line"


class _Option(NamedTuple):
    """A value of the command line; how it is read depends on the type of its key."""

    text: str


def load_config(
    file: str = "",
    opts: Sequence[str] = (),
    plugins: Sequence[str] = (),
    networks: Networks | None = None,
) -> CfgNode:
    """Merge defaults, a YAML file and the pairs of the command line, in this order, and check.

    Args:
        file: a YAML file, or "" for none. It may be based on another one, `_BASE_: other.yaml`.
        opts: `KEY VALUE` or `KEY=VALUE`; values are written as in YAML.
        plugins: Python files, or folders with an `__init__.py`, that register methods, models, data
            sets or update rules.
        networks: names of the caller's own modules, {"student": [...], "teacher": [...]}; the
            models and the data set that the configuration names are then not checked.

    Returns:
        A frozen configuration.

    Raises:
        UserError: an unknown key, a value of a wrong type or out of its range; the message names
            the key and the file.
    """
    given = pairs(opts)
    import_plugins(plugins)
    keys = table()

    # Merge.
    values = defaults(keys)
    if file:
        for source, content in read_chain(file):
            values.update(_leaves(content, keys, source))
    for name, text in given:
        values.update(_leaves(_nested(name, _Option(text)), keys, COMMAND_LINE))

    # Check.
    values = canonical(values)
    cfg = as_node(values)
    check(cfg, values, keys, [name for name, _ in given], networks)
    cfg.freeze()
    return cfg


def pairs(opts: Sequence[str]) -> list[tuple[str, str]]:
    """The keys and values of a command line, which are written `KEY VALUE` or `KEY=VALUE`.

    Raises:
        UserError: a key has no value, or a YAML file stands in the place of a key.
    """
    found: list[tuple[str, str]] = []
    words = list(opts)
    while words:
        word = words.pop(0)
        key, sign, value = word.partition("=")

        if not sign and word.endswith((".yaml", ".yml")):
            raise UserError(f"{word} is not a key; for a YAML file write --cfg {word}")
        if not sign and not words:
            raise UserError(f"the key {word!r} has no value; write KEY VALUE or KEY=VALUE")
        found.append((key, value if sign else words.pop(0)))
    return found


def _nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def _leaves(
    content: Mapping[str, Any], keys: Keys, source: str, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """The values of nested content by full names, each in the type of its key."""
    groups = group_names(keys)
    for part, value in content.items():
        name = f"{prefix}{part}"

        if name in keys:
            key = keys[name]
            parsed = _parsed(name, value, key) if isinstance(value, _Option) else value
            yield name, typed(name, parsed, key, source)
        elif name not in groups:
            raise UserError(_unknown_key(part, prefix, keys, source))
        elif isinstance(value, dict):
            yield from _leaves(value, keys, source, f"{name}.")
        elif not _is_empty(value):
            members = ", ".join(_members(keys, f"{name}."))
            raise UserError(f"{name} ({source}): is a group of keys ({members}), not a value")


def _is_empty(value: Any) -> bool:
    """Whether a group in a file has no content."""
    return isinstance(value, Scalar) and value.value is None


def _parsed(name: str, option: _Option, key: Key) -> Any:
    """A value of the command line as a YAML file would have it."""
    text = option.text
    is_list = text[:1] + text[-1:] in ("[]", "()")
    is_text = isinstance(key.default, str)
    takes_list = key.text_or_list or not is_text

    if is_text and not (is_list and takes_list):
        text = _without_quotes(text)
        return Scalar(text, text)
    if is_list:  # a Python tuple, too
        text = f"[{text[1:-1]}]"

    try:
        parsed = parse(text)
    except NotYaml:
        shortened = text[:200]
        raise UserError(f"{name} ({COMMAND_LINE}): cannot read the value {shortened!r}") from None
    return Scalar("", None) if parsed is None else parsed


def _without_quotes(text: str) -> str:
    """Text without the quotes that a shell has passed on."""
    for quote in ("'", '"'):
        if len(text) > 1 and text.startswith(quote) and text.endswith(quote):
            return text[1:-1]
    return text


def _unknown_key(part: str, prefix: str, keys: Keys, source: str) -> str:
    """The message for a key that is not in the table."""
    message = f"unknown key {prefix}{part} ({source})"
    members = _members(keys, prefix)

    # A typing error in the last part?
    near = closest(part, members)
    if near:
        return f"{message}, did you mean '{prefix}{near}'?"

    # A key of another group?
    elsewhere = [name for name in keys if _last(name) == part]
    if elsewhere:
        [best] = difflib.get_close_matches(f"{prefix}{part}", elsewhere, n=1, cutoff=0.0)
        return f"{message}, did you mean '{best}'?"

    known = [f"{prefix}{member}" for member in members]
    return f"{message}; known here: {', '.join(known)}"


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _members(keys: Keys, prefix: str) -> list[str]:
    """The keys and groups directly within a group, by their last parts."""
    inside = [name.removeprefix(prefix) for name in keys if name.startswith(prefix)]
    return list(dict.fromkeys(name.split(".")[0] for name in inside))
