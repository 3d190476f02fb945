"""A method on a pair of networks: trained, stopped, resumed, evaluated, exported, timed."""

import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _common import in_turn
from _few_digits import NAME, register_few_digits, teacher_file
from _stepping import ignore, stepper
from torch import Tensor

from edkd.distillers import find_method, method_names
from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.config.load import load_config
from edkd.engine.config.table import table
from edkd.engine.run import evaluate_checkpoint, train
from edkd.engine.run_folder import run_folder
from edkd.engine.saved_run import Request, find_trained
from edkd.engine.trainer import Trainer
from edkd.errors import UserError
from edkd.export.exporting import Options, export
from edkd.registry import UPDATES
from edkd.signals import Stopped

BATCH_SIZE = 10
EPOCHS = 2
STOP_AFTER = 3
"""Steps, of two in each epoch: the run stops within its last epoch."""

SWITCHES = ("LSKD", "EAKD", "SHUFFLE_TEACHER")
"""Keys of DISTILLER that change what any method is given."""

OK = "ok"
REFUSED = "refused"
FAILED = "FAILED"


class Pair(NamedTuple):
    """Two networks for CIFAR."""

    teacher: str
    student: str

    def __str__(self) -> str:
        return f"{self.teacher} -> {self.student}"


class Cell(NamedTuple):
    """What came of a method on a pair."""

    status: str
    """OK, REFUSED or FAILED."""
    reason: str = ""
    extra_parameters: int = 0
    served: str = ""
    """What the teacher cache serves."""


class Place(NamedTuple):
    """Where the runs of a cell are, and how they train."""

    folder: Path
    teachers: Path
    """Folder of their weights."""
    device: torch.device
    amp: str = "off"
    exports: bool = True
    """Whether the student is exported, too."""


class CellError(Exception):
    """A run did not do what every run must do."""


class _StoppedHere(Stopped):
    """The stop of `stopped_after`, not of a signal, which ends the benchmark."""


# What is run.


def variants() -> list[str]:
    """All methods, and KD with each other update rule and each switch, as "KD DISTILLER.LSKD=True".

    Words after the method are keys and their values.
    """
    rules = [name for name in UPDATES.names() if name != "base"]
    keys = [f"DISTILLER.{name}" for name in SWITCHES if f"DISTILLER.{name}" in table()]
    changed = [f"SOLVER.TRAINER={name}" for name in rules] + [f"{key}=True" for key in keys]
    return [*method_names(), *(f"KD {word}" for word in changed)]


def words_of(variant: str, pair: Pair, place: Place) -> list[str]:
    """The configuration of a variant, as KEY=VALUE."""
    method, *own = variant.split()
    words = [
        f"DATASET.TYPE={NAME}",
        f"DISTILLER.TYPE={method}",
        "DISTILLER.CHECK_TEACHER=False",
        f"SOLVER.EPOCHS={EPOCHS}",
        "SOLVER.LR_DECAY_STAGES=[1]",
        f"SOLVER.BATCH_SIZE={BATCH_SIZE}",
        "SOLVER.LR=0.01",
        f"SOLVER.AMP={place.amp}",
        "LOG.WANDB=False",
        "LOG.TENSORBOARD_FREQ=0",
        f"LOG.PREFIX={place.folder}",
    ]

    file = functools.partial(teacher_file, pair.teacher, place.teachers)
    return [*words, *network_words(method, pair, file), *own]


def network_words(method: str, pair: Pair, teacher: Callable[[], Path]) -> list[str]:
    """The networks of a method, as KEY=VALUE.

    Args:
        teacher: returns the file of the teacher's weights; called where a method needs one.
    """
    words = []
    cls = find_method(method)
    if cls.needs_teacher:
        words += [f"DISTILLER.TEACHER={pair.teacher}", f"DISTILLER.TEACHER_CKPT={teacher()}"]
    if cls.is_cohort:
        number = max(cls.min_students, 2)
        students = [pair.teacher, *[pair.student] * (number - 1)]
        words.append(f"{method}.STUDENTS=[{','.join(students)}]")
    else:
        words.append(f"DISTILLER.STUDENT={pair.student}")
    return words


# What every run must do.


def run_cell(variant: str, pair: Pair, place: Place) -> Cell:
    """Train, stop, resume, evaluate and export; a method must do so, or refuse before it starts."""
    try:
        register_few_digits()
        words = words_of(variant, pair, place)
        result, served = check_run(words, place)
    except _Refused as refused:
        return Cell(REFUSED, str(refused))
    except Exception as error:
        return Cell(FAILED, f"{type(error).__name__}: {' '.join(str(error).split())}")
    return Cell(OK, "", result["extra_parameters"], served)


class _Refused(Exception):
    """A run that was refused before anything was written."""


