"""The model card: a Markdown page about an exported student."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import edkd
from edkd.distillers import find_method
from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.environment import device_name
from edkd.engine.file_facts import facts_of
from edkd.engine.profile import profile_network
from edkd.engine.saved_run import ENVIRONMENT, SavedRun, path_from_here
from edkd.errors import UserError
from edkd.export.loading import how_to_load
from edkd.export.source import CPU, Source
from edkd.export.verify import Agreement
from edkd.models import LibraryFacts, library_facts
from edkd.results.runs import RESULT

ALONE = "NONE"
"""DISTILLER.TYPE of a student that is trained without a teacher."""

_SOLVER = ("EPOCHS", "BATCH_SIZE", "TYPE", "LR", "SCHEDULE", "WEIGHT_DECAY", "SEED")
_SHOWN_CLASSES = 20
_DASH = "-"


class Exported(NamedTuple):
    """The file that the card belongs to."""

    path: Path
    form: str
    """As the value of --to."""
    size: int
    """In bytes."""
    agreement: Agreement
    images: str
    """What the network was compared with its checkpoint on."""


class Quantized(NamedTuple):
    """The same network in INT8."""

    content: bytes
    megabytes_before: float
    accuracy_before: float
    """Of the float32 graph, top-1 in percent on the test set."""
    accuracy: float
    images: int
    """Of the test set."""

    def __str__(self) -> str:
        return (
            f"{len(self.content) / 1e6:.2f} MB, {self.megabytes_before:.2f} MB before; top-1 "
            f"{self.accuracy:.2f} %, {self.accuracy_before:.2f} % before, on {self.images} test "
            "images"
        )


def card(source: Source, exported: Exported, small: Quantized | None) -> str:
    """The text of the card; a dash stands for what is not known."""
    name = source.facts.architecture
    dataset = source.facts.dataset
    parts = [
        f"# {exported.path.name}: {name} for {dataset}",
        f"An image classifier, exported by edkd {edkd.__version__} from `{source.file.name}`.",
        "## Accuracy",
        _table(["network", "top-1, %", "measured on"], _accuracies(source)),
        "## Cost",
        _table(["", ""], _costs(source, exported, small)),
        "## Input and classes",
        _input(source),
        "## Training",
        _training(source),
        "## Licence",
        _licence(source),
        "## How to load it",
        how_to_load(source, exported.path, exported.form),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, (int, float)) else _DASH


# Accuracy.


def _accuracies(source: Source) -> list[list[str]]:
    """A row for the teacher, the student alone, and this student."""
    file = source.file
    rows = []
    run = source.run
    result = _json(run.folder / RESULT) if run else {}
    which = "best" if file.name.endswith("_best") else "last"

    # The teacher and the student without it.
    if run and (teachers := _teachers(run)):
        for number, name in enumerate(teachers):
            accuracy, where = _teacher_accuracy(run, result, number, name)
            rows.append([f"teacher {name}", _percent(accuracy), where])
    if run and _method(run) != ALONE:
        alone = _alone(run, result, which)
        seeds = f"{which} epoch, {len(alone)} seed{'s' if len(alone) > 1 else ''}"
        accuracy = mean(alone) if alone else None
        rows.append(["student alone", _percent(accuracy), seeds if alone else _DASH])

    # This student.
    split = {"val": "held-out training images", "test": "test images"}.get(source.split, _DASH)
    rows.append([f"this student, `{file.name}`", _percent(source.facts.accuracy), split])
    if source.split == "val" and f"{which}_test_top1" in result:
        accuracy = result[f"{which}_test_top1"]
        rows.append([f"this student, {which} epoch", _percent(accuracy), "test images"])
    return rows


def _teacher_accuracy(
    run: SavedRun, result: Mapping[str, Any], number: int, name: str
) -> tuple[float | None, str]:
    """What is known of a teacher's accuracy, and from where."""
    measured = result.get("teacher_top1")
    if isinstance(measured, list) and number < len(measured):
        return measured[number], "the images of this run"

    path = _teacher_file(run, number)
    with suppress(UserError):
        accuracy = facts_of(load_checkpoint(path)).accuracy if path else None
        if accuracy is not None:
            return accuracy, "its file"
    facts = _library_facts(name)
    if facts is not None and facts.accuracy is not None:
        return facts.accuracy, "claimed by its library, on its own data"
    return None, _DASH


def _alone(run: SavedRun, result: Mapping[str, Any], which: str) -> list[float]:
    """Accuracies of the same student alone, of finished runs in the same project.

    They have the same data set and number of epochs.
    """
    found = []
    for file in sorted(run.folder.absolute().parent.glob(f"*/{RESULT}")):
        other = _json(file)
        is_same = all(other.get(key) == result.get(key) for key in ("student", "dataset", "epochs"))
        accuracy = other.get(f"{which}_test_top1")
        if other.get("method") == ALONE and is_same and isinstance(accuracy, (int, float)):
            found.append(float(accuracy))
    return found


