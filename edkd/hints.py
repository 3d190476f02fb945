"""Suggestions for mistyped names."""

import difflib
from collections.abc import Iterable

CUTOFF = 0.6
"""Lowest similarity (difflib's ratio) of a suggestion that is more than one edit away."""


def closest(word: str, known: Iterable[str]) -> str:
    """The known word that `word` may be a typing error of, or "" if none is close.

    A word is close if one edit separates both (a letter inserted, left out, replaced, or swapped
    with its neighbour), or if they have most letters in common. Case does not matter.
    """
    best = ""
    best_rank = (False, 0.0)
    typed = word.lower()

    for candidate in known:
        meant = candidate.lower()
        is_one_edit = _is_one_edit(typed, meant)
        similarity = difflib.SequenceMatcher(None, typed, meant).ratio()
        if not is_one_edit and similarity < CUTOFF:
            continue

        rank = (is_one_edit, similarity)
        if rank > best_rank:
            best = candidate
            best_rank = rank
    return best


def hint(word: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for the closest known word, or ""."""
    best = closest(word, known)
    return f", did you mean '{best}'?" if best else ""


def _is_one_edit(first: str, second: str) -> bool:
    """Whether at most one edit separates two words."""
    first, second = _without_common_start(first, second)
    first, second = _without_common_start(first[::-1], second[::-1])

    longest = max(len(first), len(second))
    is_swap = longest == 2 and first == second[::-1]
    return is_swap or longest <= 1


def _without_common_start(first: str, second: str) -> tuple[str, str]:
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return first[length:], second[length:]
