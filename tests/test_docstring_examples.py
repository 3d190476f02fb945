"""The examples in docstrings run and print what they state; each public loss has one."""

import doctest
import importlib

import pytest

import edkd
from tests.conftest import CHECKOUT

PROMPT = ">>> "

MODULES = [
    ".".join(path.relative_to(CHECKOUT).with_suffix("").parts)
    for path in sorted((CHECKOUT / "edkd").rglob("*.py"))
    if PROMPT in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize("name", [name for name in edkd.__all__ if name.endswith("_loss")])
def test_a_loss_has_an_example(name):
    assert PROMPT in getattr(edkd, name).__doc__
