"""What the commands share: the parser, and how errors and signals end a command."""

import argparse
import atexit
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

from edkd.errors import EXPECTED, ProcessError, StorageError, UserError, warn
from edkd.hints import closest
from edkd.invocation import other_checkout
from edkd.signals import Stopped, exit_code, listening
from edkd.streams import check_output, dropped_sinks, guarded_streams

PATIENCE = 10.0
"""Seconds that the interpreter may take to end after a logging library has failed."""

_is_parser_wanted = ContextVar("_is_parser_wanted", default=False)


class _Parser(BaseException):
    """Carries the parser of a command to `parser_of`."""

    def __init__(self, parser: "ArgumentParser") -> None:
        super().__init__()
        self.parser = parser


def parser_of(main: Callable[[Sequence[str] | None], None]) -> "ArgumentParser":
    """The parser of a command, which is built, as in any command, before anything else happens.

    Args:
        main: of the command; it ends where it would parse the arguments.
    """
    before = _is_parser_wanted.set(True)
    try:
        main([])
    except _Parser as found:
        return found.parser
    finally:
        _is_parser_wanted.reset(before)
    raise TypeError(f"{main.__module__} parses no arguments")


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser whose errors are a UserError: one line, exit code 2, no usage text."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"^-\.?\d")  # -1e-3 is a value, not an option

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """As argparse; for `parser_of`, hand over the parser instead."""
        self._hand_over()
        return super().parse_args(*args, **kwargs)

    def parse_intermixed_args(self, *args: Any, **kwargs: Any) -> Any:
        """As argparse; for `parser_of`, hand over the parser instead."""
        self._hand_over()
        return super().parse_intermixed_args(*args, **kwargs)

    def _hand_over(self) -> None:
        if _is_parser_wanted.get():
            raise _Parser(self)

    def error(self, message: str) -> NoReturn:
        """Raise UserError with argparse's message."""
        raise UserError(f"{message}{self._advice(message)}; see {self.prog} --help")

    def _advice(self, message: str) -> str:
        """How an option that is not known here may be meant, or ""."""
        start, _, words = message.partition(": ")
        option, *_ = [*words.split(), ""]
        if start != "unrecognized arguments" or not option:
            return ""

        option = option.partition("=")[0]
        near = closest(option, [name for name in self._option_string_actions if len(name) > 2])
        if near:
            return f", did you mean {near}?"
        if "--cfg" in self._option_string_actions:
            return (
                "; give a YAML file as --cfg FILE, and keys without dashes, such as SOLVER.LR 0.1"
            )
        return ""

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End after the help was printed; raises StorageError where it could not be."""
        check_output()
        super().exit(status, message)


class Once(argparse.Action):
    """Stores a value, and refuses an option that is given twice, of which one would be lost."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store it."""
        before = getattr(namespace, self.dest)
        if before not in (self.default, values):
            raise UserError(f"{option_string} is given twice, {before} and {values}; give one")
        setattr(namespace, self.dest, values)


def given_path(text: str) -> Path:
    """A path of the command line; a shell does not replace the ~ of `--into=~/data`."""
    return Path(os.path.expanduser(text))


class HelpWithKeys(argparse.Action):
    """Prints the help of a parser, and after it every configuration key."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str = "") -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> NoReturn:
        """Print and exit with 0."""
        from edkd.engine.config.table import help_text  # collects the keys of all methods

        parser.print_help()
        sys.stdout.write(f"\nkeys:\n{help_text()}\n")
        parser.exit()


def run_command(
    main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None
) -> None:
    """Run a command; expected errors and signals become one line and their exit code.

    Any other exception is a bug of this program and shows its traceback, also after a signal.
    Standard streams that are absent or fail do not change the exit code of a run.
    """
    code: Any = 1
    try:
        with guarded_streams(), listening():
            _warn_about_other_checkout()
            _run(main, argv)
        code = 0
    except SystemExit as exit_:
        code = exit_.code or 0
        raise

    # A bug has the code 1.
    finally:
        if dropped_sinks:
            atexit.register(_end_in_time, code)


def _warn_about_other_checkout() -> None:
    other = other_checkout()
    if other:
        warn(other)


def _check_working_folder() -> None:
    """Libraries end the process, without an exception, where there is none."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError(
            "the folder in which this command was started no longer exists; change to another one "
            "with cd"
        ) from None


def _run(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None) -> None:
    try:
        _check_working_folder()
        with _memory_explained():
            main(argv)
        check_output()

    # Errors.
    except ProcessError as error:
        _report(f"error: {error}")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.exit_code)  # a library may wait for the process that is gone
    except EXPECTED as error:
        _report(f"error: {' '.join(str(error).split())}")
        sys.exit(error.exit_code)
    except PermissionError as error:
        if error.filename is None:
            raise
        _report(
            f"error: cannot access {error.filename} ({error.strerror}); "
            "change its permissions or those of the folders above it, or use another path"
        )
        sys.exit(StorageError.exit_code)
    except BrokenPipeError:  # as in `edkd keys | head`
        sys.exit(1)

    # Signals.
    except Stopped as stopped:
        hint = f"; {stopped.hint}" if stopped.hint else ""
        _report(f"stopped{hint}")
        sys.exit(exit_code())
    except KeyboardInterrupt:  # outside the main thread, where signals are not handled here
        _report("stopped")
        sys.exit(130)


@contextmanager
def _memory_explained() -> Iterator[None]:
    """Raise UserError where torch has no memory left on a GPU."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # of torch, which is not imported here
            raise
        tried = str(error).split(" GPU ")[0].removesuffix(".")
        raise UserError(
            f"the memory of the device is full ({tried}); make batches smaller: SOLVER.BATCH_SIZE "
            "or SOLVER.ACCUMULATE in training, DATASET.TEST.BATCH_SIZE in evaluation"
        ) from error


def _report(line: str) -> None:
    """Print the line with which a command ends; of several processes, one prints it."""
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        from edkd.world import is_first_report  # imports torch

        if not is_first_report():
            return
    sys.stderr.write(f"edkd: {line}\n")


def _end_in_time(code: int) -> None:
    """At the end of the process, which a logging library that failed before may delay or garble.

    It is registered after the functions of that library, and so runs before them.
    """
    sys.stderr = None
    watch = threading.Timer(PATIENCE, os._exit, (code,))
    watch.daemon = True
    with suppress(RuntimeError):  # the system allows no further thread
        watch.start()
