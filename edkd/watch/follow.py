"""Follows runs until they end: on a terminal with lines that are rewritten, else with plain lines.

A follower only reads: to stop it does not stop the run.
"""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from edkd.signals import Stopped
from edkd.streams import check_output
from edkd.watch.reading import read_all, read_status
from edkd.watch.status import RUNNING, Status
from edkd.watch.table import table
from edkd.watch.wording import ending, progress, ways_on

EVERY = 1.0
"""Seconds between two looks."""

CONTEXT = 5
"""Lines of the work log that are shown first."""

_CLEAR_BELOW = "\x1b[J"

_UP = "\x1b[{}A"


def follow(folders: Sequence[Path]) -> list[Status]:
    """Follow runs until each of them has ended; return how they ended.

    Args:
        folders: of runs; one is followed by the lines of its work log, several by a table.
    """
    try:
        if len(folders) == 1:
            return [_follow_one(folders[0])]
        return _follow_many(folders)
    except Stopped as stopped:
        stopped.hint = "the run goes on" if len(folders) == 1 else "the runs go on"
        raise


def _follow_one(folder: Path) -> Status:
    log = WorkLog(folder / "worklog.txt")
    with Screen() as screen:
        while True:
            status = read_status(folder)  # before the lines: the last ones are there at the end
            screen.add(log.new_lines())

            if status.state != RUNNING:
                screen.add([ending(status), *ways_on(status)])
                return status
            screen.rewrite([_running(status)])
            time.sleep(EVERY)


def _follow_many(folders: Sequence[Path]) -> list[Status]:
    shown: dict[Path, str] = {}

    with Screen() as screen:
        while True:
            runs = read_all(folders)
            if screen.is_terminal:
                screen.rewrite(table(runs).splitlines())
            else:
                screen.add(_changes(runs, shown))

            if all(run.state != RUNNING for run in runs):
                screen.keep()
                return runs
            time.sleep(EVERY)


def _changes(runs: Sequence[Status], shown: dict[Path, str]) -> list[str]:
    """A line for each run that ended or finished an epoch since the last call."""
    lines = []
    for run in runs:
        mark = f"{run.state} {run.epochs_done}"
        if shown.get(run.folder) != mark:
            text = progress(run) if run.state == RUNNING else ending(run)
            lines.append(f"{run.folder}  {text}")
        shown[run.folder] = mark
    return lines


def _running(status: Status) -> str:
    line = progress(status)
    return f"{line}  ({status.reason})" if status.reason else line


class WorkLog:
    """The lines of a work log, as they are added.

    Args:
        path: of the file, which may be absent, and which a new run replaces.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position: int | None = None

    def new_lines(self) -> list[str]:
        """The whole lines since the last call; on the first one, the last few of the file."""
        try:
            with open(self.path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = self._position or 0
                file.seek(start if start <= size else 0)
                content = file.read()
        except OSError:
            return []

        # Whole lines alone; the rest is read again.
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.decode("utf-8", errors="replace").splitlines()

        is_first = self._position is None
        before = 0 if start > size else start
        self._position = before + len(whole)
        return lines[-CONTEXT:] if is_first else lines


class Screen:
    """Prints lines that stay and, on a terminal, lines below them that are rewritten."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout is not None and sys.stdout.isatty()
        self._height = 0

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *error: object) -> None:
        self.keep()

    def add(self, lines: Sequence[str]) -> None:
        """Print lines that stay."""
        if not lines:
            return
        self._clear()
        self._print(lines)

    def rewrite(self, lines: Sequence[str]) -> None:
        """Print lines that the next call replaces; none where this is no terminal."""
        if not self.is_terminal:
            return
        size = shutil.get_terminal_size()
        shown = [line[: size.columns - 1] for line in lines[: size.lines - 1]]
        self._clear()
        self._print(shown)
        self._height = len(shown)

    def keep(self) -> None:
        """Leave the lines where they are."""
        self._height = 0

    def _clear(self) -> None:
        if self._height:
            sys.stdout.write(_UP.format(self._height) + "\r" + _CLEAR_BELOW)
        self._height = 0

    def _print(self, lines: Sequence[str]) -> None:
        """Print; a pipe that nobody reads any more ends the command."""
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
        check_output()
