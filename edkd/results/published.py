"""Published accuracies, each with its protocol and source, from `published.yaml`."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

from edkd.results.protocol import PLAIN, Protocol

FILE = Path(__file__).with_name("published.yaml")


class Figure(NamedTuple):
    """A published top-1 accuracy.

    Args:
        value: in percent.
        deviation: the published standard deviation; None where there is none.
        protocol: its code, as "P240".
        source: the document that it was copied from.
    """

    value: float
    deviation: float | None
    protocol: str
    source: str

    def fits(self, code: str) -> bool:
        """Whether the training of its protocol is that of the protocol with this code."""
        if not code:
            return False
        alike = protocols()[self.protocol].get("like")
        return code in (self.protocol, alike)


def published(dataset: str, pair: str, method: str) -> list[Figure]:
    """All published figures of a method for a pair, in the order of the file.

    Args:
        dataset: its name.
        pair: "resnet56 -> resnet20", or the student's name where it is alone.
        method: the label of `names.method_of`.
    """
    return _figures().get((dataset, pair, method), [])


def code_of(protocol: Protocol, student: str) -> str:
    """The code of the published protocol that a run followed, as "P240"; "" for none.

    Args:
        protocol: of the run.
        student: its architecture, which decides the learning rate of some protocols.
    """
    is_light = student in _content()["light_students"]
    for code, about in protocols().items():
        for variant in about.get("variants", []):
            if variant.get("light", is_light) != is_light:
                continue
            if not protocol.differences(_expected(about, variant)):
                return code
    return ""


def protocols() -> dict[str, dict[str, Any]]:
    """The published protocols by their codes."""
    return _content()["protocols"]


def _expected(about: dict[str, Any], variant: dict[str, Any]) -> Protocol:
    """The settings of a variant of a protocol; those that are not named are plain."""
    values = dict(PLAIN)
    values["DATASET.TYPE"] = about["dataset"]
    for name, value in {**about["settings"], **variant}.items():
        if name != "light":
            values[f"SOLVER.{name}"] = value
    return Protocol(values)


@functools.cache
def _content() -> dict[str, Any]:
    import yaml

    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


@functools.cache
def _figures() -> dict[tuple[str, str, str], list[Figure]]:
    found: dict[tuple[str, str, str], list[Figure]] = {}
    for table in _content()["tables"]:
        for pair, entry in table["figures"].items():
            value, deviation = entry if isinstance(entry, list) else (entry, None)
            figure = Figure(value, deviation, table["protocol"], table["source"])
            place = (table["dataset"], pair, table["method"])
            found.setdefault(place, []).append(figure)
    return found
