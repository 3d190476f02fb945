"""One run as a process of its own: how it is started, stopped, and what it leaves.

Nothing here imports torch: a worker of Ray imports this file.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from edkd.errors import NonFiniteError, StorageError, UserError, reason_of
from edkd.folder_lock import is_in_use

CONFIG = "config.yaml"

_POLL = 1.0
"""Seconds between two looks at a process, so that Ray can cancel a task."""

_PREFIX = "edkd: error: "

_USELESS = (0, UserError.exit_code, NonFiniteError.exit_code)
"""Exit codes after which another attempt would end in the same way."""


class Job(NamedTuple):
    """What a machine needs to know about a run."""

    words: tuple[str, ...]
    """Of the command line, "train" first, without --resume."""
    working_folder: str
    """Relative paths start here."""
    folder: str
    """Of the run."""
    log: str
    """The file for what the process prints."""
    environment: Mapping[str, str]
    """Variables that are set for it."""
    token: str = ""
    """On Ray: of the sweep; see `ray_task.MARK`."""


class Outcome(NamedTuple):
    """How an attempt ended."""

    code: int
    """The exit code; negative for a signal."""
    error: str = ""
    """One line."""

    @property
    def may_retry(self) -> bool:
        """Whether another attempt may end in another way: not after a mistake of the user."""
        return self.code not in _USELESS


def attempt(job: Job, environment: Mapping[str, str]) -> Outcome:
    """Start a run, or continue it if it was started, and wait for its end.

    Any exception that interrupts the wait, as `Stopped`, first lets the run save a checkpoint.

    Args:
        job: the run.
        environment: the variables of this process.

    Raises:
        StorageError: its process cannot be started, or its output cannot be written.
    """
    words = list(job.words)
    if Path(job.working_folder, job.folder, CONFIG).is_file():
        words.append("--resume")

    log = Path(job.working_folder, job.log)
    try:
        os.makedirs(job.working_folder, exist_ok=True)  # absent on another machine
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a+b") as output:
            begin = output.seek(0, 2)
            with _process(words, job, environment, output) as process:
                code = _code_of(process)
            output.seek(begin)
            text = output.read().decode(errors="replace")
    except OSError as error:
        raise StorageError(
            f"cannot start a run with its output in {log} ({reason_of(error)}); free disk space, "
            "or allow more open files and processes, and repeat the command"
        ) from None
    return Outcome(code, _error_of(code, text))


def wait_until_free(folder: Path, seconds: float) -> None:
    """Wait for the end of a process that has locked a run's folder, for so long at most."""
    end = time.monotonic() + seconds
    while is_in_use(folder) and time.monotonic() < end:
        time.sleep(_POLL)


@contextmanager
def _process(
    words: list[str], job: Job, environment: Mapping[str, str], output: IO[bytes]
) -> Iterator[subprocess.Popen]:
    """A process that is told to stop, and waited for, at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edkd.sweep.child", *words],
        cwd=job.working_folder,
        env={**environment, **job.environment},
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        start_new_session=True,  # Ctrl-C reaches this process alone
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def _code_of(process: subprocess.Popen) -> int:
    while True:
        try:
            return process.wait(_POLL)
        except subprocess.TimeoutExpired:
            continue


def _error_of(code: int, text: str) -> str:
    """The error of a run in one line.

    Args:
        code: its exit code.
        text: what it printed.
    """
    if code == 0:
        return ""
    if code < 0:
        return _signal_text(-code)

    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix(_PREFIX) for line in lines if line.startswith(_PREFIX)]
    last = [*lines[-1:], *errors[-1:]]
    return last[-1] if last else "it printed nothing"


def _signal_text(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    reason = "; the memory may have been too small" if name == "SIGKILL" else ""
    return f"ended by {name}{reason}"
