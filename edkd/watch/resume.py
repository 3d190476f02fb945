"""The command that continues a run, from the one that started it."""

import os
import shlex
from pathlib import PurePath
from typing import Any

from edkd.invocation import command
from edkd.watch.files import Content

RESUMED_BY_OPTION = ("train", "finetune")
"""Commands with --resume."""

RESUMED_BY_REPETITION = ("demo", "sweep")
"""Commands that continue by themselves."""


def command_to_resume(environment: Content) -> str:
    """The command that continues a run; "" where another program started it.

    Args:
        environment: content of `environment.json`.
    """
    name, words = _typed(environment.get("command"))
    if name in RESUMED_BY_OPTION:
        words = [word for word in words if word != "--resume"] + ["--resume"]
    elif name not in RESUMED_BY_REPETITION:
        return ""

    line = " ".join([command(name), *map(shlex.quote, words)])
    folder = environment.get("cwd")
    if isinstance(folder, str) and folder and folder != os.getcwd():
        line = f"cd {shlex.quote(folder)} && {line}"
    return line


def _typed(given: Any) -> tuple[str, list[str]]:
    """The name and the words of a command, from the arguments of its process."""
    is_list = isinstance(given, list) and all(isinstance(word, str) for word in given)
    if not is_list or len(given) < 2:
        return "", []

    program = PurePath(given[1])
    words = given[2:]
    if program.parent.name == "tools" and program.suffix == ".py":
        return program.stem.replace("_", "-"), words
    if program.name in ("edkd", "edkd.exe", "__main__.py") and words:
        return words[0], words[1:]
    return "", []
