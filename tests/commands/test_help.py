"""The help of every command: its examples, and parsers that are there at once."""

import importlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from edkd.__main__ import COMMANDS
from edkd.commands._command_line import given_path, parser_of
from edkd.errors import UserError
from tests.runs import CHECKOUT

HEADING = "examples:\n"


def parser_for(name):
    return parser_of(importlib.import_module(f"edkd.commands.{name.replace('-', '_')}").main)


def examples_of(parser):
    """The lines of the part with examples."""
    part = parser.description.split(HEADING)[1].split("\n\n")[0]
    return [line.strip() for line in part.splitlines()]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_parse(name, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["edkd", name])
    examples = examples_of(parser_for(name))
    assert examples[0].split()[:2] == ["edkd", name]
    for line in examples:
        program, command, *words = shlex.split(line.split(" > ")[0])
        assert program == "edkd"
        parse(parser_for(command), words)


def parse(parser, words):
    """As the commands do; argparse takes no mixed order where there are subcommands."""
    if parser._subparsers:
        return parser.parse_args(words)
    return parser.parse_intermixed_args(words)


def test_an_example_with_an_unknown_option_would_be_noticed():
    with pytest.raises(UserError, match="--folow, did you mean --follow"):
        parse(parser_for("runs"), ["output", "--folow"])


def test_parsers_are_built_without_torch():
    """So that help texts and completion scripts are printed at once."""
    code = (
        "import sys, importlib; from edkd.commands.completion import whole_parser; "
        "whole_parser(); heavy = {'torch', 'matplotlib', 'plotly', 'optuna', 'ray'}; "
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_a_path_whose_home_the_shell_left(monkeypatch):
    """As in `--into=~/data`."""
    monkeypatch.setenv("HOME", "/home/me")
    assert given_path("~/data") == Path("/home/me/data")
