"""Similarity of the stages of two networks: linear centred kernel alignment, CKA.

S. Kornblith, M. Norouzi, H. Lee, G. Hinton, "Similarity of Neural Network Representations
Revisited", ICML 2019, arXiv:1905.00414.

HSIC is estimated without bias on batches, and averaged before the division: T. Nguyen, M. Raghu,
S. Kornblith, "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021, arXiv:2010.15327,
equations 2 and 3.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from edkd.engine.outputs import POOLED, chosen_batches, loader_of, stage_maps
from edkd.errors import UserError
from edkd.figures.drawing import (
    SMALL,
    Drawing,
    Options,
    add_color_bar,
    finish,
    inches_wide,
    panels,
    titled,
)
from edkd.figures.subjects import Subject, Subjects

IMAGES = 1024
"""By default."""

BATCH = 256
"""Images of an estimate of HSIC."""

_FEWEST = 4
"""The estimate needs so many."""

_MOST_PANELS = 8


class Similarity(NamedTuple):
    """Of the stages of two networks."""

    one: str
    other: str
    stages: tuple[list[str], list[str]]
    values: Tensor
    """(stages of the one, stages of the other), 1 for equal representations."""


def draw(paths: Sequence[Path], options: Options, say: Callable[[str], None]) -> Drawing:
    """Draw a heat map for each student and its teacher, or for each two students.

    Raises:
        UserError: a run has no weights or data, no run has a teacher, or there are too many pairs.
    """
    subjects = Subjects(paths, options)
    pairs = _pairs(subjects, options.between)
    if len(pairs) > _MOST_PANELS:
        raise UserError(f"{len(pairs)} pairs of networks are too many; give fewer runs")

    images = Images(options)
    similarities = []
    for one, other in pairs:
        say(f"CKA of {one.name} and {other.name}")
        similarities.append(similarity(one, other, images))

    number = len(positions_of(subjects.students[0], options))
    note = (
        f"{subjects.about(options.split)}: {number}. Linear CKA of whole feature maps, from the "
        f"unbiased estimate of HSIC on batches of {min(BATCH, number)} images; 1: equal up to a "
        "rotation and a scale."
    )
    rows = [row for each in similarities for row in _rows(each)]
    lines = [_summary(each) for each in similarities]
    header = ["network", "other_network", "stage", "other_stage", "cka"]
    return Drawing(_drawn(similarities, note, options), note, header, rows, lines)


def _summary(each: Similarity) -> str:
    """The last two stages, in a line."""
    pooled = each.values[-2, -2].item()
    logits = each.values[-1, -1].item()
    return (
        f"{each.one} and {each.other}: CKA of the pooled features {pooled:.3f}, of the logits "
        f"{logits:.3f}"
    )


def _rows(each: Similarity) -> Iterator[list[Any]]:
    """The values with the names of their stages."""
    rows, columns = each.stages
    for (i, j), value in np.ndenumerate(each.values.numpy()):
        yield [
            each.one,
            each.other,
            rows[i],
            columns[j],
            float(value),
        ]


def _pairs(subjects: Subjects, between: str) -> list[tuple[Subject, Subject]]:
    students = subjects.students
    if between == "teacher":
        return [(student, subjects.teacher_of(i)) for i, student in enumerate(students)]
    return list(combinations(students, 2)) or [(students[0], students[0])]


def positions_of(subject: Subject, options: Options) -> Tensor:
    """The images of the figure in a random order, so that each batch has all classes."""
    number = loader_of(subject.data, options.split).num_images
    wanted = min(number, options.images or IMAGES)
    if wanted < _FEWEST:
        raise UserError(f"{wanted} images are too few for CKA; give at least {_FEWEST}")
    usable = wanted if wanted < BATCH else wanted - wanted % BATCH
    generator = torch.Generator().manual_seed(options.seed)
    return torch.randperm(wanted, generator=generator)[:usable]


@torch.inference_mode()
def similarity(one: Subject, other: Subject, images: "Images") -> Similarity:
    """Run two networks on the same images and compare all their stages."""
    estimate = Estimate()
    stages: tuple[list[str], list[str]] = ([], [])
    for batch in zip(images.batches(one), images.batches(other), strict=True):
        left = grams(one, batch[0])
        right = grams(other, batch[1])
        stages = (list(left), list(right))
        estimate.add(list(left.values()), list(right.values()))
    return Similarity(one.name, other.name, stages, estimate.cka())


class Images:
    """The images of the networks; those of a data set are read once, and held on the CPU."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._of_data: dict[int, Tensor] = {}

    def batches(self, subject: Subject) -> Iterator[Tensor]:
        """Batches of one size, in the order of `positions_of`, on the device of a network."""
        images = self._read(subject)
        for part in positions_of(subject, self._options).split(BATCH):
            yield images[part].to(subject.device)

    def _read(self, subject: Subject) -> Tensor:
        """(N,3,H,W), in the order of the set."""
        key = id(subject.data)
        if key not in self._of_data:
            loader = loader_of(subject.data, self._options.split)
            chosen = chosen_batches(loader, self._options.images or IMAGES)
            self._of_data[key] = torch.cat([batch.image.cpu() for batch in chosen])
        return self._of_data[key]


