"""Running a sweep on this machine, one run after the other."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from edkd.errors import SweepError
from edkd.results.table import table
from edkd.signals import Stopped
from edkd.sweep.job import Job, Outcome, attempt
from edkd.sweep.plan import Planned, Sweep
from edkd.sweep.states import (
    FINISHED,
    IN_USE,
    Results,
    is_started,
    make_folder,
    state_of,
    write_results,
)

Say = Callable[[str], None]
"""Prints a line."""

RunAll = Callable[["Progress"], None]


class Progress:
    """What is known while a sweep runs, and the lines about it.

    Args:
        sweep: its runs.
        device: of the command line.
        say: prints a line.
    """

    def __init__(self, sweep: Sweep, device: str, say: Say) -> None:
        self.sweep = sweep
        self.device = device
        self.say = say
        self.results = Results()
        self.errors: dict[int, str] = {}
        self.skipped: list[int] = []

    def about(self, run: Planned, text: str) -> None:
        """Print a line about a run."""
        self.say(f"run {run.number} of {len(self.sweep.runs)}: {run.folder}: {text}")

    def is_open(self, run: Planned) -> bool:
        """Whether a run is still to be run; a line says why not."""
        state = state_of(run)
        if state == FINISHED:
            self.about(run, f"already there, {self.accuracy(run)}")
        if state == IN_USE:
            self.skipped.append(run.number)
            self.about(run, "skipped: another process runs it")
        return state not in (FINISHED, IN_USE)

    def job(self, run: Planned) -> Job:
        """What a machine needs to know about a run."""
        plugins = [word for plugin in self.sweep.plugins for word in ("--plugin", plugin)]
        words = ["train", "--cfg", run.config, *plugins, "--device", self.device, *run.words]
        log = self.sweep.folder / f"{run.number}.log"
        return Job(tuple(words), os.getcwd(), str(run.folder), str(log), {})

    def ended(self, run: Planned, outcome: Outcome, about: str) -> None:
        """Note how a run ended, and write the results so far."""
        if outcome.code == 0 and self.results.of(run):
            self.about(run, f"{self.accuracy(run)}, {about}")
        else:
            error = outcome.error or f"no result of all epochs is in {run.folder}"
            self.errors[run.number] = error
            self.about(run, f"failed ({exit_text(outcome)}): {error}")
        self.write()

    def accuracy(self, run: Planned) -> str:
        """The accuracies of a finished run."""
        result = self.results.of(run)
        if result is None:
            return "no result"
        return f"{result.accuracy('last'):.2f} % (best {result.accuracy('best'):.2f} %)"

    def write(self) -> Path:
        """Write the results so far, and return the path of their file."""
        return write_results(self.sweep, self.results, self.errors, self.skipped)


def run_sweep(sweep: Sweep, device: str, say: Say, run_all: RunAll) -> None:
    """Run what is not finished, print a table of the results, write them.

    Args:
        sweep: its runs.
        device: for all runs.
        say: prints a line.
        run_all: starts the runs that are open and waits for them: `run_here`, or on Ray.

    Raises:
        SweepError: a run failed, or another process runs it.
        StorageError: a file of the sweep cannot be written, or a process cannot be started.
        Stopped: a signal arrived; the run that was running has saved a checkpoint.
    """
    make_folder(sweep.folder)
    progress = Progress(sweep, device, say)
    try:
        run_all(progress)
    except Stopped as stopped:
        progress.write()
        stopped.hint = "the same command continues from here"
        raise

    path = progress.write()
    found = [progress.results.of(run) for run in sweep.runs]
    finished = [result for result in found if result]
    if finished:
        say(f"\n{table(finished)}\n")
    say(f"results of each run: {path}")
    _raise_where_incomplete(progress)


def run_here(progress: Progress) -> None:
    """Run all on this machine, one after the other."""
    for run in progress.sweep.runs:
        if progress.is_open(run):
            _run(run, progress)


def _run(run: Planned, progress: Progress) -> None:
    """One run, with further attempts where it fails."""
    begin = time.monotonic()
    for left in range(progress.sweep.retries, -1, -1):
        progress.about(run, "continues" if is_started(run) else "starts")
        outcome = attempt(progress.job(run), os.environ)
        if not left or not outcome.may_retry:
            break
        progress.about(run, f"{exit_text(outcome)}: {outcome.error}; tried again")

    progress.ended(run, outcome, f"{time.monotonic() - begin:.0f} s")


def exit_text(outcome: Outcome) -> str:
    """The exit code, for messages."""
    return f"exit code {outcome.code}"


def _raise_where_incomplete(progress: Progress) -> None:
    missing = []
    if progress.errors:
        missing.append(f"{len(progress.errors)} failed")

    skipped = [run for run in progress.sweep.runs if run.number in progress.skipped]
    open_ones = [run for run in skipped if progress.results.of(run) is None]
    if open_ones:
        missing.append(f"{len(open_ones)} in use by another process")

    if missing:
        log = progress.sweep.folder / Path("NUMBER.log")
        raise SweepError(
            f"not finished, of {len(progress.sweep.runs)} runs: {', '.join(missing)}; the output "
            f"of each is in {log}, and the same command runs what is not finished"
        )
