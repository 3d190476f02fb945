"""How far the correlations between the classes differ in a student's and its teacher's logits.

Y. Tian, D. Krishnan, P. Isola, "Contrastive Representation Distillation", ICLR 2020,
arXiv:1910.10699, figure 2.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edkd.engine.outputs import LOGITS, collect, loader_of
from edkd.figures.drawing import (
    Drawing,
    Options,
    add_color_bar,
    finish,
    inches_wide,
    panels,
    titled,
)
from edkd.figures.subjects import Subject, Subjects


class Difference(NamedTuple):
    """Of the correlation matrices of a student and its teacher."""

    name: str
    teacher: str
    matrix: Tensor
    """(C,C), absolute differences, in [0, 2]."""

    @property
    def mean(self) -> float:
        """Over the pairs of different classes."""
        number = len(self.matrix)
        return self.matrix.sum().item() / (number * (number - 1))


def draw(paths: Sequence[Path], options: Options, say: Callable[[str], None]) -> Drawing:
    """Draw a heat map for each run, with a shared scale of colours.

    Raises:
        UserError: a run has no weights or data, or no run has a teacher.
    """
    subjects = Subjects(paths, options)
    of_teachers: dict[str, Tensor] = {}
    differences = []
    for i, student in enumerate(subjects.students):
        teacher = subjects.teacher_of(i)
        if teacher.name not in of_teachers:
            of_teachers[teacher.name] = _correlation_of(teacher, options)
        own = _correlation_of(student, options)
        matrix = (own - of_teachers[teacher.name]).abs()
        differences.append(Difference(student.name, teacher.name, matrix))

    number = loader_of(student.data, options.split).num_images
    number = min(number, options.images or number)
    teachers = ", ".join(of_teachers)
    note = (
        f"{subjects.about(options.split)}: {number}. Absolute difference between the "
        f"correlations of the logits of each two classes in the student and in {teachers}; mean: "
        "over the pairs of different classes. Darker is closer to the teacher."
    )
    lines = [
        f"{each.name}: mean absolute difference to {each.teacher} {each.mean:.4f}"
        for each in differences
    ]
    rows = [
        [each.name, i, j, value]
        for each in differences
        for i, row in enumerate(each.matrix.tolist())
        for j, value in enumerate(row)
    ]
    header = ["student", "class", "other_class", "difference"]
    return Drawing(_drawn(differences, note, options), note, header, rows, lines)


def _correlation_of(subject: Subject, options: Options) -> Tensor:
    outputs = collect(subject.network, subject.data, options.split, [LOGITS], limit=options.images)
    return correlation(outputs.logits)


def correlation(logits: Tensor) -> Tensor:
    """Pearson's correlation between the logits of each two classes, over the images.

    Args:
        logits: (N,C).

    Returns:
        (C,C), float64, in [-1, 1]; 0 beside the diagonal for a logit that is constant.
    """
    centred = logits.double() - logits.double().mean(0)
    norms = centred.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    unit = centred / norms
    matrix = (unit.T @ unit).clamp(-1, 1)
    return matrix.fill_diagonal_(1)


def _drawn(differences: Sequence[Difference], note: str, options: Options) -> Any:
    """The figure."""
    from matplotlib.ticker import MaxNLocator

    figure, all_axes = panels(len(differences), options.size, aspect=1.08)
    width = inches_wide(all_axes[0])
    highest = max(each.matrix.max().item() for each in differences)

    for axes, each in zip(all_axes, differences, strict=True):
        image = axes.imshow(
            each.matrix.numpy(),
            vmin=0,
            vmax=highest or 1,
            cmap="cividis",
            interpolation="nearest",
        )
        axes.set_title(f"{titled(each.name, width)}\nmean {each.mean:.3f}")
        axes.set(xlabel="class", ylabel="class")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=5))

    add_color_bar(figure, image, all_axes, "difference")
    finish(figure, note, options)
    return figure
