"""A table of accuracies, in Markdown."""

from collections.abc import Sequence
from statistics import mean, stdev

from edkd.results.runs import Row, Run, group_runs

_HEADER = """\
| run | parameters | seeds | last top-1 (%) | best top-1 (%) |
|---|--:|--:|--:|--:|"""


def table(runs: Sequence[Run]) -> str:
    """A row for each name and settings: mean and standard deviation over the seeds.

    "last" is the accuracy after the last epoch on the test set, "best" that of the best epoch.
    """
    lines = [_HEADER]
    for row in group_runs(runs):
        cells = [
            row.name.replace("|", "\\|"),
            f"{row.runs[0].result['parameters']:,}",
            count_of(row),
            spread(row.accuracies("last")),
            spread(row.accuracies("best")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and sample standard deviation: "74.10 ± 0.25"; one value has no deviation."""
    text = f"{mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {stdev(values):.{digits}f}"
    return text


def count_of(row: Row) -> str:
    """The number of seeds, and of runs where it differs."""
    seeds = len(row.seeds)
    runs = len(row.runs)
    return f"{seeds}" if seeds == runs else f"{seeds} ({runs} runs)"
