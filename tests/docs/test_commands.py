"""Every command of the pages can be typed as it stands: its name, options and keys exist.

The commands are read, not run: the parser of each stops after it has accepted the words. Whole
pages are run by tests/test_extending.py, tests/test_coming_from.py and tests/docs/test_guides.py.
"""

import argparse
import importlib
import io
import re
from contextlib import redirect_stdout
from functools import cache

import pytest

from edkd.__main__ import COMMANDS
from edkd.commands._command_line import ArgumentParser
from edkd.engine.config.load import load_config
from edkd.errors import UserError
from tests.docs.pages import CHECKOUT, PAGES, code, commands, name_of, prose

WITH_COMMANDS = [page for page in PAGES if commands(page)]
TRAINING = ("train", "finetune", "softlabels")


class Parsed(Exception):
    """The parser of a command has accepted its words."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments


@pytest.fixture
def parse(monkeypatch):
    """parse("train", words): the arguments that the command reads; UserError where it refuses."""
    for method in ("parse_args", "parse_intermixed_args"):
        original = getattr(argparse.ArgumentParser, method)

        def stop(parser, argv=None, namespace=None, original=original):
            raise Parsed(original(parser, argv, namespace))

        monkeypatch.setattr(ArgumentParser, method, stop)

    def run(name, words):
        module = importlib.import_module(f"edkd.commands.{name.replace('-', '_')}")
        with pytest.raises(Parsed) as parsed:
            module.main(words)
        return parsed.value.arguments

    return run


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_commands_parse(page, parse, tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(CHECKOUT / "configs")
    _write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)

    for command in commands(page):
        assert command.name in COMMANDS, command
        arguments = parse(command.name, command.words)
        if command.name in TRAINING and not _reads_a_run(arguments.cfg):
            load_config(arguments.cfg, arguments.opts, arguments.plugin)


def _write_files(page, folder):
    """The files that a page shows, under the names in their first lines."""
    for language in ("python", "yaml"):
        for block in code(page, language):
            name = re.match(r"# ([\w.]+\.(?:py|yaml))\b", block)
            if name:
                (folder / name[1]).write_text(block)


def _reads_a_run(cfg):
    return cfg.startswith("output/")


@pytest.fixture(scope="module")
def options():
    """options("train"), options("figure", "cka"): the options of a command, from its help."""

    @cache
    def options_of(name, *kind):
        module = importlib.import_module(f"edkd.commands.{name.replace('-', '_')}")
        text = io.StringIO()
        with redirect_stdout(text), pytest.raises(SystemExit):
            module.main([*kind, "--help"])
        return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text.getvalue()))

    return options_of


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_within_sentences(page, options):
    """Their names and options; other words may be placeholders."""
    for text in re.findall(r"`edkd ([^`]+)`", prose(page)):
        name, *words = text.split()
        if name.isupper():
            continue
        assert name in COMMANDS, f"{name_of(page)}: edkd {text}"

        given = {word.partition("=")[0] for word in words if word.startswith("-")}
        kind = words[:1] if name == "figure" else []
        unknown = given - options(name, *kind) if given else set()
        assert not unknown, f"{name_of(page)}: edkd {text}"


def test_every_command_is_on_its_page():
    text = (CHECKOUT / "docs" / "commands.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`edkd ([\w-]+)", text))
    assert set(COMMANDS) <= named


def test_a_wrong_option_and_a_wrong_key_are_found(parse):
    with pytest.raises(UserError, match="--picure"):
        parse("report", ["output", "--picure", "x.png"])
    config = "configs/digits/vanilla/resnet8.yaml"
    arguments = parse("train", ["--cfg", config, "SOLVER.EPOHS", "1"])
    with pytest.raises(UserError, match="EPOHS"):
        load_config(str(CHECKOUT / arguments.cfg), arguments.opts)
