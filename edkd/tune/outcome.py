"""What a study has found: its table, its files, and what it has cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edkd.engine.checkpoint import save_text
from edkd.sweep.states import csv_text
from edkd.tune.plan import TRIALS, Plan
from edkd.tune.study import ended, importance

VALUES = "values"
"""Of a trial, in the study: its values as on a command line."""

EQUAL = "equal"
"""Of a trial that was not trained, in the study: the number of the one with the same values."""

ERROR = "error"
"""Of a failed trial, in the study: one line."""

RESULTS = "trials.csv"

SHOWN = 10
"""Trials in the table at most."""

ENOUGH = 8
"""Complete trials from which on the importance of the keys is computed."""

_STATES = {"COMPLETE": "complete", "PRUNED": "ended early", "FAIL": "failed", "RUNNING": "started"}


class Row(NamedTuple):
    """A trial."""

    number: int
    """From 0."""
    state: str
    """One of the values of _STATES."""
    epochs: int
    """That it has trained."""
    top1: float | None
    """Held-out accuracy after the last of these, in percent; None where there is none."""
    values: dict[str, str]
    """That it tried, by keys."""
    trained: int
    """The trial that was trained with these values: this one, or an earlier one."""
    error: str
    """Of a failed trial, in one line."""


class Budget(NamedTuple):
    """What a study has cost."""

    trials: int
    ended_early: int
    repeated: int
    """Not trained, because an earlier one had the same values."""
    failed: int
    epochs: int
    """Of all trials together."""


def rows_of(study: Any) -> list[Row]:
    """The trials of a study, those that run included."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name not in _STATES:  # it waits
            continue

        rows.append(
            Row(
                trial.number,
                _STATES[trial.state.name],
                len(trial.intermediate_values),
                _top1(trial),
                trial.user_attrs.get(VALUES, {}),
                trial.user_attrs.get(EQUAL, trial.number),
                trial.user_attrs.get(ERROR, ""),
            )
        )
    return rows


def _top1(trial: Any) -> float | None:
    """The result of a complete trial; of others, the last figure that they have reported."""
    last = trial.last_step
    if last is None:
        return trial.value
    return trial.intermediate_values[last]


def equal_trial(study: Any, number: int, values: Mapping[str, str]) -> Any:
    """An earlier trial that was trained with the same values, complete or ended early; or None.

    Args:
        study: of Optuna.
        number: of the trial that is about to run.
        values: of this trial, by keys.
    """
    for trial in study.get_trials(deepcopy=False):
        is_trained = trial.state.name in ("COMPLETE", "PRUNED") and EQUAL not in trial.user_attrs
        if trial.number < number and is_trained and trial.user_attrs.get(VALUES) == values:
            return trial
    return None


def complete(study: Any) -> list[Row]:
    """The complete trials, the best one first; of equal ones, the earlier one."""
    rows = [row for row in rows_of(study) if row.state == "complete" and row.top1 is not None]
    return sorted(rows, key=lambda row: (-(row.top1 or 0.0), row.number))


def budget_of(study: Any) -> Budget:
    """What a study has cost so far."""
    rows = rows_of(study)
    states = [row.state for row in rows]
    return Budget(
        len(ended(study)),
        states.count("ended early"),
        sum(row.trained != row.number for row in rows),
        states.count("failed"),
        sum(row.epochs for row in rows),
    )


def budget_text(plan: Plan, study: Any) -> str:
    """The cost in one line, for the report of a result."""
    budget = budget_of(study)
    runs = budget.epochs / plan.epochs
    notes = [
        f"{budget.ended_early} ended early",
        f"{budget.repeated} repeated",
        f"{budget.failed} failed",
    ]
    counted = [note for note in notes if not note.startswith("0 ")]
    about = f" ({', '.join(counted)})" if counted else ""
    return (
        f"{budget.trials} trials{about}, {budget.epochs} epochs in total, as many as {runs:.1f} "
        f"trials of {plan.epochs} epochs"
    )


def table(plan: Plan, study: Any) -> str:
    """The best trials, in Markdown."""
    keys = list(plan.source.space)
    lines = [
        f"| trial | held-out top-1 (%) | {' | '.join(keys)} |",
        f"|--:|--:|{'--:|' * len(keys)}",
    ]

    for row in complete(study)[:SHOWN]:
        values = " | ".join(row.values[key] for key in keys)
        mark = " (own values)" if is_start(plan, row) else ""
        lines.append(f"| {row.number}{mark} | {row.top1:.2f} | {values} |")
    return "\n".join(lines)


def is_start(plan: Plan, row: Row) -> bool:
    """Whether a trial has the values of the configuration itself."""
    return row.number == 0 and plan.start is not None


def importance_text(plan: Plan, study: Any) -> str:
    """The importance of the keys in one line; "" where there are too few trials."""
    count = len(complete(study))
    if count < ENOUGH:
        return ""

    found = importance(study, list(plan.source.space))
    shares = [f"{key} {share:.2f}" for key, share in found.items()]
    note = f"Optuna's PED-ANOVA over {count} complete trials"
    return f"importance of the keys ({note}): {', '.join(shares)}" if shares else ""


def write_trials(plan: Plan, study: Any) -> Path:
    """Write a line for each trial to `trials.csv`, and return its path."""
    keys = list(plan.source.space)
    lines: list[Sequence[Any]] = [
        ["trial", "state", *keys, "epochs", "held_out_top1", "folder", "error"]
    ]

    for row in rows_of(study):
        values = [row.values.get(key, "") for key in keys]
        top1 = "" if row.top1 is None else row.top1
        folder = plan.folder / TRIALS / str(row.trained)
        lines.append([row.number, row.state, *values, row.epochs, top1, folder, row.error])

    path = plan.folder / RESULTS
    save_text(csv_text(lines), path)
    return path
