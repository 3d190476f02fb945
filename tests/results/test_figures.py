"""The picture of a report, by what matplotlib was told to draw."""

import itertools

import pytest

from edkd.curves import save_figure, spread_out
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


def shown_ticks(axes):
    low, high = axes.get_xlim()
    return [tick for tick in axes.get_xticks() if low <= tick <= high]


def legend_of(axes):
    """The names, and the note above them."""
    legend = axes.get_legend()
    return [text.get_text() for text in legend.get_texts()], legend.get_title().get_text()


def ends_of(axes):
    """The texts at the right of the axes, from the top."""
    texts = [text for text in axes.texts if text.get_text()]
    return [text.get_text() for text in sorted(texts, key=lambda text: -text.xy[1])]


def curves_in(axes):
    """The lines of runs: not the markers beside the texts."""
    return [line for line in axes.lines if line.get_transform() != axes.transAxes]


def test_a_line_is_the_mean_and_a_band_the_deviation(axes_of):
    axes = axes_of({"kd": {1: (10.0, 70.0), 2: (20.0, 74.0)}, "alone": {1: (5.0, 60.0)}})
    kd, alone = curves_in(axes)
    assert list(kd.get_xdata()) == [1, 2]
    assert list(kd.get_ydata()) == [15.0, 72.0]
    assert list(alone.get_ydata()) == [5.0, 60.0]

    (band,) = axes.collections
    corners = {tuple(corner.round(2)) for corner in band.get_paths()[0].vertices}
    assert corners == {(1, 7.93), (1, 22.07), (2, 69.17), (2, 74.83)}


def test_all_epochs_are_within_the_picture(axes_of):
    axes = axes_of({"kd": {1: (3.0, 60.0, 99.9)}})
    low, high = axes.get_ylim()
    assert 0 <= low < 3.0
    assert 99.9 < high <= 100
    left, right = axes.get_xlim()
    assert left < 1
    assert right > 3


def test_titles_explain_the_picture(axes_of):
    axes = axes_of({"kd": {1: (10.0, 70.0), 2: (20.0, 74.0)}, "alone": {1: (5.0, 60.0)}})
    assert axes.get_title() == "digits: top-1 accuracy on the test set"
    assert axes.get_xlabel() == "epoch"
    assert axes.get_ylabel() == "top-1 accuracy (%)"

    names, note = legend_of(axes)
    assert names == ["kd (n = 2)", "alone (n = 1)"]
    assert note.splitlines() == [
        "Line, band: mean ± standard deviation over n seeds",
        "At the right: last epoch (best epoch)",
    ]


def test_the_number_of_seeds_is_named_once_where_it_is_the_same(axes_of):
    seeds = {1: (10.0, 70.0), 2: (20.0, 74.0)}
    names, note = legend_of(axes_of({"kd": seeds, "dkd": seeds}))
    assert names == ["kd", "dkd"]
    assert "over 2 seeds" in note


def test_with_one_seed_there_is_no_band(axes_of):
    axes = axes_of({"kd": {1: (10.0, 70.0)}})
    assert len(axes.collections) == 0
    assert legend_of(axes)[1].startswith("One seed each, no band\n")


def test_last_and_best_value_stand_at_the_end_of_a_curve(axes_of):
    """The best value is the mean of the seeds' best, as in the table."""
    axes = axes_of(
        {"low": {1: (40.0, 30.0)}, "high": {1: (80.0, 60.0), 2: (50.0, 70.0)}, "mid": {1: (50.0,)}}
    )
    assert ends_of(axes) == ["65.00 (75.00)", "50.00 (50.00)", "30.00 (40.00)"]


def test_values_that_are_close_do_not_overlap(axes_of):
    axes = axes_of({f"run {i}": {1: (10.0, 90 + i / 100)} for i in range(20)})
    heights = sorted(text.xy[1] for text in axes.texts if text.get_text())
    inches = axes.get_position().height * axes.figure.get_figheight()
    gaps = [inches * (b - a) for a, b in itertools.pairwise(heights)]
    assert min(gaps) > 0.119
    assert heights[0] >= -1e-9
    assert heights[-1] <= 1 + 1e-9


