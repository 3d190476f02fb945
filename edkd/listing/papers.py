"""The paper that the docstring of a module names."""

import re
from typing import NamedTuple

_CITATION = re.compile(r'^(?P<authors>[^"]+), "(?P<title>[^"]+)", (?P<where>.*\b(19|20)\d\d\b.*)')

_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")

_YEAR = re.compile(r"\b(?:19|20)\d\d\b")


class Described(NamedTuple):
    """Title and paper, from the docstring of a module."""

    title: str
    """Its first sentence, without the full stop."""
    paper: str
    """The citation in full; "" for none."""
    source: str
    """The citation in short: "B. Zhao et al., CVPR 2022, arXiv:2203.08679"."""
    arxiv: str
    """The number on arXiv; "" for none."""


def described(docstring: str | None) -> Described:
    """Read a docstring: a sentence, then paragraphs, one of which may be a citation."""
    first, *others = [" ".join(part.split()) for part in (docstring or "").split("\n\n")]
    title = first.removesuffix(".")
    for paragraph in others:
        match = _CITATION.match(paragraph)
        if match:
            return Described(title, paragraph, _short(match), _arxiv_of(paragraph))
    return Described(title, "", "", "")


def _short(citation: re.Match[str]) -> str:
    """As "B. Zhao et al., CVPR 2022, arXiv:2203.08679"."""
    first, *more = citation["authors"].split(", ")
    authors = first
    if more:
        authors = f"{first.removesuffix(' et al.')} et al."

    # Up to the year: what follows are remarks.
    where = citation["where"]
    year = _YEAR.search(where)
    venue = where[: year.end()] if year else where
    arxiv = _arxiv_of(where)
    return f"{authors}, {venue}, arXiv:{arxiv}" if arxiv else f"{authors}, {venue}"


def _arxiv_of(text: str) -> str:
    found = _ARXIV.search(text)
    return found[1] if found else ""
