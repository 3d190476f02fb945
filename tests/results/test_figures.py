"""The picture of a report, by what matplotlib was told to draw."""

import pytest

from edkd.results.figures import curves, draw_curves
from edkd.results.runs import read_run


@pytest.fixture
def axes_of(tmp_path, write_run):
    """axes_of({name: {seed: curve}}): the axes of a figure of these runs."""

    def axes_of(rows, **result):
        runs = []
        for name, seeds in rows.items():
            for seed, curve in seeds.items():
                folder = tmp_path / f"{name},seed={seed}"
                runs.append(read_run(write_run(folder, seed, curve, **result)))
        (axes,) = curves(runs).axes
        return axes

    return axes_of


def test_a_line_is_the_mean_and_a_band_the_range(axes_of):
    axes = axes_of({"kd": {1: (10.0, 70.0), 2: (20.0, 74.0)}, "alone": {1: (5.0, 60.0)}})
    kd, alone = axes.lines
    assert list(kd.get_xdata()) == [1, 2]
    assert list(kd.get_ydata()) == [15.0, 72.0]
    assert list(alone.get_ydata()) == [5.0, 60.0]

    (band, _) = axes.collections
    corners = {tuple(map(float, corner)) for corner in band.get_paths()[0].vertices}
    assert corners == {(1, 10), (1, 20), (2, 70), (2, 74)}


def test_all_epochs_are_within_the_picture(axes_of):
    axes = axes_of({"kd": {1: (3.0, 60.0, 99.9)}})
    low, high = axes.get_ylim()
    assert 0 <= low < 3.0
    assert 99.9 < high <= 100


def test_titles_explain_the_picture(axes_of):
    axes = axes_of({"kd": {1: (10.0, 70.0), 2: (20.0, 74.0)}, "alone": {1: (5.0, 60.0)}})
    assert axes.get_title() == "Top-1 accuracy after each epoch: digits, test set"
    assert axes.get_ylabel() == "top-1 accuracy (%)"

    legend = axes.get_legend()
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["kd: 72.00 ± 2.83 %", "alone: 60.00 %"]
    assert "band: range over seeds" in legend.get_title().get_text()


def test_without_several_seeds_no_band_is_explained(axes_of):
    legend = axes_of({"kd": {1: (10.0, 70.0)}}).get_legend()
    assert legend.get_title().get_text() == "accuracy after the last epoch"


def test_a_run_of_one_epoch_is_a_marker(axes_of):
    axes = axes_of({"kd": {1: (70.0,), 2: (74.0,)}, "alone": {1: (10.0, 60.0)}})
    kd, alone = axes.lines
    assert kd.get_marker() == "o"
    assert list(kd.get_ydata()) == [72.0]
    assert alone.get_marker() == "None"
    (whisker, _) = axes.collections
    assert [float(y) for y in whisker.get_segments()[0][:, 1]] == [70.0, 74.0]


def test_epochs_are_whole_numbers(axes_of):
    ticks = axes_of({"kd": {1: (70.0,)}}).get_xticks()
    assert all(tick == int(tick) for tick in ticks)


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_formats(tmp_path, write_run, suffix, start):
    picture = tmp_path / f"curves.{suffix}"
    draw_curves([read_run(write_run(tmp_path / "a"))], picture)
    assert picture.read_bytes().startswith(start)