def test_curves_differ_in_more_than_their_colour(axes_of):
    axes = axes_of({f"run {i}": {1: (10.0, 90.0)} for i in range(20)})
    looks = [(line.get_marker(), line.get_linestyle()) for line in curves_in(axes)]
    assert len(set(looks)) == 20
    assert len({line.get_color() for line in curves_in(axes)[:7]}) == 7


def test_runs_of_one_epoch_are_points_side_by_side(axes_of):
    axes = axes_of({"kd": {1: (70.0,), 2: (74.0,)}, "alone": {1: (60.0,)}})
    kd, alone = curves_in(axes)
    assert kd.get_linestyle() == "None"
    assert list(kd.get_ydata()) == [72.0]
    assert kd.get_xdata()[0] < 1 < alone.get_xdata()[0]
    (whisker,) = axes.collections
    assert [round(float(y), 2) for y in whisker.get_segments()[0][:, 1]] == [69.17, 74.83]
    assert shown_ticks(axes) == [1]


def test_a_run_of_one_epoch_beside_a_longer_one(axes_of):
    axes = axes_of({"kd": {1: (70.0,)}, "alone": {1: (10.0, 60.0)}})
    kd, alone = curves_in(axes)
    assert list(kd.get_xdata()) == [1]
    assert alone.get_linestyle() == "-"


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 12, 100, 240])
def test_ticks_are_at_epochs(axes_of, epochs):
    axes = axes_of({"kd": {1: [50.0] * epochs}})
    ticks = shown_ticks(axes)
    assert ticks
    assert all(tick == int(tick) >= 1 for tick in ticks)


def test_names_do_not_cover_the_curves_and_stay_in_the_width(axes_of, tmp_path):
    """Long ones are broken; "$", "_" at the start, line ends and undecodable bytes are harmless."""
    long = "kd,res32x4,res8x4" + "".join(f",KD.LOSS.WEIGHT_{i}=0.5" for i in range(8))
    names = ["_hidden", "cost $a_b$ $", "a\nb", "\udcff", long, 190 * "x"]
    axes = axes_of({name: {1: (10.0, 70.0)} for name in names})
    figure = axes.figure
    figure.canvas.draw()

    shown, _ = legend_of(axes)
    assert shown[:4] == ["_hidden", "cost $a_b$ $", "a?b", "?"]
    assert shown[4].replace("\n", "") == long
    assert shown[5].replace("\n", "") == 190 * "x"

    box = axes.get_legend().get_window_extent()
    assert box.y1 < axes.get_window_extent().y0
    assert box.width / figure.dpi < 3.8
    save_figure(figure, tmp_path / "curves.pdf")


def test_characters_that_the_font_lacks_are_one_warning(axes_of, tmp_path, capsys):
    axes = axes_of({"学生": {1: (10.0, 70.0)}})
    save_figure(axes.figure, tmp_path / "curves.png")
    err = capsys.readouterr().err
    assert err.startswith(f"edkd: warning: {tmp_path / 'curves.png'}: Glyph ")
    assert err.count("\n") == 1


def test_a_legend_entry_stands_beside_its_marker(axes_of):
    axes = axes_of({"kd": {1: (10.0, 70.0)}, "alone": {1: (5.0, 60.0)}})
    colors = [handle.get_color() for handle in axes.get_legend().get_lines()]
    assert colors == [line.get_color() for line in curves_in(axes)]


def test_runs_of_several_data_sets(tmp_path, write_run):
    runs = [
        read_run(write_run(tmp_path / name, dataset=name, settings={"DATASET.TYPE": name}))
        for name in ("digits", "cifar10")
    ]
    (axes,) = curves(runs).axes
    assert axes.get_title() == "Top-1 accuracy on the test set"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([1.0], [1.0]),
        ([-5.0], [0.0]),
        ([1.0, 3.0], [1.0, 3.0]),
        ([5.0, 5.0], [4.5, 5.5]),
        ([5.0, 5.2, 6.1], [4.43, 5.43, 6.43]),
        ([9.8, 9.9, 10.0], [8.0, 9.0, 10.0]),
        ([0.0, 0.1], [0.0, 1.0]),
    ],
)
def test_positions_are_spread_out(wanted, expected):
    assert spread_out(wanted, 1.0, 10.0) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_formats(tmp_path, write_run, suffix, start):
    picture = tmp_path / f"curves.{suffix}"
    draw_curves([read_run(write_run(tmp_path / "a"))], picture)
    assert picture.read_bytes().startswith(start)
