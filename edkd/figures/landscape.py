"""The loss around trained weights, in random directions that are normalised by filters.

H. Li, Z. Xu, G. Taylor, C. Studer, T. Goldstein, "Visualizing the Loss Landscape of Neural Nets",
NeurIPS 2018, arXiv:1712.09913, section 4.

As in the code of the paper, biases and the parameters of batch norms stay, and batch norms use the
statistics of the trained network at each point.
"""

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from edkd.curves import COLORS
from edkd.engine.outputs import Chosen, chosen_batches, loader_of
from edkd.errors import UserError
from edkd.figures.drawing import (
    SMALL,
    Drawing,
    Legend,
    Options,
    add_color_bar,
    finish,
    frame,
    inches_wide,
    panels,
    titled,
)
from edkd.figures.subjects import Subject, Subjects
from edkd.streams import Guard

IMAGES = 256
"""By default."""

POINTS = {1: 21, 2: 11}
"""In each direction, by the number of dimensions."""

_STYLES = ("-", "--", "-.", ":")
_LEVELS = 12
_MOST_LINES = 7

Direction = dict[str, Tensor]
"""A change of each parameter, by its name."""


class Landscape(NamedTuple):
    """The loss of a network on a grid."""

    name: str
    steps: np.ndarray
    """(P,), places in each direction; 0 are the trained weights."""
    loss: np.ndarray
    """(P,), or (P,P): rows for the second direction, columns for the first."""

    @property
    def centre(self) -> float:
        """The loss of the trained weights."""
        middle = len(self.steps) // 2
        return float(self.loss[(middle,) * self.loss.ndim])


def draw(paths: Sequence[Path], options: Options, say: Callable[[str], None]) -> Drawing:
    """Draw the loss of each student: curves in one panel, or contours in a panel each.

    Raises:
        UserError: a run has no weights or data, or the grid is not possible.
    """
    steps = _steps(options)
    subjects = Subjects(paths, options)
    landscapes = []
    for subject in subjects.students:
        landscapes.append(landscape(subject, steps, options, say))

    there = loader_of(subjects.first.data, options.split).num_images
    number = min(there, options.images or IMAGES)
    note = (
        f"{subjects.about(options.split)}: {number}. Mean cross-entropy at the trained weights "
        "plus multiples of random directions, each filter of which has the norm of that of the "
        f"weights (seed {options.seed}, the same for all runs). Biases and batch norm parameters "
        "stay; batch norms use the statistics of training."
    )
    lines = [f"{each.name}: loss at the centre {each.centre:.4f}" for each in landscapes]
    rows = [row for each in landscapes for row in _rows(each)]
    if options.dimensions == 1:
        figure = _curves(landscapes, note, options)
        return Drawing(figure, note, ["network", "a", "loss"], rows, lines)

    figure = _contours(landscapes, note, options)
    return Drawing(figure, note, ["network", "a", "b", "loss"], rows, lines)


def _steps(options: Options) -> np.ndarray:
    number = options.points or POINTS[options.dimensions]
    if number < 3 or number % 2 == 0:
        raise UserError(
            f"--points {number}: give an odd number of at least 3, so that the centre is one of "
            "them"
        )
    if not 0 < options.radius < math.inf:
        raise UserError(f"--radius {options.radius}: give a positive number")
    return np.linspace(-options.radius, options.radius, number)


def _rows(each: Landscape) -> Iterator[list[Any]]:
    for index, loss in np.ndenumerate(each.loss):
        places = [float(each.steps[i]) for i in reversed(index)]
        yield [each.name, *places, float(loss)]


# The loss on the grid.


@torch.no_grad()
def landscape(
    subject: Subject, steps: np.ndarray, options: Options, say: Callable[[str], None]
) -> Landscape:
    """Compute the loss of a network on a grid; the network itself is not changed.

    Args:
        subject: the network.
        steps: (P,), places in each direction.
        options: DIMENSIONS, IMAGES, SPLIT and SEED are read.
        say: called with the expected time.
    """
    network = copy.deepcopy(subject.network)
    directions = [direction(network, options.seed + number) for number in range(options.dimensions)]
    loader = loader_of(subject.data, options.split)
    batches = list(chosen_batches(loader, options.images or IMAGES))

    # The first point takes the time of a warm-up, too; the second one is measured.
    centre = {name: value.clone() for name, value in network.named_parameters()}
    loss_of(network, batches)
    began = time.monotonic()
    loss_of(network, batches)
    total = len(steps) ** options.dimensions
    seconds = (time.monotonic() - began) * total
    say(f"landscape of {subject.name}: {total} points, about {tqdm.format_interval(seconds)}")

    losses = np.empty((len(steps),) * options.dimensions)
    with tqdm(total=total, unit="point", file=Guard(sys.stderr), disable=None) as bar:
        for index in np.ndindex(losses.shape):
            places = [float(steps[i]) for i in reversed(index)]
            move(network, centre, directions, places)
            losses[index] = loss_of(network, batches)
            bar.update()
    return Landscape(subject.name, steps, losses)


