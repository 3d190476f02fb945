"""The command completion."""

import argparse
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edkd.commands._command_line import ArgumentParser, parser_of
from edkd.commands._shells import SHELLS, Completion, completes_pairs, completes_words
from edkd.errors import UserError
from edkd.invocation import command

DESCRIPTION = """Print a script with which a shell completes the commands of edkd.

Completed are commands, options and their values, configuration keys such as SOLVER.LR and their
values, names of methods, models and data sets, and paths. The shell runs the script alone; after
methods or models of your own were added, print it again.

examples:
  {completion} bash > ~/.local/share/bash-completion/completions/edkd
  {completion} zsh > ~/.zfunc/_edkd
  {completion} fish > ~/.config/fish/completions/edkd.fish

In this shell alone: eval "$({completion} bash)". For zsh, the folder must be in fpath before
compinit is called.
"""

PROGRAM = "edkd"


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and print the script."""
    parser = ArgumentParser(
        prog=command("completion"),
        description=DESCRIPTION.format(completion=command("completion")),
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    args = parser.parse_args(argv)
    print(script(args.shell))


def script(shell: str) -> str:
    """The script for a shell, one of SHELLS.

    Raises:
        UserError: shtab is missing.
    """
    try:
        import shtab
    except ImportError:
        raise UserError("completion needs the package shtab: pip install shtab") from None

    root = whole_parser()
    _add_completions(root, _completions())
    return shtab.complete(root, shell)


def whole_parser() -> ArgumentParser:
    """A parser with each command as a subcommand."""
    from edkd.__main__ import COMMANDS

    root = ArgumentParser(prog=PROGRAM)
    root.add_argument("-V", "--version", action="version", version="", help="print the version")
    commands = root.add_subparsers()
    for name, text in COMMANDS.items():
        module = importlib.import_module(f"edkd.commands.{name.replace('-', '_')}")
        own = parser_of(module.main)
        commands.add_parser(name, parents=[own], add_help=False, help=text)
    return root


def _add_completions(parser: argparse.ArgumentParser, known: Mapping[str, Completion]) -> None:
    """Set the attribute `complete` of the actions, which shtab reads."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _add_completions(inner, known)
        elif not action.choices:
            found = _completion_of(action, known)
            if found:
                action.complete = found  # type: ignore[attr-defined]


def _completion_of(action: argparse.Action, known: Mapping[str, Completion]) -> Completion | None:
    """What completes the values of an action: by its name, else by its kind of path."""
    import shtab

    if action.nargs == 0:
        return None
    names = [*action.option_strings, action.dest]
    for name in names:
        if name in known:
            return known[name]

    metavar = str(action.metavar or "")
    if metavar in ("FOLDER", "RUN_FOLDER", "DIR", "ROOT"):
        return shtab.DIRECTORY
    if "FILE" in metavar or action.type is Path:
        return shtab.FILE
    return None


def _completions() -> dict[str, Completion]:
    """Completions by the name of an option, or of what a parser stores."""
    import shtab

    from edkd.commands.export import FORMATS
    from edkd.download import CATALOGUE
    from edkd.listing.cached import records_of

    names = _names_in(records_of)
    models = completes_words("models", names["models"])
    keys = records_of("keys")
    key_names = [record["name"] for record in keys]
    yaml = shtab.glob("*.yaml", "*.yml")
    return {
        "--cfg": yaml,
        "file": yaml,
        "opts": completes_pairs(key_names, _values(keys, names)),
        "model": models,
        "models": models,
        "--dataset": completes_words("datasets", names["datasets"]),
        "prefixes": completes_words("keys", key_names),
        "names": completes_words("downloads", CATALOGUE),
        "--to": completes_words("formats", FORMATS),
        "--device": completes_words("devices", ("auto", "cpu", "cuda", "mps")),
        "--root": shtab.DIRECTORY,
        "--prefix": shtab.DIRECTORY,
    }


def _names_in(records_of: Callable[[str], list[dict[str, Any]]]) -> dict[str, list[str]]:
    """The names of methods, data sets and models; those of models also without their family."""
    names = {
        kind: [record["name"] for record in records_of(kind)] for kind in ("methods", "datasets")
    }
    own = [record for record in records_of("models") if "family" in record]
    plain = [record["name"].rpartition("/")[2] for record in own]
    qualified = [record["name"] for record in records_of("models")]
    names["models"] = list(dict.fromkeys([*plain, *qualified]))
    return names


def _values(
    keys: Sequence[Mapping[str, Any]], names: Mapping[str, Sequence[str]]
) -> dict[str, Sequence[str]]:
    """The values of the keys whose values are known."""
    values = {record["name"]: record["choices"] for record in keys if record["choices"]}
    for record in keys:
        if record["default"] in ("True", "False"):
            values[record["name"]] = ("True", "False")
    return values | {
        "DISTILLER.TEACHER": names["models"],
        "DISTILLER.STUDENT": names["models"],
    }
