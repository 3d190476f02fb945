"""Figures and a verdict for notebooks: soft labels, sweeps, calibration, comparisons by seeds.

Each function returns a matplotlib figure, which Jupyter shows.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edkd.curves import COLORS

STUDENT_ALONE = "#8c8c8c"

_T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""97.5 % quantiles of Student's t distribution with 1, 2, ... degrees of freedom; with more than
these, the last one is used, and the interval is a little too wide."""

FEW = 0.01
"""Share of the images below which the accuracy of a bin says little."""


class Calibration(NamedTuple):
    """How often predictions are right, by their confidence."""

    confidence: list[float]
    """Mean of the highest probability in each bin that has images."""
    accuracy: list[float]
    """Share of right predictions in the same bins."""
    share: list[float]
    """Share of the images in the same bins."""
    ece: float
    """Expected calibration error, sum over the bins of share * |accuracy - confidence|; in [0, 1].
    """


def calibration(logits: Tensor, target: Tensor, bins: int = 10) -> Calibration:
    """The calibration of predictions in bins of equal width.

    C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On Calibration of Modern Neural Networks",
    ICML 2017, arXiv:1706.04599, equation 3.

    Args:
        logits: (N,C).
        target: (N,), class numbers.
        bins: number of bins of the highest probability, from 0 to 1.
    """
    confidence, predicted = logits.softmax(1).max(1)
    is_right = (predicted == target).float()
    number = (confidence * bins).long().clamp(max=bins - 1)

    rows = []
    for i in number.unique().tolist():
        members = number == i
        row = (confidence[members].mean(), is_right[members].mean(), members.float().mean())
        rows.append([value.item() for value in row])

    ece = sum(share * abs(right - sure) for sure, right, share in rows)
    columns = [list(column) for column in zip(*rows, strict=True)]
    return Calibration(columns[0], columns[1], columns[2], ece)


def verdict(alone: Sequence[float], distilled: Sequence[float]) -> str:
    """Whether distilled students are better, from the accuracies of the same seeds.

    The interval is that of a paired t test, with 95 % confidence.

    Args:
        alone: accuracies in percent of students alone, by seed; two or more.
        distilled: the same for distilled students, in the same order of seeds.
    """
    gains = [after - before for before, after in zip(alone, distilled, strict=True)]
    mean = statistics.mean(gains)
    quantile = _T_95[min(len(gains) - 2, len(_T_95) - 1)]
    margin = quantile * statistics.stdev(gains) / math.sqrt(len(gains))

    word = "INCONCLUSIVE"
    if mean - margin > 0:
        word = "BETTER than the student alone"
    elif mean + margin < 0:
        word = "WORSE than the student alone"
    return (
        f"{word}: {mean_and_deviation(alone)} % -> {mean_and_deviation(distilled)} %, a gain of "
        f"{mean:+.2f} points (95 % interval {mean - margin:+.2f} to {mean + margin:+.2f}, "
        f"{len(gains)} seeds)"
    )