def check_run(words: Sequence[str], place: Place) -> tuple[dict[str, Any], str]:
    """Make a run, and the same run in two parts; use its files.

    Returns:
        The content of `result.json`, and what the cache serves.

    Raises:
        _Refused: it does not start, and says why in one line.
        CellError: anything else that must not be.
    """
    whole, in_parts = (_folder(words, name) for name in ("whole", "parts"))
    result = _trained_or_refused([*words, "EXPERIMENT.NAME=whole"], whole, place)
    served = served_by_cache(whole)

    parts = [*words, "EXPERIMENT.NAME=parts"]
    with stopped_after(STOP_AFTER):
        _train(parts, place)
    if (in_parts / "result.json").exists():
        raise CellError(f"the run did not stop after {STOP_AFTER} steps")
    _train(parts, place, resume=True)

    check_equal(whole, in_parts)
    check_student_file(in_parts, place)
    return result, served


def _trained_or_refused(words: Sequence[str], folder: Path, place: Place) -> dict[str, Any]:
    """The result of a run; _Refused where it was refused as it must be."""
    try:
        return _train(words, place)
    except UserError as error:
        if folder.exists():
            raise CellError(f"refused after files were written: {error}") from error
        if "\n" in str(error):
            raise CellError(f"refused in several lines: {error}") from error
        raise _Refused(str(error)) from error


def _train(words: Sequence[str], place: Place, resume: bool = False) -> dict[str, Any]:
    """The result of a run; {} where it was stopped."""
    try:
        return train(_config(words), (), place.device, resume)
    except _StoppedHere:
        return {}


@contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Within the block, runs are stopped after a step, as by a signal."""
    original = Trainer.after_step

    def after_step(self: Trainer, epoch: int, step: int) -> None:
        original(self, epoch, step)
        if step == steps:
            raise _StoppedHere

    Trainer.after_step = after_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer.after_step = original  # type: ignore[method-assign]


def check_equal(one: Path, other: Path) -> None:
    """Raise CellError where two runs differ in a bit of their figures, weights or state."""
    if _figures(one) != _figures(other):
        raise CellError("resumed: other figures in metrics.jsonl")

    states = [load_checkpoint(folder / "latest") for folder in (one, other)]
    for part in ("model", "optimizer"):
        first, second = (dict(_leaves(state[part])) for state in states)
        wrong = [name for name in first | second if not _is_same(first.get(name), second.get(name))]
        if wrong:
            raise CellError(f"resumed: {part} differs in {', '.join(wrong[:3])}")


def check_student_file(folder: Path, place: Place) -> None:
    """Raise CellError where the student's file, or the exported one, has another test loss."""
    last = _figures(folder)[-1]
    stated = [value for name, value in last.items() if re.fullmatch(r"test_(\w+_)?loss", name)]
    file = folder / "student_latest"
    files = [file]
    if place.exports:
        files.append(folder / "exported.safetensors")
        options = Options(to="safetensors", out=str(files[-1]))
        export(Request(str(folder), "latest"), options, lambda known: known, ignore)

    for path in files:
        opts = ["SOLVER.AMP", place.amp]
        found = find_trained(Request(str(path), dataset=NAME, opts=opts))
        loss = evaluate_checkpoint(found.cfg, str(path), place.device, found.content)["loss"]
        if not any(math.isclose(loss, other, rel_tol=1e-5) for other in stated):
            raise CellError(f"{path.name} has a loss of {loss}, but its run had {stated}")


def served_by_cache(folder: Path) -> str:
    """What the log of a run says of the teacher cache; "" where there is no log."""
    log = folder / "worklog.txt"
    if not log.is_file():
        return ""
    lines = log.read_text(encoding="utf-8").splitlines()
    about = [line.partition("teacher cache: ")[2] for line in lines if "teacher cache: " in line]
    if not about:
        return "no teacher"
    if about[0].startswith("off"):
        return "nothing"
    method = json.loads((folder / "result.json").read_text())["method"]
    return ", ".join(find_method(method).teacher_needs)


# Times.


def step_seconds(
    variant: str, pair: Pair, place: Place, rounds: int, steps: int = 2
) -> dict[str, float]:
    """Median seconds of a step of a variant, and of the student alone, measured in turn."""
    register_few_digits()
    words = {"alone": words_of("NONE", pair, place), "method": words_of(variant, pair, place)}
    steppers = {
        name: stepper(_config(own), place.folder / "timed", place.device)
        for name, own in words.items()
    }
    runs = {name: functools.partial(run, steps) for name, run in steppers.items()}
    seconds = in_turn(runs, rounds, place.device)
    return {name: value / steps for name, value in seconds.items()}


# Parts.


def _config(words: Sequence[str]) -> Any:
    return load_config(opts=list(words))


def _folder(words: Sequence[str], name: str) -> Path:
    return run_folder(_config([*words, f"EXPERIMENT.NAME={name}"]))


def _figures(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times, which differ in each run."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if not name.endswith("_seconds")}
        for line in lines
    ]


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dictionaries and lists, by their dotted names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{name}.{number}")
    else:
        yield name, value


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        is_alike = one.dtype == other.dtype and one.shape == other.shape
        return is_alike and torch.equal(_bits(one), _bits(other))
    return type(one) is type(other) and one == other


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