# Cost.


def _costs(source: Source, exported: Exported, small: Quantized | None) -> list[list[str]]:
    profile = profile_network(source.network, source.input.image_shape, CPU)
    threads = f"{profile.threads} thread{'s' if profile.threads > 1 else ''}"
    rows = [
        ["parameters", f"{profile.parameters:,}"],
        ["multiply-accumulate operations of an image", f"{profile.macs:,}"],
        ["size of the file", f"{exported.size / 1e6:.2f} MB"],
        [
            f"latency of one image in PyTorch, {device_name(CPU)}, {threads}",
            f"{profile.milliseconds:.2f} ms",
        ],
        [f"compared with its checkpoint on {exported.images}", str(exported.agreement)],
    ]
    if small is not None:
        rows.append([f"INT8, `{exported.path.with_suffix('.int8.onnx').name}`", str(small)])
    return rows


# Input, training, licence.


def _input(source: Source) -> str:
    spec = source.input
    channels, height, width = spec.image_shape
    how = f"resized to {height} x {width}"
    if spec.resize:
        how = f"shorter side resized to {spec.resize}, centre cropped to {height} x {width}"
    lines = [
        f"- Input: float32 (N, {channels}, {height}, {width}), RGB; {how} pixels "
        f"({spec.interpolation}, antialiased).",
        f"- Normalisation: pixels in [0, 1], minus {list(spec.mean)}, divided by {list(spec.std)}.",
        f"- Output: {source.facts.num_classes} logits.",
    ]

    names = source.facts.class_names
    if names:
        more = len(names) - _SHOWN_CLASSES
        shown = ", ".join(names[:_SHOWN_CLASSES]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"- Classes: {shown}.")
    return "\n".join(lines)


def _training(source: Source) -> str:
    run = source.run
    if run is None:
        return f"Data set: {source.facts.dataset}. The run is not known."

    method = _method(run)
    lines = [f"- Data set: {source.facts.dataset}."]
    lines += [f"- Method: {method}; {_settings(run, method)}."]
    solver = [
        f"{key} {run.values[f'SOLVER.{key}']}" for key in _SOLVER if f"SOLVER.{key}" in run.values
    ]
    lines.append(f"- Optimisation: {', '.join(solver)}.")

    command = _command(run)
    return "\n".join(lines) + (f"\n\n```bash\n{command}\n```" if command else "")


def _settings(run: SavedRun, method: str) -> str:
    """The hyper-parameters of a method, or of the methods in a sum."""
    nodes = tuple(f"{name}." for name in method.split("+"))
    found = [f"{key} {value}" for key, value in run.values.items() if key.startswith(nodes)]
    return ", ".join(found) or "no hyper-parameters"


def _command(run: SavedRun) -> str:
    """The command of a run; "" where it is not known."""
    words = _json(run.folder / ENVIRONMENT).get("command")
    if not isinstance(words, list) or len(words) < 2:
        return ""
    _, program, *arguments = map(str, words)
    is_tool = program.endswith(".py") and Path(program).name != "__main__.py"
    name = ["python", program] if is_tool else ["edkd"]
    return shlex.join([*name, *arguments])


def _licence(source: Source) -> str:
    teachers = _teachers(source.run) if source.run else []
    lines = []
    for name in teachers:
        facts = _library_facts(name)
        licence = facts.licence if facts is not None else ""
        about = f"licence {licence}" if licence else "licence not known"
        lines.append(f"- Teacher {name}: {about}.")
    lines.append(
        "Before you publish this model, check the licences of the data set and of all weights "
        "that it was trained from."
    )
    return "\n\n".join(["\n".join(lines[:-1]), lines[-1]]).strip()


# What the folder of the run says.


def _method(run: SavedRun) -> str:
    return str(run.values.get("DISTILLER.TYPE", ""))


def _teachers(run: SavedRun) -> list[str]:
    """The names of a run's teachers; [] for a method without."""
    try:
        needs_one = find_method(_method(run)).needs_teacher
    except UserError:
        return []
    return list(_texts(run.values.get("DISTILLER.TEACHER"))) if needs_one else []


def _teacher_file(run: SavedRun, number: int) -> Path | None:
    """The file of a teacher's weights; None for published ones."""
    paths = list(_texts(run.values.get("DISTILLER.TEACHER_CKPT")))
    if number >= len(paths) or not paths[number]:
        return None
    return Path(os.path.expanduser(path_from_here(paths[number], run.cwd)))


def _texts(value: Any) -> Iterator[str]:
    """The texts of a key that takes one or several."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return (each for each in values if isinstance(each, str))


def _library_facts(name: str) -> LibraryFacts | None:
    """What a library says of its pretrained model; None for other models."""
    try:
        return library_facts(name)
    except UserError:  # the library is not installed here
        return None


def _json(path: Path) -> dict[str, Any]:
    """The content of a file of a run; {} where it is damaged or missing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
