"""t-SNE: which classes and images are shown, and the figures of the features."""

import numpy as np
import pytest

from edkd.errors import UserError
from edkd.figures.drawing import Legend, Options, add_color_bar, finish, panels, style
from edkd.figures.tsne import chosen_classes, separation


def test_classes():
    assert chosen_classes("10", 100) == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert chosen_classes("10", 4) == [0, 1, 2, 3]
    assert chosen_classes("7,3,7", 10) == [7, 3]
    for text in ("1", "21", "0,-1", "", "5,", "a"):
        with pytest.raises(UserError, match="--classes"):
            chosen_classes(text, 100)


def test_separated_classes():
    rng = np.random.default_rng(0)
    target = np.arange(60) % 3
    features = rng.normal(size=(60, 5)) * 0.1 + 10 * target[:, None]
    silhouette, neighbours = separation(features, target)
    assert silhouette > 0.9
    assert neighbours == 100

    silhouette, neighbours = separation(rng.normal(size=(60, 5)), target)
    assert abs(silhouette) < 0.1
    assert neighbours < 60


def test_an_image_is_not_its_own_neighbour():
    """Alone among five of another class, each image is wrong."""
    features = np.array([[0.0], [0.1], [0.2], [0.3], [0.4], [0.5], [0.25]])
    target = np.array([0, 0, 0, 0, 0, 0, 1])
    assert separation(features, target)[1] == pytest.approx(100 * 6 / 7)


def test_images_of_one_class_are_refused():
    with pytest.raises(UserError, match="one class alone"):
        separation(np.zeros((30, 2)), np.full(30, 4))


def test_the_numbers_of_a_color_bar_are_those_of_its_ticks():
    with style():
        figure, (axes,) = panels(1, "column", 1.0)
        image = axes.imshow([[0.0, 0.23]])
        bar = add_color_bar(figure, image, [axes], "difference")
        figure.draw_without_rendering()
    texts = [text.get_text() for text in bar.ax.get_yticklabels()]
    assert [float(text) for text in texts] == pytest.approx(list(bar.get_ticks()))
    assert len(set(texts)) > 3


def test_the_legend_has_all_classes_within_the_figure():
    with style():
        figure, (axes,) = panels(1, "column", 1.0)
        handles = [axes.scatter([0], [0]) for _ in range(20)]
        names = [f"class number {number}" for number in range(20)]
        finish(figure, "a note", Options(), Legend(handles, names, length=1.0))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= 3.5 * figure.dpi
    assert box.y1 <= axes.get_tightbbox().y0
    (note,) = figure.texts
    assert note.get_window_extent().y1 <= box.y0


def test_of_the_command(draw, table, digits_runs):
    words = ["--teacher", "--classes", "0,3,7", "--images", "45", "--data", "--seed", "4"]
    done = draw("tsne", digits_runs["kd1"], *words)
    rows = table("tsne")
    assert {row["network"] for row in rows} == {"teacher resnet20", "kd"}
    assert {row["class"] for row in rows} == {"0", "3", "7"}
    assert len(rows) == 90
    assert done.out.count("nearest neighbours ") >= 2

    draw("tsne", digits_runs["kd1"], *words)
    assert table("tsne") == rows
