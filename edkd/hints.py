"""Suggestions for mistyped names."""

import difflib
from collections.abc import Iterable

LETTERS_PER_EDIT = 4
"""A suggestion may be one edit away for each of this many letters, and one edit in any case."""

_SHORTEST_START = 4
"""Letters that the beginning of another name must have to be taken for it."""


def closest(word: str, known: Iterable[str]) -> str:
    """The known word that `word` may be a typing error of, or "" if none is close.

    A word is close if few edits separate both for their length (a letter inserted, left out,
    replaced, or swapped with its neighbour), or if one is the beginning of the other: WARMUP of
    WARMUP_EPOCHS, or eval of evaluate. Case does not matter.
    """
    best = ""
    least = (False, 0, 0.0)
    typed = word.lower()

    for candidate in known:
        meant = candidate.lower()
        edits = distance(typed, meant)
        is_typo = edits <= max(1, max(len(typed), len(meant)) // LETTERS_PER_EDIT)
        if not is_typo and not _is_start(typed, meant):
            continue

        in_common = difflib.SequenceMatcher(None, typed, meant).ratio()
        rank = (not is_typo, edits, -in_common)
        if not best or rank < least:
            best = candidate
            least = rank
    return best


def _is_start(typed: str, meant: str) -> bool:
    """Whether a key lacks its last words, or a word has an ending too many."""
    if min(len(typed), len(meant)) < _SHORTEST_START:
        return False
    ending = typed.removeprefix(meant)
    has_ending = ending != typed and ending.isalpha() and len(ending) <= len(meant)
    return has_ending or meant.startswith(f"{typed}_")


def hint(word: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for the closest known word, or ""."""
    best = closest(word, known)
    return f", did you mean '{best}'?" if best else ""


def unknown(what: str, word: str, known: Iterable[str], note: str = "") -> str:
    """Return "unknown command 'trian', did you mean 'train'? (known: train, eval)".

    Args:
        note: about this word, instead of the closest known one.
    """
    names = list(known)
    return f"unknown {what} {word!r}{note or hint(word, names)} (known: {', '.join(names)})"


def not_one_of(name: str, value: str, known: Iterable[str], note: str = "") -> str:
    """Return "form is 'papr', not one of paper, reference, did you mean 'paper'?".

    Args:
        note: about this value, instead of the closest known one.
    """
    names = list(known)
    return f"{name} is {value!r}, not one of {', '.join(names)}{note or hint(value, names)}"


def distance(first: str, second: str) -> int:
    """The edits that turn one word into another; a swap of two neighbours counts as one.

    This is the optimal string alignment distance.
    """
    before: list[int] = []
    last = list(range(len(second) + 1))

    for i, letter in enumerate(first, 1):
        row = [i]
        for j, other in enumerate(second, 1):
            inserted = row[j - 1] + 1
            left_out = last[j] + 1
            replaced = last[j - 1] + (letter != other)
            edits = min(inserted, left_out, replaced)
            is_swap = i > 1 and j > 1 and letter == second[j - 2] and first[i - 2] == other
            if is_swap:
                edits = min(edits, before[j - 2] + 1)
            row.append(edits)
        before = last
        last = row
    return last[-1]