def mean_and_deviation(values: Sequence[float]) -> str:
    """The mean, and the standard deviation of a sample."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


# Figures.


def soft_label_figure(
    images: Tensor, target: Tensor, predictions: Mapping[str, Tensor], names: Sequence[str]
) -> Any:
    """Images, and below each the probabilities of its classes, in a row for each prediction.

    Args:
        images: (N,1,H,W).
        target: (N,), class numbers.
        predictions: probabilities (N,C), by a title.
        names: of the classes.
    """
    rows = 1 + len(predictions)
    heights = [1.5] + [1.0] * len(predictions)
    figure = _figure(1.55 * len(images), 1.35 * rows)
    axes = figure.subplots(rows, len(images), squeeze=False, height_ratios=heights)

    for column, image in enumerate(images):
        axes[0, column].imshow(image[0].numpy(), cmap="gray_r")
        axes[0, column].set_title(f"label {names[int(target[column])]}", fontsize=9)
        axes[0, column].axis("off")

    for row, (title, probabilities) in enumerate(predictions.items(), 1):
        for column, p in enumerate(probabilities):
            axis = axes[row, column]
            colours = [COLORS[0]] * len(names)
            colours[int(target[column])] = COLORS[1]
            axis.bar(
                range(len(names)),
                p.tolist(),
                color=colours,
            )
            axis.set(
                ylim=(0, 1),
                xticks=range(len(names)),
                yticks=[],
            )
            axis.set_xticklabels(names, fontsize=6)
            axis.spines[["top", "right", "left"]].set_visible(False)
        axes[row, 0].set_ylabel(title, fontsize=9)
    return figure


def sweep_figure(
    setting: str, accuracies: Mapping[float, Sequence[float]], alone: Sequence[float]
) -> Any:
    """The accuracy over a setting, mean and standard deviation, beside the student alone.

    Args:
        setting: its name.
        accuracies: in percent, of all seeds, for each value.
        alone: the same of the student alone.
    """
    figure = _figure(5.2, 3.2)
    axes = figure.subplots()
    positions = range(len(accuracies))

    # The student alone, as a band of one standard deviation.
    level = statistics.mean(alone)
    spread = _deviation(alone)
    axes.axhline(
        level,
        color=STUDENT_ALONE,
        linestyle="--",
        label="student alone",
    )
    axes.axhspan(
        level - spread,
        level + spread,
        color=STUDENT_ALONE,
        alpha=0.2,
        linewidth=0,
    )

    # The distilled students; each seed is a dot.
    means = [statistics.mean(values) for values in accuracies.values()]
    spreads = [_deviation(values) for values in accuracies.values()]
    style = dict(color=COLORS[0], marker="o", capsize=3, label="distilled")
    axes.errorbar(
        positions,
        means,
        spreads,
        **style,
    )
    for position, values in zip(positions, accuracies.values(), strict=True):
        axes.scatter(
            [position] * len(values),
            values,
            color=COLORS[0],
            s=9,
            alpha=0.4,
        )

    axes.set_xticks(positions, [f"{value:g}" for value in accuracies])
    axes.set(xlabel=setting, ylabel="test accuracy (%)")
    axes.legend(frameon=False, fontsize=8)
    return _clean(figure)


def reliability_figure(predictions: Mapping[str, tuple[Tensor, Tensor]], bins: int = 10) -> Any:
    """A reliability diagram for each network: accuracy over confidence, with its calibration error.

    Bins with less than one percent of the images are pale.

    Args:
        predictions: logits (N,C) and class numbers (N,), by the network's name.
        bins: see `calibration`.
    """
    figure = _figure(2.7 * len(predictions), 2.9)
    axes = figure.subplots(1, len(predictions), sharey=True, squeeze=False)[0]

    colours = _colours(predictions)
    for axis, colour, (name, given) in zip(axes, colours, predictions.items(), strict=True):
        found = calibration(*given, bins=bins)
        numbers = [min(int(sure * bins), bins - 1) for sure in found.confidence]
        centres = [(number + 0.5) / bins for number in numbers]
        bars = axis.bar(
            centres,
            found.accuracy,
            0.9 / bins,
            color=colour,
        )
        for bar, share in zip(bars, found.share, strict=True):
            bar.set_alpha(0.9 if share >= FEW else 0.3)

        axis.bar(
            centres,
            found.share,
            0.3 / bins,
            color="black",
            alpha=0.5,
        )
        axis.plot(
            [0, 1],
            [0, 1],
            color="black",
            linewidth=0.8,
            linestyle=":",
        )
        axis.set_title(f"{name}\nECE {100 * found.ece:.1f} %", fontsize=9)
        axis.set(
            xlim=(0, 1.05),
            ylim=(0, 1.05),
            xlabel="confidence",
        )

    axes[0].set_ylabel("accuracy")
    return _clean(figure)


def comparison_figure(accuracies: Mapping[str, Sequence[float]]) -> Any:
    """The accuracies of several kinds of networks: each seed is a dot, the bar is the mean."""
    figure = _figure(5.2, 0.5 * len(accuracies) + 1.0)
    axes = figure.subplots()

    for position, (colour, values) in enumerate(
        zip(_colours(accuracies), accuracies.values(), strict=True)
    ):
        mean = statistics.mean(values)
        axes.scatter(
            values,
            [position] * len(values),
            color=colour,
            s=26,
            alpha=0.6,
        )
        axes.plot(
            [mean, mean],
            [position - 0.3, position + 0.3],
            color=colour,
            linewidth=3,
        )

    labels = [f"{name}\n{mean_and_deviation(values)}" for name, values in accuracies.items()]
    axes.set_yticks(
        range(len(labels)),
        labels,
        fontsize=8,
    )
    axes.invert_yaxis()
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel("test accuracy (%)")
    return _clean(figure)


def _figure(width: float, height: float) -> Any:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(
        figsize=(width, height),
        dpi=90,
        layout="constrained",
    )


def _clean(figure: Any) -> Any:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    return figure


def _colours(names: Mapping[str, Any]) -> list[str]:
    """A colour for each name; grey for the student alone."""
    others = iter(COLORS * len(names))
    return [STUDENT_ALONE if name == "student alone" else next(others) for name in names]


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


@torch.no_grad()
def predictions_of(model: torch.nn.Module, loader: Any) -> tuple[Tensor, Tensor]:
    """The logits (N,C) of a model in eval mode for all images of a loader, and the targets (N,)."""
    from edkd.engine.given_back import modes_kept
    from edkd.notebook._loop import batches, logits_of
    from edkd.notebook.distiller import device_of

    with modes_kept([model]):
        model.eval()
        pairs = [
            (logits_of(model, image).cpu(), target.cpu())
            for image, target in batches(loader, device_of(model), "prediction")
        ]
    logits, targets = zip(*pairs, strict=True)
    return torch.cat(logits), torch.cat(targets)
