"""Running the trials of a study, one after the other, in this process.

A process of its own for each trial would import torch each time, and would have to send the figures
of each epoch back. All trials of a study share the teacher cache on disk.
"""

import gc
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from edkd.engine.best import top1_key
from edkd.engine.config.load import load_config
from edkd.engine.log.background import Record
from edkd.engine.log.status_file import STOPPED
from edkd.engine.run import train
from edkd.engine.run_folder import CONFIG, run_folder
from edkd.errors import NonFiniteError, UserError, reason_of
from edkd.folder_lock import lock
from edkd.signals import Stopped, hold
from edkd.sweep.options import words_of
from edkd.sweep.states import make_folder
from edkd.tune.outcome import EQUAL, ERROR, VALUES, equal_trial, write_trials
from edkd.tune.plan import TRIALS, Plan
from edkd.tune.study import JOURNAL, cut_torn_line, import_optuna, next_trial, open_study, reported

TOP1 = top1_key("val")
"""The figure that the search maximises: accuracy on held-out images, in percent."""

_FAILURES = (UserError, NonFiniteError, torch.OutOfMemoryError)
"""Errors of a combination of values; the search goes on. Others end the command."""

_LARGE = ("latest*", "best*", "epoch_*", "student*")
"""Files of a trial with weights; they are removed at its end."""

Say = Callable[[str], None]


class EndedEarly(Exception):
    """A trial is not worth its remaining epochs."""

    run_state = STOPPED


class Trial(NamedTuple):
    """A trial that is about to run."""

    optuna: Any
    """The trial of Optuna."""
    values: Mapping[str, str]
    """By keys, as on a command line."""
    words: list[str]
    """All options of its command line."""

    @property
    def number(self) -> int:
        """From 0."""
        return self.optuna.number

    def about(self, text: str) -> str:
        """A line about it."""
        return f"trial {self.number}: {' '.join(words_of(dict(self.values)))}: {text}"


def tune(plan: Plan, device: str, say: Say) -> Any:
    """Run the trials that are left; return the study.

    Args:
        plan: from `plan_study`.
        device: to train on.
        say: prints a line.

    Raises:
        UserError: the data or the weights are absent or damaged, the folder holds another study, or
            another process runs it.
        StorageError: the folder of the study cannot be made, or its journal cannot be read.
        Stopped: a signal arrived; the same command continues.
    """
    make_folder(plan.folder)
    with lock(plan.folder):
        is_new = not (plan.folder / JOURNAL).exists()
        try:
            return _run_all(plan, device, say)
        except Stopped as stopped:
            stopped.hint = "the same command continues from here"
            raise
        except UserError:
            if is_new and not _has_trained(plan.folder):
                shutil.rmtree(plan.folder, ignore_errors=True)
            raise


def _run_all(plan: Plan, device: str, say: Say) -> Any:
    """Run the trials that are left, in a folder that this process has locked."""
    cut_torn_line(plan.folder / JOURNAL)
    study = open_study(plan)
    while _run_next(study, plan, device, say):
        pass
    write_trials(plan, study)
    return study


def _run_next(study: Any, plan: Plan, device: str, say: Say) -> bool:
    """Run a trial; return whether there was one left."""
    with hold():  # a signal must not interrupt a line of the journal
        drawn = next_trial(study, plan)
        if drawn is None:
            return False
        own = plan.start or {}
        space = plan.source.space
        values = {key: each.suggest(drawn, key, own.get(key)) for key, each in space.items()}
        drawn.set_user_attr(VALUES, values)

    trial = Trial(drawn, values, words_of(plan.options(drawn.number, values)))
    begin = time.monotonic()
    outcome = _repeat(study, trial) or _run(study, trial, plan, device)
    say(trial.about(f"{outcome}, {time.monotonic() - begin:.0f} s"))
    write_trials(plan, study)
    return True


def _repeat(study: Any, trial: Trial) -> str:
    """Give a trial the result of an earlier one with the same values; "" where there is none."""
    equal = equal_trial(study, trial.number, trial.values)
    if equal is None:
        return ""

    is_pruned = equal.state == import_optuna().trial.TrialState.PRUNED
    with hold():
        trial.optuna.set_user_attr(EQUAL, equal.number)
        study.tell(trial.optuna, None if is_pruned else equal.value, state=equal.state)
    return f"as trial {equal.number}, and not trained again"


def _run(study: Any, trial: Trial, plan: Plan, device: str) -> str:
    """Run a trial and note how it ended; return that in words."""
    state = import_optuna().trial.TrialState
    try:
        top1 = _train(trial, plan, device)
    except EndedEarly as early:
        with hold():
            study.tell(trial.optuna, state=state.PRUNED)
        outcome = str(early)
    except _FAILURES as error:
        is_first = not any(each.intermediate_values for each in study.get_trials(deepcopy=False))
        if isinstance(error, UserError) and is_first:  # of the data or weights, for all trials
            raise
        with hold():
            trial.optuna.set_user_attr(ERROR, reason_of(error))
            study.tell(trial.optuna, state=state.FAIL)
        outcome = f"failed: {reason_of(error)}"
    else:
        with hold():
            study.tell(trial.optuna, top1)
        outcome = f"{top1:.2f} % held out after {plan.epochs} epochs"

    _free_memory(plan.folder / TRIALS / str(trial.number))
    return outcome


def _train(trial: Trial, plan: Plan, device: str) -> float:
    """Train, or continue, a trial; return its held-out accuracy after the last epoch, in percent.

    Raises:
        EndedEarly: other trials were better at this point.
    """
    cfg = load_config(plan.source.config, trial.words)
    folder = run_folder(cfg, trial.words)
    is_started = (folder / CONFIG).is_file()
    known = reported(trial.optuna)

    def on_epoch(record: Record) -> None:
        epoch = int(record["epoch"])
        if epoch not in known:
            trial.optuna.report(record[TOP1], epoch)
        if epoch < plan.epochs and trial.optuna.should_prune():
            raise EndedEarly(f"{record[TOP1]:.2f} % held out, ended after epoch {epoch}")

    # Figures that an interrupted call has not noted.
    missing = _records(folder) if is_started else []
    with hold():
        for record in missing:
            if record["epoch"] not in known:
                on_epoch(record)

    result = train(cfg, trial.words, device, resume=is_started, on_epoch=on_epoch)
    return result[f"last_{TOP1}"]


def _records(folder: Path) -> list[Record]:
    """The epochs that a run has logged; none where the file is absent or damaged."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []


def _free_memory(folder: Path) -> None:
    """Remove the weights of a trial that has ended, from the disk and from the device."""
    for pattern in _LARGE:
        for file in folder.glob(pattern):
            if file.is_file():
                file.unlink(missing_ok=True)

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _has_trained(folder: Path) -> bool:
    """Whether a study has anything that is worth keeping."""
    return (folder / TRIALS).exists() or not (folder / JOURNAL).exists()
