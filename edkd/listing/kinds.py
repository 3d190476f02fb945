"""The kinds of things that `edkd list` lists, and how a line of each looks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from edkd.columns import aligned
from edkd.figures import FIGURES
from edkd.listing.cached import Record, records_of
from edkd.listing.configs import configs, suites


class Kind(NamedTuple):
    """A kind of things."""

    help: str
    """What they are, and where their names are used."""
    columns: tuple[str, ...]
    """Fields of a record that make its line."""
    read: Callable[[Sequence[str]], list[Record]]
    """Their records, from plugins too."""


def figures() -> list[Record]:
    """A record for each figure that `edkd figure` draws."""
    return [
        {"name": name, "title": figure.help, "source": figure.source}
        for name, figure in FIGURES.items()
    ]


def _without_plugins(read: Callable[[], list[Record]]) -> Callable[[Sequence[str]], list[Record]]:
    """A reader of things that no plugin adds to."""
    return lambda plugins: read()


KINDS: Mapping[str, Kind] = {
    "methods": Kind(
        "for DISTILLER.TYPE", ("name", "title", "source"), partial(records_of, "methods")
    ),
    "models": Kind(
        "for DISTILLER.TEACHER and STUDENT, without the family that is that of the data set",
        ("name", "title", "source"),
        partial(records_of, "models"),
    ),
    "datasets": Kind(
        "for DATASET.TYPE", ("name", "title", "source"), partial(records_of, "datasets")
    ),
    "configs": Kind(
        "YAML files for --cfg, with the published top-1 in percent and its protocol",
        ("name", "title", "published", "source"),
        _without_plugins(configs),
    ),
    "keys": Kind(
        "of a configuration; the command keys has more about each",
        ("name", "default", "title"),
        partial(records_of, "keys"),
    ),
    "figures": Kind(
        "for the command figure", ("name", "title", "source"), _without_plugins(figures)
    ),
    "updates": Kind(
        "update rules, for SOLVER.TRAINER",
        ("name", "title", "source"),
        partial(records_of, "updates"),
    ),
    "suites": Kind(
        "sets of runs, for the command sweep", ("name", "title"), _without_plugins(suites)
    ),
}


def matching(records: Iterable[Record], words: Sequence[str]) -> list[Record]:
    """The records that have all words, in any field; case is ignored."""
    folded = [word.lower() for word in words]
    found = []
    for record in records:
        text = " ".join(map(str, record.values())).lower()
        if all(word in text for word in folded):
            found.append(record)
    return found


def lines(records: Sequence[Record], columns: Sequence[str]) -> list[str]:
    """A line for each record, with its columns below one another."""
    return aligned([[_shown(record.get(column)) for column in columns] for record in records])


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
