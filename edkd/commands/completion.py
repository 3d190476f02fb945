"""The command completion."""

import argparse
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from edkd.commands._command_line import ArgumentParser, parser_of
from edkd.commands._shells import SHELLS, Completion, completes_pairs, completes_words
from edkd.errors import UserError
from edkd.invocation import command
from edkd.listing.cached import Record, records_of
from edkd.watch.status import STATES

DESCRIPTION = """Print a script with which a shell completes the commands of edkd.

It completes commands, options and their values, configuration keys such as SOLVER.LR and their
values, names of methods, models and data sets, and paths. The script does not run edkd: print it
again after you add methods or models of your own.

examples:
  {completion} bash > ~/.local/share/bash-completion/completions/edkd
  {completion} zsh > ~/.zfunc/_edkd
  {completion} fish > ~/.config/fish/completions/edkd.fish

In this shell alone: eval "$({completion} bash)". For zsh, the folder must be in fpath before
compinit is called.
"""

PROGRAM = "edkd"

MODEL_KEYS = ("DISTILLER.TEACHER", "DISTILLER.STUDENT")
"""Keys whose values are names of models."""


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
    text: str = shtab.complete(root, shell)
    if shell == "zsh":
        # There shtab completes the first of several values alone.
        text = text.replace('"(*)::', '"*:').replace('"(*):', '"*:')
    return text


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
    for name in action.option_strings or [action.dest]:
        if name in known:
            return known[name]

    metavar = str(action.metavar or "")
    if metavar in ("FOLDER", "RUN_FOLDER", "DIR", "ROOT"):
        return shtab.DIRECTORY
    if "FILE" in metavar or "IMAGE" in metavar or action.type is Path:
        return shtab.FILE
    return None


def _completions() -> dict[str, Completion]:
    """Completions by the name of an option, or of what a parser stores."""
    import shtab

    from edkd.catalogue import CATALOGUE
    from edkd.commands.export import FORMATS

    models = completes_words("models", _models())
    datasets = [record["name"] for record in records_of("datasets")]
    keys = records_of("keys")
    key_names = [record["name"] for record in keys]
    yaml = shtab.glob("*.yaml", "*.yml")
    return {
        "--cfg": yaml,
        "file": yaml,
        "opts": completes_pairs(key_names, _values(keys), {"models": MODEL_KEYS}),
        "model": models,
        "models": models,
        "--model": models,
        "--ckpt": shtab.FILE,
        "--names": shtab.FILE,
        "network": shtab.FILE,
        "--dataset": completes_words("datasets", datasets),
        "prefixes": completes_words("keys", key_names),
        "names": completes_words("downloads", CATALOGUE),
        "--to": completes_words("formats", FORMATS),
        "--device": completes_words("devices", ("auto", "cpu", "cuda", "mps")),
        "--state": completes_words("states", STATES),
        "--root": shtab.DIRECTORY,
        "--prefix": shtab.DIRECTORY,
    }


def _models() -> list[str]:
    """Names of models; those of this package also without their family."""
    records = records_of("models")
    plain = [each["name"].rpartition("/")[2] for each in records if "family" in each]
    return list(dict.fromkeys([*plain, *(each["name"] for each in records)]))


def _values(keys: Sequence[Record]) -> dict[str, Sequence[str]]:
    """The values of the keys of which there are few."""
    values: dict[str, Sequence[str]] = {}
    for record in keys:
        if record["default"] in ("True", "False"):
            values[record["name"]] = ("True", "False")
        elif record["choices"]:
            values[record["name"]] = record["choices"]
    return values
