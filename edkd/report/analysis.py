"""Evaluates the students of runs and their teachers on the test images, for the report."""

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from PIL import Image as Picture
from torch import Tensor

from edkd.dataset import DataSet
from edkd.distillers._math import mean_prediction
from edkd.engine.finished import DataSets, FinishedRun, TeacherSource, open_run
from edkd.engine.outputs import chosen_batches, collect, loader_of
from edkd.errors import EXPECTED, UserError
from edkd.report.findings import Findings, Measured, Problem, WrongImage
from edkd.report.measures import (
    Error,
    agreement,
    confident_errors,
    confusion,
    equal_size_bins,
    equal_width_bins,
    probabilities,
)
from edkd.report.subject import Line, Subject
from edkd.results.runs import Run

_SHOWN = 24
"""Wrong images of a row."""

_WEIGHTS = "student*"
"""Files of a run. Results that are published often come without them."""

_SIDE = 160
"""Pixels of the longer side of a picture at most."""

_SMALL = 64
"""Pixels up to which a picture is shown with visible pixels."""

Tell = Callable[[str], None]
"""Gets a line for each run, before it is evaluated."""

_TeacherKey: TypeAlias = tuple[TeacherSource, tuple[float, ...], int]
"""Where teachers come from, their weights in the mean, and the `id` of the data set."""


class _Opened(NamedTuple):
    """The first run of a row, for its pictures."""

    data: DataSet
    errors: Sequence[Error]


class _TeacherLogits:
    """Logits of the teachers of the last run: the next run mostly has the same ones."""

    def __init__(self) -> None:
        self._key: _TeacherKey | None = None
        self._logits = torch.empty(0)

    def of(self, opened: FinishedRun) -> Tensor:
        """(N,C); of several teachers, the logarithm of their mean prediction.

        Raises:
            UserError: the run has no teacher, or its weights are absent.
        """
        weights = opened.saved.values.get("DISTILLER.TEACHER_WEIGHTS") or []
        key = (opened.teacher_source, tuple(weights), id(opened.data))
        if key != self._key:
            self._logits = _teacher_logits(opened, weights)
            self._key = key
        return self._logits


class Analyst:
    """Measures the rows of subjects; data sets stay loaded from one run to the next.

    Args:
        device: auto, cuda, cuda:N, mps or cpu.
        tell: called with a line for each run.
    """

    def __init__(self, device: str, tell: Tell) -> None:
        self._device = device
        self._tell = tell
        self._datasets = DataSets()
        self._teachers = _TeacherLogits()

    def findings(self, subject: Subject) -> list[Findings]:
        """What the predictions of each row show.

        Where weights or data of a run are missing, the reason stands in their place.
        """
        return [self._of_line(line) for line in subject.lines]

    def _of_line(self, line: Line) -> Findings:
        measured: list[Measured] = []
        problems: list[Problem] = []
        first: _Opened | None = None
        for run in line.row.runs:
            if not any(run.folder.glob(_WEIGHTS)):
                problems.append(Problem(line.name, "no weights in the folder"))
                continue

            self._tell(f"evaluating {run.folder}")
            try:
                opened = open_run(run.folder, device=self._device, datasets=self._datasets)
                result, errors = _measure(opened, run, self._teachers)
            except EXPECTED as error:
                problems.append(Problem(line.name, _one_line(error)))
                continue

            if first is None:
                first = _Opened(opened.data, errors)
            else:  # one matrix is shown; those of 1000 classes have 8 MB
                result = result._replace(confusion=None)
            measured.append(result)

        if first is None:
            return Findings(line, [], [], (), problems)
        names = _class_names(first.data)
        return Findings(line, measured, _wrong_images(first, names), names, problems)


def _measure(
    opened: FinishedRun, run: Run, teachers: _TeacherLogits
) -> tuple[Measured, list[Error]]:
    """The measures of a run, and its most confident errors."""
    outputs = collect(opened.student, opened.data)
    if not outputs.logits.isfinite().all():
        raise UserError(f"logits of {opened.file} are not finite")
    target = outputs.target
    probability = probabilities(outputs.logits)
    confidence, predicted = probability.max(1)
    correct = predicted == target

    # The teacher, where there is one.
    comparison = None
    reason = "" if opened.has_teacher else "No teacher"
    try:
        if opened.has_teacher:
            comparison = agreement(outputs.logits, teachers.of(opened), target)
    except EXPECTED as error:
        reason = _one_line(error)

    measured = Measured(
        run=run,
        num_images=len(target),
        top1=100 * correct.double().mean().item(),
        confidence=100 * confidence.mean().item(),
        bins=equal_width_bins(confidence, correct),
        adaptive=equal_size_bins(confidence, correct),
        confusion=confusion(predicted, target, probability.shape[1]).numpy(),
        agreement=comparison,
        no_teacher=reason,
    )
    return measured, confident_errors(probability, target, _SHOWN)


def _teacher_logits(opened: FinishedRun, weights: Sequence[float]) -> Tensor:
    """See `_TeacherLogits.of`; without weights, all teachers have the same."""
    logits = [collect(teacher.network, opened.data).logits for teacher in opened.teachers]
    if len(logits) == 1:
        return logits[0]
    return mean_prediction(logits, weights or [1.0] * len(logits), temperature=1.0)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _class_names(data: DataSet) -> tuple[str, ...]:
    """The names of the classes; their numbers where there are no names."""
    return data.info.class_names or tuple(map(str, range(data.num_classes)))


# Pictures.


def _wrong_images(opened: _Opened, names: Sequence[str]) -> list[WrongImage]:
    """The images of errors, as PNG."""
    images = dict(_images(opened.data, {error.position for error in opened.errors}))
    return [
        WrongImage(
            uri=_data_uri(images[error.position], opened.data),
            is_small=max(images[error.position].shape) <= _SMALL,
            position=error.position,
            target=names[error.target],
            predicted=names[error.predicted],
            confidence=100 * error.confidence,
        )
        for error in opened.errors
    ]


def _images(data: DataSet, positions: set[int]) -> Iterator[tuple[int, Tensor]]:
    """The test images (3,H,W) at these positions, as the network gets them."""
    left = set(positions)
    batches = chosen_batches(loader_of(data, "test"))
    while left:
        batch = next(batches)
        for row, position in enumerate(batch.position.tolist()):
            if position in left:
                left.remove(position)
                yield position, batch.image[row].float().cpu()


def _data_uri(image: Tensor, data: DataSet) -> str:
    """A PNG file of an image (3,H,W), as a URI."""
    picture = Picture.fromarray(_pixels(image, data).permute(1, 2, 0).numpy())
    picture.thumbnail((_SIDE, _SIDE))

    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _pixels(image: Tensor, data: DataSet) -> Tensor:
    """The image (3,H,W) as uint8, without the normalisation of the network's input."""
    mean, std = data.info.mean, data.info.std
    if mean and std:
        plain = image * _per_channel(std) + _per_channel(mean)
    else:
        plain = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-6)
    return (255 * plain.clamp(0, 1)).round().to(torch.uint8)


def _per_channel(values: Any) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)
