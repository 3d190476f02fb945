"""Facts about a run from files that also runs of older versions have."""

import re
from typing import Any

from edkd.engine.log.status_file import top1s
from edkd.engine.log.time_left import epoch_seconds
from edkd.watch.files import Content, Files
from edkd.watch.status import count, is_possible, number, text

METRICS = "metrics.jsonl"
NONFINITE = "nonfinite.json"

_PAIR = r"^[\d: -]+ (\S+)  (\S.*?)  \S+: \d+ training images"
"""In the work log: method and networks of the first line of a run."""


def facts_of_files(files: Files) -> Content:
    """What is trained, and for how many epochs, from the configuration and the work log."""
    config = files.yaml("config.yaml")
    distiller = _group(config, "DISTILLER")
    solver = _group(config, "SOLVER")

    facts = {
        "method": distiller.get("TYPE"),
        "student": distiller.get("STUDENT"),
        "dataset": _group(config, "DATASET").get("TYPE"),
        "seed": solver.get("SEED"),
        "epochs": solver.get("EPOCHS"),
    }
    if not all(map(is_possible, facts.values())):
        files.note("config.yaml")

    # The configuration has a teacher also where the method uses none.
    found = re.search(_PAIR, files.text("worklog.txt"), re.MULTILINE)
    if found:
        teacher, _, student = found[2].rpartition(" -> ")
        facts["method"] = found[1]
        facts["teacher"] = teacher.split(" + ")
        facts["student"] = student.split(" + ")
    return facts


def facts_of_records(files: Files, epochs: Any) -> Content:
    """How far a run is, from the records of its epochs.

    Args:
        files: of the run.
        epochs: of the whole run.
    """
    records = files.records(METRICS)
    sound = [record for record in records if _is_sound(record)]
    if len(sound) < len(records):
        files.note(METRICS)

    facts: Content = {"epochs_done": len(sound), "step": None, **top1s(sound)}

    seconds = epoch_seconds(sound)
    left = (count(epochs) or 0) - len(sound)
    if seconds is not None and left > 0:
        facts["seconds_left"] = seconds * left
    return facts


def failure_of(files: Files, epochs_done: int) -> str:
    """What was not finite, from `nonfinite.json`; "" where there is none, or the run went on."""
    found = files.json(NONFINITE)
    epoch = count(found.get("epoch"))
    if epoch is None or epoch <= epochs_done:
        return ""

    figures = found.get("figures")
    values = figures if isinstance(figures, dict) else {}
    names = [name for name, value in values.items() if value in ("nan", "inf", "-inf")]
    what = ", ".join(names) or "a figure"
    reason = f"{what} not finite in epoch {epoch}, step {found.get('step')}"
    cause = text(found.get("cause"))
    return f"{reason}; {cause}" if cause else reason


def _group(config: Content, name: str) -> Content:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _is_sound(record: Content) -> bool:
    """Whether the figures of a record that are read here are numbers."""
    for key in ("test_top1", "val_top1", "train_seconds", "eval_seconds"):
        if number(record.get(key, 0.0)) is None:
            return False
    return True
