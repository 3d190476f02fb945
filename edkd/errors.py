"""What can go wrong for a user, and how a command says so: one line on standard error and an exit code."""

import argparse
import difflib
import io
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from edkd.stop import Stopped, exit_code, listening


class UserError(ValueError):
    """A mistake that the user can mend; the message names the key or file and the way out. Exit code 2."""

    exit_code = 2


class NonFiniteError(ArithmeticError):
    """A loss is infinite or not a number. Exit code 3."""

    exit_code = 3


class WorkerError(RuntimeError):
    """A data worker died. Exit code 4."""

    exit_code = 4


class StorageError(OSError):
    """A file of the run could not be written. Exit code 5."""

    exit_code = 5


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser whose complaint is a UserError: one line, exit code 2, no usage text."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"^-\.?\d")  # -1e-3 too is a value, as from Python 3.14 on

    def error(self, message: str) -> NoReturn:
        """Raise UserError with argparse's message."""
        raise UserError(f"{message}; see {self.prog} --help")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for the known word closest to `word`, or "" where none is close."""
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.5)
    return f", did you mean '{folded[close[0]]}'?" if close else ""


def warn(line: str) -> None:
    """A line on standard error that does not end the command."""
    sys.stderr.write(f"edkd: warning: {line}\n")
    sys.stderr.flush()


def run_command(main: Callable[[Sequence[str] | None], None], stopped: str = "stopped") -> None:
    """Run a command of `tools/`: an error above, or a signal, becomes one line and the exit code that belongs to it."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name need not be UTF-8; standard error says it anyhow
        sys.stdout.reconfigure(errors="backslashreplace")
    with listening():
        try:
            main(None)
        except (UserError, NonFiniteError, WorkerError, StorageError) as error:
            sys.stderr.write(f"edkd: error: {' '.join(str(error).split())}\n")
            sys.exit(error.exit_code)
        except (Stopped, KeyboardInterrupt, Exception) as error:
            code = 130 if isinstance(error, KeyboardInterrupt) else exit_code()
            if code is None:
                raise
            sys.stderr.write(f"edkd: {stopped}\n")  # also where a library has made another error of a signal
            sys.exit(code)
