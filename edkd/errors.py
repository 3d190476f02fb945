"""What can go wrong for a user. Each error has an exit code, and its message is one line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class UserError(ValueError):
    """A mistake that the user can fix; the message says what is wrong, where, and how to fix it."""

    exit_code = 2


class NonFiniteError(ArithmeticError):
    """A loss, a gradient or a logit is infinite or not a number."""

    exit_code = 3


class WorkerError(RuntimeError):
    """A data worker died or hung."""

    exit_code = 4


class ProcessError(RuntimeError):
    """Another process of the run ended or hung, or the processes cannot reach one another."""

    exit_code = 4


class StorageError(OSError):
    """A file of the run could not be written."""

    exit_code = 5


class SweepError(RuntimeError):
    """Not all runs of a sweep are finished."""

    exit_code = 6


EXPECTED = (UserError, NonFiniteError, WorkerError, ProcessError, StorageError, SweepError)
"""Errors that end a command in one line instead of a traceback."""


def warn(line: str) -> None:
    """Print a line on standard error that does not end the command, not even if it cannot."""
    with suppress(Exception):  # there is none, or whatever stands in its place fails
        sys.stderr.write(f"edkd: warning: {line}\n")
        sys.stderr.flush()


def reason_of(error: BaseException) -> str:
    """The reason of an error in one line, as "No space left on device"."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(reason).split())


@contextmanager
def batch_norm_explained() -> Iterator[None]:
    """Raise UserError where batch normalisation gets one value per channel to train on."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "a batch has one image, which batch normalisation cannot train on; set another batch "
            "size (SOLVER.BATCH_SIZE), or set drop_last=True in a DataLoader of your own"
        ) from error
