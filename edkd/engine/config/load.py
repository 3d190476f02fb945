"""Loading a configuration: defaults, a YAML file and the command line, typed and checked."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from yacs.config import CfgNode

from edkd.engine.config.batch_hint import batch_hints, remember_hints
from edkd.engine.config.check import Networks, canonical, check, typed
from edkd.engine.config.command_line import pairs
from edkd.engine.config.compare import unused_groups
from edkd.engine.config.plugins import import_plugins, remember_plugins
from edkd.engine.config.scalars import Scalar
from edkd.engine.config.strict_yaml import NotYaml, parse, read_chain
from edkd.engine.config.table import Keys, as_node, defaults, table
from edkd.engine.config.tags import retagged
from edkd.engine.config.unknown_key import members_of, unknown_key
from edkd.errors import UserError, warn
from edkd.keys import Key
from edkd.paths import expanded

__all__ = ["load_config", "pairs"]

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
    plugins = [expanded(plugin, "--plugin") for plugin in plugins]
    import_plugins(plugins)
    keys = table()

    # Merge.
    layers = _layers(file, keys)
    values = _merged(layers)
    method = values["DISTILLER.TYPE"]

    options: dict[str, Any] = {}
    for name, text in given:
        options.update(_leaves(_nested(name, _Option(text)), keys, COMMAND_LINE))
    layers.append(options)
    values.update(options)

    # Check.
    values = canonical(values)
    if "EXPERIMENT.TAG" not in dict(given):
        values["EXPERIMENT.TAG"] = retagged(
            values["EXPERIMENT.TAG"], method, values["DISTILLER.TYPE"]
        )
    cfg = as_node(values)
    check(cfg, values, keys, [name for name, _ in given], networks)
    _warn_of_unused(cfg, [name for name, _ in given])
    remember_plugins(cfg, plugins)
    remember_hints(cfg, batch_hints(layers, values))
    cfg.freeze()
    return cfg


def file_values(file: str) -> dict[str, Any]:
    """The values of a YAML file, and the defaults of the keys that it leaves open; not checked.

    Raises:
        UserError: as `load_config` for the file; not for names of methods, models or data sets.
    """
    return _merged(_layers(file, table()))


def _layers(file: str, keys: Keys) -> list[dict[str, Any]]:
    """The defaults, and the values of a YAML file after those of the files it is based on."""
    layers = [defaults(keys)]
    for source, content in read_chain(file) if file else ():
        layers.append(_each_once(_leaves(content, keys, source), source))
    return layers


def _warn_of_unused(cfg: CfgNode, given: Sequence[str]) -> None:
    """Name keys of the command line that belong to a method or another part not in use."""
    unused = unused_groups(cfg)
    names = [name for name in given if name.startswith(unused)]
    if names:
        warn(
            f"{', '.join(names)} (command line) changes nothing: the run does not use it "
            f"(DISTILLER.TYPE {cfg.DISTILLER.TYPE}, SOLVER.TRAINER {cfg.SOLVER.TRAINER})"
        )


def _merged(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The values of all layers; of a key that several have, the last one."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
    return merged


def _nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def _leaves(
    content: Mapping[str, Any], keys: Keys, source: str, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """The values of nested content by full names, each in the type of its key."""
    for part, value in content.items():
        name = f"{prefix}{part}"

        if name in keys:
            key = keys[name]
            if source == COMMAND_LINE and isinstance(value, dict):
                raise UserError(f"{name} ({source}): is a key, not a group; nothing follows it")
            parsed = _parsed(name, value, key) if isinstance(value, _Option) else value
            yield name, typed(name, parsed, key, source)
        elif not _is_group(name, keys):
            raise UserError(unknown_key(part, prefix, keys, source))
        elif isinstance(value, dict):
            yield from _leaves(value, keys, source, f"{name}.")
        elif not _is_empty(value):
            members = ", ".join(members_of(keys, f"{name}."))
            raise UserError(f"{name} ({source}): is a group of keys ({members}), not a value")


def _each_once(leaves: Iterator[tuple[str, Any]], source: str) -> dict[str, Any]:
    """The values of a file, where `SOLVER: {LR: 1}` may also be written `SOLVER.LR: 1`."""
    found: dict[str, Any] = {}
    for name, value in leaves:
        if name in found:
            raise UserError(f"the key {name} is written twice ({source}); remove one of them")
        found[name] = value
    return found


def _is_group(name: str, keys: Keys) -> bool:
    return any(key.startswith(f"{name}.") for key in keys)


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
