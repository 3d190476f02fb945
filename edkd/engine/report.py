"""Comparing runs: a table of what they reached, and a picture of how they came there."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from edkd.engine.load_cfg import saved_config
from edkd.errors import UserError

_NOT_OF_A_ROW = ("SOLVER.SEED", "EXPERIMENT.", "LOG.", "DATASET.ROOT", "DISTILLER.TEACHER_CKPT")
_SEED = re.compile(r",?(SOLVER\.)?(SEED|seed):\d+")


class Run(NamedTuple):
    """What a run left in its folder."""

    name: str
    """The folder's name without the seed."""
    config: str
    """`config.yaml` without seed, names and places: runs with the same name and this differ in their seed alone."""
    result: dict[str, Any]
    """`result.json`."""
    history: list[dict[str, float]]
    """`metrics.jsonl`."""


def read_run(folder: Path) -> Run:
    """Read a finished run. Raises UserError where the folder holds none."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        leaves = saved_config((folder / "config.yaml").read_text(encoding="utf-8"))
        config = str({key: value for key, value in leaves.items() if not key.startswith(_NOT_OF_A_ROW)})
        run = Run(_SEED.sub("", folder.name), config, result, history)
        table([run])  # raises here where something of it cannot be shown
        if not all(map(math.isfinite, _curve(run))):
            raise ValueError("an accuracy is no number")
    except (OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise UserError(f"{folder} holds no finished run ({type(error).__name__}: {error})") from None
    return run


def table(runs: Sequence[Run]) -> str:
    """A Markdown table: a row for each name, with the mean and the standard deviation over its seeds."""
    lines = ["| run | parameters | seeds | last top-1 (%) | best top-1 (%) |", "|---|--:|--:|--:|--:|"]
    for name, group in _rows(runs):
        reached = [_spread([_accuracy(run, which) for run in group]) for which in ("last", "best")]
        lines.append(f"| {name} | {group[0].result['parameters']:,} | {len(group)} | {' | '.join(reached)} |")
    return "\n".join(lines)


def draw_curves(runs: Sequence[Run], picture: Path) -> None:
    """Draw the accuracy of each epoch: the mean over the seeds as a line, their range as a band.

    Raises:
        UserError: matplotlib is absent, or does not know the picture's format.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise UserError("a picture needs matplotlib: pip install matplotlib") from None
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, group in _rows(runs):
        epochs = range(1, 1 + min(len(run.history) for run in group))
        columns = [[_curve(run)[epoch - 1] for run in group] for epoch in epochs]
        (line,) = axes.plot(epochs, [mean(column) for column in columns], label=name)
        axes.fill_between(epochs, [*map(min, columns)], [*map(max, columns)], color=line.get_color(), alpha=0.2, lw=0)
    final = [_curve(run)[-1] for run in runs]
    axes.set(xlabel="epoch", ylabel="top-1 accuracy (%)", ylim=(min(final) - 12, min(max(final) + 2, 100)))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    try:
        figure.savefig(picture, dpi=120)
    except (ValueError, OSError) as error:
        raise UserError(f"cannot write the picture {picture}: {error}") from None
    finally:
        pyplot.close(figure)


def _rows(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.name, run.config), []).append(run)
    return [(name, group) for (name, _), group in groups.items()]


def _accuracy(run: Run, which: str) -> float:
    """On the test set, which a run with a held-out split reports apart from what it chose by."""
    return run.result[f"{which}_test_top1"]


def _curve(run: Run) -> list[float]:
    split = "val_top1" if "val_top1" in run.history[0] else "test_top1"
    return [record[split] for record in run.history]


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")
