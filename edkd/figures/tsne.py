"""t-SNE of the features before the classifier, coloured by class.

L. van der Maaten and G. Hinton, "Visualizing Data using t-SNE", JMLR 9, 2008.

Distances in a t-SNE map mean little, so each panel states two figures of the features themselves:
the silhouette score of the classes, and the accuracy of their nearest neighbours.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edkd.curves import COLORS, plain
from edkd.engine.outputs import POOLED, collect, positions
from edkd.errors import UserError
from edkd.figures.drawing import (
    Drawing,
    Legend,
    Options,
    finish,
    panels,
    panels_per_row,
    shortened,
    titled,
)
from edkd.figures.subjects import Subject, Subjects

IMAGES = 1000
"""Points of a panel at most, by default."""

NEIGHBOURS = 5

_PERPLEXITY = 30.0
_COLORS = (*COLORS, "#999999", "#F0E442", "#332288")
"""Those of Okabe and Ito, one of which is gray, and a dark violet of Tol."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_MOST_CLASSES = 20
"""More than that cannot be told apart."""


class Map(NamedTuple):
    """The features of a network, in two dimensions."""

    name: str
    points: np.ndarray
    """(N,2)."""
    target: np.ndarray
    """(N,), class numbers."""
    silhouette: float
    """In [-1, 1]."""
    neighbours: float
    """Accuracy of the nearest neighbours, in percent."""


def draw(paths: Sequence[Path], options: Options, say: Callable[[str], None]) -> Drawing:
    """Draw a panel for each student, and before them one for each teacher if it is wanted.

    Raises:
        UserError: a run has no weights or data, or there are too few images of the classes.
    """
    subjects = Subjects(paths, options)
    classes = chosen_classes(options.classes, subjects.first.data.num_classes)
    shown = [*(subjects.teachers() if options.teacher else []), *subjects.students]

    maps = []
    for subject in shown:
        say(f"t-SNE of {subject.name}")
        maps.append(_map(subject, classes, options))

    about = subjects.about(options.split)
    note = (
        f"{about}: {len(maps[0].target)} of {len(classes)} classes. t-SNE of the input of the "
        f"classifier, seed {options.seed}. Silhouette score of the classes, and accuracy of "
        f"{NEIGHBOURS} nearest neighbours (leave-one-out), both of the features themselves."
    )
    figure = _drawn(maps, classes, subjects.first.data.info.class_names, note, options)
    rows = [
        [each.name, int(target), float(x), float(y)]
        for each in maps
        for target, (x, y) in zip(each.target, each.points, strict=True)
    ]
    lines = [
        f"{each.name}: silhouette {each.silhouette:.3f}, {NEIGHBOURS} nearest neighbours "
        f"{each.neighbours:.2f} %"
        for each in maps
    ]
    return Drawing(figure, note, ["network", "class", "x", "y"], rows, lines)


def chosen_classes(text: str, num_classes: int) -> list[int]:
    """The class numbers that a figure shows.

    Args:
        text: a number of classes, evenly spaced, as "10"; or class numbers with commas, as "3,7".
        num_classes: of the data.

    Raises:
        UserError: a class is not there, or they are too many or too few.
    """
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0:
        raise UserError(f"--classes {text}: give a number, as 10, or class numbers, as 0,3,7")

    is_list = "," in text
    chosen = numbers if is_list else positions(num_classes, numbers[0]).tolist()
    chosen = list(dict.fromkeys(chosen))
    if max(chosen) >= num_classes:
        raise UserError(f"--classes {text}: the data have {num_classes} classes, from 0")
    if not 2 <= len(chosen) <= _MOST_CLASSES:
        raise UserError(f"--classes {text}: give from 2 to {_MOST_CLASSES} classes")
    return chosen


def _map(subject: Subject, classes: Sequence[int], options: Options) -> Map:
    """Run a network, and map its features to two dimensions."""
    from sklearn.manifold import TSNE

    outputs = collect(subject.network, subject.data, options.split, [POOLED], classes=classes)
    kept = positions(len(outputs.target), options.images or IMAGES)
    features = outputs.pooled_feat[kept].double().numpy()
    target = outputs.target[kept].numpy()
    silhouette, neighbours = separation(features, target)

    perplexity = min(_PERPLEXITY, (len(target) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=options.seed)
    points = tsne.fit_transform(features)
    return Map(subject.name, points, target, silhouette, neighbours)


def separation(features: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """How well features separate classes, in Euclidean distance.

    Args:
        features: (N,D).
        target: (N,), class numbers.

    Returns:
        The mean silhouette coefficient, in [-1, 1]; the share of images whose class is that of the
        majority of their NEIGHBOURS nearest neighbours, in percent.

    Raises:
        UserError: there are too few images, or they are of one class.
    """
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    number = len(set(target.tolist()))
    if number < 2:
        raise UserError("the images are of one class alone; choose other --classes")
    if len(target) <= max(NEIGHBOURS, number):
        raise UserError(f"{len(target)} images are too few for t-SNE; give more with --images")

    # Without an argument, the neighbours of an image do not include the image itself.
    search = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(features)
    neighbours = target[search.kneighbors(return_distance=False)]
    votes = np.stack([(neighbours == number).sum(1) for number in range(target.max() + 1)], 1)
    hits = votes.argmax(1) == target
    return float(silhouette_score(features, target)), 100 * float(hits.mean())


def _drawn(
    maps: Sequence[Map],
    classes: Sequence[int],
    class_names: Sequence[str],
    note: str,
    options: Options,
) -> Any:
    """The figure."""
    figure, all_axes = panels(len(maps), options.size, aspect=1.15)
    width = figure.get_figwidth() / panels_per_row(len(maps), options.size)
    handles: list[Any] = []
    for axes, each in zip(all_axes, maps, strict=True):
        handles = [_scatter(axes, each, place, number) for place, number in enumerate(classes)]
        figures = f"silhouette {each.silhouette:.2f}, kNN {each.neighbours:.1f} %"
        axes.set_title(f"{titled(each.name, width)}\n{figures}")
        axes.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
        axes.set_box_aspect(1)

    names = [_class_name(number, class_names) for number in classes]
    finish(figure, note, options, Legend(handles, names, length=1.0, scale=1.6))
    return figure


def _scatter(axes: Any, each: Map, place: int, number: int) -> Any:
    """Add the points of a class; classes of one colour have different markers."""
    points = each.points[each.target == number]
    return axes.scatter(
        points[:, 0],
        points[:, 1],
        s=5,
        color=_COLORS[place % len(_COLORS)],
        marker=_MARKERS[(place + place // len(_COLORS)) % len(_MARKERS)],
        alpha=0.9,
        edgecolors="0.25",
        linewidths=0.15,
        rasterized=True,
    )


def _class_name(number: int, names: Sequence[str]) -> str:
    return shortened(names[number], 18) if names else plain(str(number))
