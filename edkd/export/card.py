"""The model card: a Markdown page about an exported student."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import edkd
from edkd.engine.environment import device_name
from edkd.engine.profile import profile_network
from edkd.engine.saved_run import SavedRun
from edkd.export.loading import how_to_load
from edkd.export.source import CPU, Source
from edkd.export.training_facts import (
    UNKNOWN,
    Measured,
    alone,
    command_of,
    facts_of_library,
    method_of,
    optimisation,
    settings,
    student_accuracy,
    teacher_accuracy,
    teachers_of,
)
from edkd.export.verify import Agreement
from edkd.results.names import ALONE

_SHOWN_CLASSES = 20

_SPLITS = {"val": "images that chose the best epoch", "test": "test images"}
"""What an accuracy was measured on; "val": held-out training images, or a folder of their own."""

_PAGE = """# {file}: {model} for {dataset}

An image classifier, exported by edkd {version} from `{checkpoint}`.

## Accuracy

{accuracies}

## Cost

{costs}

## Input and classes

{input}

## Training

{training}

## Licence

{licence}Before you publish this model, check the licences of the data set and of all weights that
it was trained from.

## How to load it

{program}
"""

_INPUT = """- Input: float32 (N, {channels}, {height}, {width}), RGB.
- Preparation: {preparation} ({interpolation}, antialiased).
- Normalisation: pixels in [0, 1], minus {mean}, divided by {std}.
- Output: {num_classes} logits."""


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
    return _PAGE.format(
        file=exported.path.name,
        model=source.facts.architecture,
        dataset=source.facts.dataset,
        version=edkd.__version__,
        checkpoint=source.file.name,
        accuracies=_table(["network", "top-1, %", "measured on"], _accuracies(source)),
        costs=_table(["", ""], _costs(source, exported, small)),
        input=_input(source),
        training=_training(source),
        licence=_licence(source),
        program=how_to_load(source, exported.path, exported.form),
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


# Accuracy.


def _accuracies(source: Source) -> list[list[str]]:
    """A row for each teacher, the student alone, and this student."""
    run = source.run
    file = source.file.name
    which = "best" if file.endswith("_best") else "last"
    rows = _other_accuracies(run, which) if run else []

    # This student; where other images chose the epoch, the test images come after them.
    split = _SPLITS.get(source.split, UNKNOWN.where)
    rows.append(_row(f"this student, `{file}`", Measured(source.facts.accuracy, split)))

    if run and source.split == "val":
        rows.append(_row("the same weights", student_accuracy(run, file)))
    return rows


def _other_accuracies(run: SavedRun, which: str) -> list[list[str]]:
    """Rows for what a student is compared with."""
    rows = []
    for number, name in enumerate(teachers_of(run)):
        rows.append(_row(f"teacher {name}", teacher_accuracy(run, number)))
    if method_of(run) == ALONE:
        return rows

    found = alone(run, which)
    measured = UNKNOWN
    if found:
        seeds = "1 run" if len(found) == 1 else f"{len(found)} runs"
        measured = Measured(mean(found), f"test images, {which} epoch, {seeds}")
    return [*rows, _row("student alone", measured)]


def _row(name: str, measured: Measured) -> list[str]:
    top1 = UNKNOWN.where if measured.top1 is None else f"{measured.top1:.2f}"
    return [name, top1, measured.where]


# Cost.


def _costs(source: Source, exported: Exported, small: Quantized | None) -> list[list[str]]:
    profile = profile_network(source.network, source.input.image_shape, CPU)
    threads = "1 thread" if profile.threads == 1 else f"{profile.threads} threads"
    where = f"{device_name(CPU)}, {threads}"

    rows = [
        ["parameters", f"{profile.parameters:,}"],
        ["multiply-accumulate operations for one image", f"{profile.macs:,}"],
        ["size of the file", f"{exported.size / 1e6:.2f} MB"],
        [f"latency of one image in PyTorch, {where}", f"{profile.milliseconds:.2f} ms"],
        [f"compared with its checkpoint on {exported.images}", str(exported.agreement)],
    ]
    if small is not None:
        name = exported.path.with_suffix(".int8.onnx").name
        rows.append([f"INT8, `{name}`", str(small)])
    return rows


# Input, training, licence.


def _input(source: Source) -> str:
    spec = source.input
    channels, height, width = spec.image_shape

    size = " x ".join(map(str, spec.size))
    preparation = f"resized to {size} pixels"
    if spec.resize:
        preparation = f"shorter side resized to {spec.resize} pixels, centre cropped to {size}"
    if spec.padded_from:
        preparation += f", padded with black to {height} x {width}"

    text = _INPUT.format(
        channels=channels,
        height=height,
        width=width,
        preparation=preparation,
        interpolation=spec.interpolation,
        mean=list(spec.mean),
        std=list(spec.std),
        num_classes=source.facts.num_classes,
    )
    classes = _classes(source.facts.class_names)
    return f"{text}\n{classes}" if classes else text


def _classes(names: Sequence[str]) -> str:
    """A line with the first classes; "" where they are not known."""
    if not names:
        return ""
    shown = ", ".join(names[:_SHOWN_CLASSES])
    more = len(names) - _SHOWN_CLASSES
    return f"- Classes: {shown} and {more} more." if more > 0 else f"- Classes: {shown}."


def _training(source: Source) -> str:
    run = source.run
    data = f"Data set: {source.facts.dataset}, in {source.facts.num_classes} classes."
    if run is None:
        return _listed([data, "The run that trained it is not known."])

    values = settings(run)
    method = f"{method_of(run)}; {values}" if values else method_of(run)

    text = _listed([data, f"Method: {method}.", f"Optimisation: {optimisation(run)}."])
    command = command_of(run)
    return f"{text}\n\n```bash\n{command}\n```" if command else text


def _licence(source: Source) -> str:
    """A line for each teacher, with a blank line after them; "" where there is none."""
    teachers = teachers_of(source.run) if source.run else []

    lines = []
    for name in teachers:
        facts = facts_of_library(name)
        licence = facts.licence if facts else ""
        lines.append(f"Teacher {name}: {licence or 'licence not known'}.")
    return f"{_listed(lines)}\n\n" if lines else ""
