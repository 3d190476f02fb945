"""The comparison as CSV: a line for each method and pair, with full precision.

Accuracies are top-1 in percent on the test set. Several values are separated by semicolons. What is
not known is empty.

dataset, pair, method, row     method is its label; row also has the settings that tell rows apart
protocol, protocol_settings    code of the published protocol that was followed, and its settings
best_chosen_on                 images that chose the best epoch: test or val (held out)
seeds, runs, folders           several runs of a seed count as their mean
last_*, best_*                 mean, sample standard deviation, the value of each seed, and the
                               seeds that are outliers (they count)
compared                       epoch of the columns that follow: last or best
teacher_top1, vs_teacher       the teacher's accuracy, and the mean minus it
vs_alone                       the mean minus that of the student alone
baseline, vs_baseline, alpha   its row, the mean minus its mean, the significance level
low, high                      confidence interval of that difference, at 1 - alpha
t, df, p                       Welch's t-test, two-sided
verdict, no_verdict_because    BEATS, INCONCLUSIVE or WORSE; or why there is no test
seeds_needed                   of each method, for a power of 80 % at the observed difference
published*                     the published figure that fits best, and whether its protocol does
also_published                 the others: value, protocol, source
"""

import csv
import io
from collections.abc import Sequence
from statistics import mean
from typing import Any

from edkd.results.comparison import Cell, Column
from edkd.results.grid import Choice
from edkd.results.statistics import deviation_of, outliers
from edkd.results.verdicts import Judged, Verdict

Record = dict[str, Any]


def as_csv(tables: Sequence[Judged], choice: Choice) -> str:
    """A header and a line for each cell; what is not known is empty."""
    records = []

    for one in tables:
        for cell, verdict in one.rows:
            record = _about(one.column, cell)
            record |= _figures(cell)
            record |= _compared(one, cell, choice)
            record |= _tested(verdict)
            record |= _published(cell)
            records.append(record)

    text = io.StringIO()
    columns = list(records[0])
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().rstrip("\n")


def _about(column: Column, cell: Cell) -> Record:
    """What was trained, and how."""
    runs = cell.row.runs
    return {
        "dataset": column.dataset,
        "pair": column.pair,
        "method": cell.method,
        "row": cell.name,
        "protocol": cell.code,
        "protocol_settings": cell.run.protocol.describe(),
        "best_chosen_on": cell.run.split,
        "seeds": len(cell.row.seeds),
        "runs": len(runs),
        "folders": ";".join(str(run.folder) for run in runs),
    }


def _figures(cell: Cell) -> Record:
    """Means, deviations and outliers of both epochs."""
    found: Record = {}
    for by in ("last", "best"):
        values = cell.accuracies(by)
        groups = cell.row.seeds
        far = [str(groups[place][0].seed) for place in outliers(values)]

        found[f"{by}_mean"] = mean(values)
        found[f"{by}_sd"] = deviation_of(values)
        found[f"{by}_values"] = ";".join(str(value) for value in values)
        found[f"{by}_outlier_seeds"] = ";".join(far)
    return found


def _compared(one: Judged, cell: Cell, choice: Choice) -> Record:
    """The cell against the teacher, the student alone and the baseline."""
    own = cell.mean(choice.by)
    teacher = one.column.teacher_accuracies
    alone = one.column.alone
    baseline = one.baseline

    return {
        "compared": choice.by,
        "teacher_top1": mean(teacher) if teacher else None,
        "vs_teacher": own - mean(teacher) if teacher else None,
        "vs_alone": own - alone.mean(choice.by) if alone else None,
        "baseline": baseline.name if baseline else None,
        "vs_baseline": own - baseline.mean(choice.by) if baseline else None,
        "alpha": choice.alpha,
    }


def _tested(verdict: Verdict | None) -> Record:
    """The test against the baseline."""
    test = verdict.test if verdict else None
    found: Record = {}
    for name in ("low", "high", "t", "df", "p"):
        found[name] = getattr(test, name, None)

    found["verdict"] = verdict.word if verdict else None
    found["no_verdict_because"] = verdict.reason if verdict else "no baseline"
    found["seeds_needed"] = verdict.seeds if verdict else None
    return found


def _published(cell: Cell) -> Record:
    """The published figure that stands beside the cell, and all others."""
    first = cell.figures[0] if cell.figures else None
    others = [f"{each.value} {each.protocol} {each.source}" for each in cell.figures[1:]]
    return {
        "published": first.value if first else None,
        "published_sd": first.deviation if first else None,
        "published_protocol": first.protocol if first else None,
        "published_source": first.source if first else None,
        "published_same_protocol": first.fits(cell.code) if first else None,
        "also_published": ";".join(others),
    }
