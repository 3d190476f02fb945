"""Commands that are printed for the user to copy."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from edkd.invocation import command
from edkd.paths import short_path


def typed(name: str, *words: object) -> str:
    """A command with its words, quoted for the shell."""
    program, *first = command(name).split()
    texts = [_found(program), *first, *map(str, words)]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)


def _found(program: str) -> str:
    """A program as it is found from the current folder: `make demo` activates no environment.

    Args:
        program: python or edkd.
    """
    running = Path(sys.executable).parent
    found = shutil.which(program)
    if found and Path(found).absolute().parent == running:
        return program
    return str(short_path(running / program))
