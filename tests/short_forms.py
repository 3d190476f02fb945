"""Which cases of a test with many belong to its short form."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(short: Iterable[str], cases: Iterable[str]) -> list[Any]:
    """The parameters of a test: those of its short form, and the others, which are marked slow.

    Args:
        short: cases that `make test` runs, each of which is in `cases`.
        cases: all, which `make test-all` runs.
    """
    chosen, every = set(short), list(cases)
    assert chosen <= set(every), f"no such case: {chosen - set(every)}"
    marks = {each: () if each in chosen else (pytest.mark.slow,) for each in every}
    return [pytest.param(each, marks=marks[each]) for each in every]