def grams(subject: Subject, image: Tensor) -> dict[str, Tensor]:
    """The Gram matrix of each stage for images (N,3,H,W), by the name of the stage.

    Stage 0 is the stem in the networks of this package. Whole feature maps take much memory, so
    they are not kept.
    """
    logits, features = subject.network(image)
    maps = stage_maps(features)
    named = {f"stage {number}": each for number, each in enumerate(maps)}
    named["pooled"] = features[POOLED]
    named["logits"] = logits
    return {name: gram(each.float().flatten(1)) for name, each in named.items()}


# The estimate.


class Estimate:
    """CKA of each two representations, from batches of one size."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    def add(self, ones: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Add a batch.

        Args:
            ones: Gram matrices (N,N), see `gram`.
            others: of the same images in other representations.
        """
        between = [torch.stack([hsic(k, m) for m in others]) for k in ones]
        of_ones = [hsic(k, k) for k in ones]
        of_others = [hsic(m, m) for m in others]

        sums = [torch.stack(each) for each in (between, of_ones, of_others)]
        before = self._sums or [torch.zeros_like(each) for each in sums]
        self._sums = [old + new for old, new in zip(before, sums, strict=True)]

    def cka(self) -> Tensor:
        """(ones, others), float64 on the CPU; NaN where a representation is constant."""
        between, of_ones, of_others = self._sums
        return between / (of_ones[:, None] * of_others[None, :]).sqrt()


def cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of two representations of the same images.

    Args:
        x: (N,D).
        y: (N,E).

    Returns:
        About 1 where both are equal up to a rotation and a scale, about 0 where they are unrelated;
        the estimate has no bias and so can be slightly negative.

    Example:
        >>> x = torch.randn(64, 10)
        >>> round(cka(x, 3 * x), 6)
        1.0
    """
    estimate = Estimate()
    estimate.add([gram(x)], [gram(y)])
    return estimate.cka().item()


def gram(x: Tensor) -> Tensor:
    """The products of each two images (N,N) of a representation (N,D), 0 on the diagonal.

    The mean is subtracted first: it does not change HSIC, but the rounding. The result is float64
    on the CPU.
    """
    centred = x - x.mean(0)
    return (centred @ centred.T).cpu().double().fill_diagonal_(0)


def hsic(k: Tensor, m: Tensor) -> Tensor:
    """The unbiased estimate of HSIC from two Gram matrices (N,N) whose diagonals are 0.

    L. Song et al., "Feature Selection via Dependence Maximization", JMLR 13, 2012, equation 5.
    """
    n = len(k)
    trace = (k * m).sum()
    means = k.sum() * m.sum() / ((n - 1) * (n - 2))
    cross = 2 * (k.sum(0) @ m.sum(0)) / (n - 2)
    return (trace + means - cross) / (n * (n - 3))


# The figure.


def _drawn(similarities: Sequence[Similarity], note: str, options: Options) -> Any:
    figure, all_axes = panels(len(similarities), options.size, aspect=1.0)
    width = inches_wide(all_axes[0])
    for axes, each in zip(all_axes, similarities, strict=True):
        image = axes.imshow(each.values.numpy().T, vmin=0, vmax=1, cmap="cividis", origin="lower")
        rows, columns = each.stages
        axes.set_xticks(range(len(rows)), rows, rotation=90)
        axes.set_yticks(range(len(columns)), columns)
        axes.set_xlabel(titled(each.one, width))
        axes.set_ylabel(titled(each.other, width))
        axes.tick_params(length=0)
        _write_values(axes, each.values, width)

    add_color_bar(figure, image, all_axes, "linear CKA")
    finish(figure, note, options)
    return figure


def _write_values(axes: Any, values: Tensor, width: float) -> None:
    """Write each value into its cell, in a colour that contrasts.

    Args:
        axes: with the cells.
        values: see `Similarity`.
        width: of the axes with its labels, in inches.
    """
    size = min(SMALL, 20 * width / max(values.shape))
    style = {
        "ha": "center",
        "va": "center",
        "fontsize": size,
    }

    for (i, j), value in np.ndenumerate(values.numpy()):
        text = f"{value:.2f}".replace("0.", ".")
        color = "white" if value < 0.5 else "black"
        axes.text(
            i,
            j,
            text,
            color=color,
            **style,
        )
