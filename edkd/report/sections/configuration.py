"""Configuration keys in which rows differ, and the whole configuration of each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from edkd.report.blocks import Block, Cell, Code, Column, Details, Note, Section, Table
from edkd.report.subject import Line, Subject

_UNSET = "not set"


def configuration(subject: Subject) -> Section:
    """A table of the keys that differ, and all keys behind a line for each row."""
    lines = subject.lines
    differing = differing_keys([line.first.settings for line in lines])

    blocks: list[Block] = []
    if len(lines) == 1:
        blocks.append(Note("There is one configuration, so nothing differs but the seed."))
    elif differing:
        caption = f"Keys that differ between the rows, of {subject.dataset}"
        columns = {line.name: line.first.settings for line in lines}
        blocks.append(comparison(caption, "key", differing, columns))
    else:
        blocks.append(Note("No key that decides a result differs between the rows."))

    blocks += [_whole(line) for line in lines]
    lead = (
        "Values that differ from those of most rows are marked. Keys that decide no result, such "
        "as names and paths, are left out, and so is the seed."
    )
    return Section("configuration", "Configuration", lead, blocks)


def comparison(
    caption: str,
    head: str,
    keys: Sequence[str],
    columns: Mapping[str, Mapping[str, Any]],
) -> Table:
    """A table with a row for each key and a column for each mapping; rare values are marked."""
    rows = []
    for key in keys:
        texts = [_text(values.get(key, _UNSET)) for values in columns.values()]
        usual = _most_common(texts)
        marked = [Cell(text, is_marked=usual not in ("", text)) for text in texts]
        rows.append([Cell(key), *marked])

    heads = [Column(head, is_number=False)]
    heads += [Column(name, is_number=False) for name in columns]
    return Table(caption, heads, rows)


def _most_common(texts: Sequence[str]) -> str:
    """The value of more than half of the columns; "" where there is none."""
    ((text, count),) = Counter(texts).most_common(1)
    return text if count > len(texts) / 2 else ""


def differing_keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys with more than one value, in the order of the first mapping."""
    keys: dict[str, None] = {}
    for values in settings:
        keys.update(dict.fromkeys(values))

    return [
        key for key in keys if len({_text(values.get(key, _UNSET)) for values in settings}) > 1
    ]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value or "''"
    return str(value)


def _whole(line: Line) -> Details:
    """All keys of a row, as YAML."""
    text = yaml.safe_dump(dict(line.first.settings), sort_keys=False, allow_unicode=True)
    label = f"Configuration of {line.name}"
    return Details(label, [Code(text.rstrip(), label)], series=line.series)
