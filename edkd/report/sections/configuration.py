"""Configuration keys in which rows differ, and the whole configuration of each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from edkd.report.blocks import Block, Cell, Code, Column, Details, Note, Section, Table
from edkd.report.subject import Line, Subject

_UNSET = "not set"

_LEAD = (
    "Values that differ from those of most rows are marked. Keys that decide no result, such as "
    "names and paths, are left out, and so is the seed."
)


def configuration(subject: Subject) -> Section:
    """A table of the keys that differ, and all keys behind a line for each row."""
    settings = {line.name: line.first.settings for line in subject.lines}
    differing = differing_keys(list(settings.values()))

    blocks: list[Block] = []
    if len(settings) == 1:
        blocks.append(Note("There is one configuration, so nothing differs but the seed."))
    elif differing:
        blocks.append(comparison("Keys that differ between the rows", "key", differing, settings))
    else:
        blocks.append(Note("No key that decides a result differs between the rows."))

    # All keys.
    blocks += [_whole(line) for line in subject.lines]
    return Section("configuration", "Configuration", _LEAD, blocks)


def comparison(
    caption: str,
    head: str,
    keys: Sequence[str],
    columns: Mapping[str, Mapping[str, Any]],
) -> Table:
    """A table with a row for each key and a column for each mapping; rare values are marked."""
    heads = [Column(head, is_number=False)]
    heads += [Column(name, is_number=False) for name in columns]

    rows = []
    for key in keys:
        texts = [_text(values, key) for values in columns.values()]
        usual = _most_common(texts)

        marked = [Cell(text, is_marked=usual not in ("", text)) for text in texts]
        rows.append([Cell(key), *marked])
    return Table(caption, heads, rows)


def differing_keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys with more than one value, in the order of the first mapping."""
    keys: dict[str, None] = {}
    for values in settings:
        keys.update(dict.fromkeys(values))

    found = []
    for key in keys:
        texts = {_text(values, key) for values in settings}
        if len(texts) > 1:
            found.append(key)
    return found


def _most_common(texts: Sequence[str]) -> str:
    """The value of more than half of the columns; "" where there is none."""
    ((text, count),) = Counter(texts).most_common(1)
    if count <= len(texts) / 2:
        return ""
    return text


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key, _UNSET)
    if value == "":
        return "''"
    return str(value)


def _whole(line: Line) -> Details:
    """All keys of a row, as YAML."""
    settings = dict(line.first.settings)
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    label = f"Configuration of {line.name}"
    code = Code(text.rstrip(), label)
    return Details(label, [code], series=line.series)