def direction(network: nn.Module, seed: int) -> Direction:
    """A random direction; each filter has the norm of that filter of the weights.

    A filter is the part of a weight that makes one output: weight[i]. Parameters of one dimension,
    biases and those of batch norms, get no change.

    Args:
        network: whose parameters it is for; equal architectures get the same noise.
        seed: of the noise, which is drawn on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, weight in network.named_parameters():
        if weight.dim() < 2:
            continue
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        norms = [each.flatten(1).norm(dim=1) for each in (weight.detach(), noise)]
        scale = norms[0] / norms[1].clamp(min=1e-10)
        found[name] = noise * scale.view(-1, *[1] * (weight.dim() - 1))
    return found


@torch.no_grad()
def move(
    network: nn.Module,
    centre: dict[str, Tensor],
    directions: Sequence[Direction],
    places: Sequence[float],
) -> None:
    """Set the parameters to those of the centre plus multiples of directions."""
    for name, parameter in network.named_parameters():
        value = centre[name].clone()
        for change, place in zip(directions, places, strict=True):
            if name in change:
                value += place * change[name]
        parameter.copy_(value)


@torch.no_grad()
def loss_of(network: nn.Module, batches: Sequence[Chosen]) -> float:
    """The mean cross-entropy of images."""
    total = 0.0
    for batch in batches:
        logits = network(batch.image)[0].float()
        total += F.cross_entropy(logits, batch.target, reduction="sum").item()
    return total / sum(len(batch.target) for batch in batches)


# The figures.


def _curves(landscapes: Sequence[Landscape], note: str, options: Options) -> Any:
    """The losses along one direction, in one panel."""
    from matplotlib.ticker import NullLocator

    figure, (axes,) = panels(1, options.size, aspect=0.62)
    for number, each in enumerate(landscapes):
        axes.plot(
            each.steps,
            each.loss,
            color=COLORS[number % len(COLORS)],
            linestyle=_STYLES[number % len(_STYLES)],
            linewidth=1.1,
        )
    axes.set_xlabel("step in a filter-normalised random direction")
    axes.set_ylabel("loss")
    axes.set_yscale("log")
    axes.set_yticks(round_numbers(*axes.get_ylim()))
    axes.yaxis.set_major_formatter(_readable)
    axes.yaxis.set_minor_locator(NullLocator())
    frame(axes)

    names = [each.name for each in landscapes]
    finish(figure, note, options, Legend(axes.lines, names))
    return figure


def round_numbers(low: float, high: float) -> list[float]:
    """Numbers such as 1, 2, 5, 10 within a range; fewer where they are many.

    Args:
        low: positive.
        high: greater.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        numbers = [digit * 10.0**decade for decade in decades for digit in digits]
        inside = [number for number in numbers if low < number < high]
        if 2 <= len(inside) <= _MOST_LINES:
            return inside
    return [low, high]


def _readable(value: float, place: Any = None) -> str:
    """A loss with two or three digits."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _contours(landscapes: Sequence[Landscape], note: str, options: Options) -> Any:
    """The losses in the plane of two directions, in a panel for each network; one scale."""
    from matplotlib.colors import LogNorm

    figure, all_axes = panels(len(landscapes), options.size, aspect=1.08)
    width = inches_wide(all_axes[0])
    losses = np.concatenate([each.loss.ravel() for each in landscapes])
    losses = losses[np.isfinite(losses)]
    if not len(losses):
        raise UserError("no loss is finite on this grid; give a smaller --radius")
    low = max(losses.min(), 1e-4)
    levels = np.geomspace(low, max(losses.max(), 1.01 * low), _LEVELS)

    # Lines contrast with the colour below them.
    ticks = round_numbers(levels[0], levels[-1])
    middle = math.sqrt(levels[0] * levels[-1])
    colors = ["white" if tick < middle else "black" for tick in ticks]

    for axes, each in zip(all_axes, landscapes, strict=True):
        loss = np.clip(each.loss, levels[0], levels[-1])
        grid = (each.steps, each.steps, loss)
        norm = LogNorm(low, levels[-1])
        filled = axes.contourf(*grid, levels, cmap="cividis", norm=norm)
        lines = axes.contour(*grid, ticks, colors=colors, linewidths=0.4)
        axes.clabel(lines, fontsize=SMALL - 1, fmt=_readable)
        axes.plot(0, 0, marker="+", color="white", markersize=5, markeredgewidth=1)
        axes.set_title(f"{titled(each.name, width)}\ncentre {each.centre:.3f}")
        axes.set(xlabel="direction 1", ylabel="direction 2")
        axes.locator_params(nbins=3)  # labels of more ticks touch in a narrow panel
        axes.set_box_aspect(1)

    add_color_bar(figure, filled, all_axes, "loss (logarithmic)", _readable).set_ticks(ticks)
    finish(figure, note, options)
    return figure
