"""What the folder of a run says about the training of its student, for the model card."""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edkd.distillers import find_method
from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.file_facts import facts_of
from edkd.engine.saved_run import ENVIRONMENT, SavedRun, path_from_here, run_at
from edkd.engine.weight_source import PRETRAINED
from edkd.errors import UserError
from edkd.models import LibraryFacts, library_facts, own_keys
from edkd.results.finding import RESULT
from edkd.results.names import ALONE
from edkd.results.protocol import protocol_of

_SOLVER = ("EPOCHS", "BATCH_SIZE", "TYPE", "LR", "SCHEDULE", "WEIGHT_DECAY", "SEED")

_BESIDE_THE_PROTOCOL = ("DATASET.ROOT", "DATASET.LIST", "SOLVER.LABEL_SMOOTHING")
"""Keys that also decide the accuracy of a student, whatever its method."""


class Measured(NamedTuple):
    """An accuracy."""

    top1: float | None
    """In percent; None where it is not known."""
    where: str
    """What it was measured on, or who states it."""


UNKNOWN = Measured(None, "-")


def method_of(run: SavedRun) -> str:
    """DISTILLER.TYPE."""
    return str(run.values.get("DISTILLER.TYPE", ""))


def result_of(run: SavedRun) -> dict[str, Any]:
    """The content of `result.json`; {} where the run has not finished."""
    return _json(run.folder / RESULT)


def teachers_of(run: SavedRun) -> list[str]:
    """The names of a run's teachers; [] for a method without."""
    try:
        method = find_method(method_of(run))
    except UserError:  # its plugin was not imported
        return []
    if not method.needs_teacher:
        return []
    return _texts(run.values.get("DISTILLER.TEACHER"))


def teacher_accuracy(run: SavedRun, number: int) -> Measured:
    """What is known of the accuracy of a run's teacher.

    Args:
        number: of the teacher, from 0.
    """
    measured = result_of(run).get("teacher_top1")
    if isinstance(measured, list) and number < len(measured):
        return Measured(float(measured[number]), "images that chose the best epoch")

    # A file that this package wrote.
    path = _teacher_file(run, number)
    if path is not None:
        return Measured(_accuracy_in(path), f"as its file {path.name} states")

    # Pretrained weights.
    facts = facts_of_library(teachers_of(run)[number])
    if facts is None:
        return UNKNOWN
    return Measured(facts.accuracy, "as its library states, on the library's data")


def student_accuracy(run: SavedRun, file: str) -> Measured:
    """The accuracy of a student's file on the test set, where other images chose its epoch.

    Args:
        file: its name, as student_best; the students of a cohort have numbers, as student1_best.
    """
    result = result_of(run)
    name, _, tag = file.partition("_")
    which = {"best": "best", "latest": "last"}.get(tag)
    if which is None:
        return UNKNOWN

    if name == "student" and "best_student" in result:  # a copy of the file of one of several
        if which != "best":
            return UNKNOWN
        name = str(result["best_student"]).split()[0]
    own = "" if name == "student" else f"{name}_"
    top1 = result.get(f"{which}_test_{own}top1")
    return UNKNOWN if top1 is None else Measured(float(top1), "test images")


def alone(run: SavedRun, which: str) -> list[float]:
    """Accuracies of the same student without a teacher, in percent on the test set.

    They are those of finished runs in the same project, with the same images, initial weights and
    settings of training; the seed aside.

    Args:
        which: the "best" or the "last" epoch.
    """
    own = result_of(run)
    found = []
    for file in sorted(run.folder.absolute().parent.glob(f"*/{RESULT}")):
        other = _json(file)
        accuracy = other.get(f"{which}_test_top1")
        if not _is_alone(other, own) or not isinstance(accuracy, (int, float)):
            continue
        if _is_trained_alike(file.parent, run):
            found.append(float(accuracy))
    return found


def _is_alone(result: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether a result is that of the same student without a teacher."""
    if result.get("method") != ALONE:
        return False
    return all(result.get(key) == own.get(key) for key in ("student", "dataset", "epochs"))


def _is_trained_alike(folder: Path, run: SavedRun) -> bool:
    """Whether the run of a folder differs from another in the method and the seed alone."""
    try:
        values = run_at(folder).values
    except UserError:  # its configuration is damaged
        return False

    differing = protocol_of(values).differences(protocol_of(run.values))
    return not differing and _beside_the_protocol(values) == _beside_the_protocol(run.values)


def _beside_the_protocol(values: Mapping[str, Any]) -> dict[str, Any]:
    """What else decides the accuracy of a run's student."""
    found = {key: values.get(key) for key in _BESIDE_THE_PROTOCOL}
    for name in _texts(values.get("DISTILLER.STUDENT")):
        found |= own_keys(name, values)
    return found


def settings(run: SavedRun) -> str:
    """The hyper-parameters of a method, or of the methods in a sum; "" where it has none."""
    nodes = tuple(f"{name}." for name in method_of(run).split("+"))
    found = []
    for key, value in run.values.items():
        if key.startswith(nodes):
            found.append(f"{key} {value}")
    return ", ".join(found)


def optimisation(run: SavedRun) -> str:
    """The main settings of the optimizer."""
    found = []
    for key in _SOLVER:
        name = f"SOLVER.{key}"
        if name in run.values:
            found.append(f"{key} {run.values[name]}")
    return ", ".join(found)


def command_of(run: SavedRun) -> str:
    """The command of a run; "" where it is not known."""
    words = _json(run.folder / ENVIRONMENT).get("command")
    if not isinstance(words, list) or len(words) < 2:
        return ""

    program = str(words[1])
    is_tool = program.endswith(".py") and Path(program).name != "__main__.py"
    name = ["python", program] if is_tool else ["edkd"]
    arguments = [str(word) for word in words[2:]]
    return shlex.join([*name, *arguments])


def facts_of_library(name: str) -> LibraryFacts | None:
    """What a library says of its pretrained model; None for other models."""
    try:
        return library_facts(name)
    except UserError:  # the library is not installed here
        return None


def _teacher_file(run: SavedRun, number: int) -> Path | None:
    """The file of a teacher's weights; None for published ones."""
    paths = _texts(run.values.get("DISTILLER.TEACHER_CKPT"))
    if number >= len(paths) or paths[number] in ("", PRETRAINED):
        return None
    return Path(os.path.expanduser(path_from_here(paths[number], run.cwd)))


def _accuracy_in(path: Path) -> float | None:
    try:
        return facts_of(load_checkpoint(path)).accuracy
    except UserError:  # it was removed
        return None


def _texts(value: Any) -> list[str]:
    """The texts of a key that takes one or several."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [each for each in values if isinstance(each, str)]


def _json(path: Path) -> dict[str, Any]:
    """The content of a file of a run; {} where it is damaged or missing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
