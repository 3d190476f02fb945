"""The command report: the table, the picture, its errors."""

import sys
from functools import partial

import pytest

from edkd.results.runs import read_run
from edkd.results.table import spread, table


@pytest.fixture
def report(tool):
    """report(*words) -> exit code, standard output, standard error."""
    return partial(tool, "report")


@pytest.fixture
def demo(tmp_path, write_run):
    """A project of two methods and three seeds, with a picture among the runs."""
    demo = tmp_path / "demo"
    for seed in (1, 2, 3):
        write_run(demo / f"kd,seed={seed}", seed, curve=(40.0, 70.0 + seed, 69.0 + seed))
        write_run(demo / f"alone,seed={seed}", seed, curve=(30.0, 60.0, 65.0), parameters=1000)
    (demo / "curves.png").write_bytes(b"")
    return demo


TABLE = """\
| run | parameters | seeds | last top-1 (%) | best top-1 (%) |
|---|--:|--:|--:|--:|
| alone | 1,000 | 3 | 65.00 ± 0.00 | 65.00 ± 0.00 |
| kd | 78,042 | 3 | 71.00 ± 1.00 | 72.00 ± 1.00 |
"""


def test_a_project(report, demo, tmp_path):
    page = tmp_path / "report.html"
    done = report(demo, "--output", page, "--no-analysis")
    assert done == (0, f"{TABLE}report: {page}\n", "")


def test_a_glob_with_a_picture_in_it(report, demo):
    picture = demo / "curves.png"
    code, out, err = report(*sorted(demo.iterdir()), "--picture", picture)
    assert (code, out) == (0, f"{TABLE}curves: {picture}\n")
    assert err == f"edkd: warning: {picture} is no folder of a run; it is left out\n"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_one_run_has_no_deviation(report, demo, tmp_path):
    run = demo / "kd,seed=1"
    code, out, _ = report(run, run, "--output", tmp_path / "report.html", "--no-analysis")
    assert code == 0
    assert out.splitlines()[2:-1] == ["| kd | 78,042 | 1 | 70.00 | 71.00 |"]


def test_seeds_are_counted_by_what_the_runs_used(tmp_path, write_run):
    """Not by the names of their folders."""
    folders = [
        write_run(tmp_path / f"project {i}" / "kd", seed) for i, seed in enumerate((1, 2, 2))
    ]
    text = table([read_run(folder) for folder in folders])
    assert text.splitlines()[2:] == ["| kd | 78,042 | 2 (3 runs) | 70.00 ± 0.00 | 70.00 ± 0.00 |"]


def test_the_same_name_with_other_settings_is_another_row(tmp_path, write_run):
    folders = [write_run(tmp_path / f"{lr}" / "kd,seed=1", lr=lr) for lr in (0.05, 0.1)]
    rows = table([read_run(folder) for folder in folders]).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [
        "| kd (SOLVER.LR=0.05)",
        "| kd (SOLVER.LR=0.1)",
    ]


def test_a_name_with_a_bar_stays_in_its_cell(tmp_path, write_run):
    run = read_run(write_run(tmp_path / "a|b"))
    assert table([run]).splitlines()[2].startswith("| a\\|b | 78,042 |")


def test_spread():
    assert spread([70.0]) == "70.00"
    assert spread([70.0, 71.0, 72.0]) == "71.00 ± 1.00"


def test_mistakes_are_one_line_and_exit_2(report, demo, tmp_path):
    damaged = demo / "kd,seed=1"
    (damaged / "result.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    commands = {
        "RUN_FOLDER": [],
        "no file or folder at nowhere": ["nowhere"],
        "no finished run at": [tmp_path / "empty"],
        f"{damaged} holds no finished run": [demo],
        "has no format": [demo / "kd,seed=2", "--picture", tmp_path / "x"],
        "cannot write the picture": [demo / "kd,seed=2", "--picture", tmp_path / "x.what"],
        "No such file": [demo / "kd,seed=2", "--picture", tmp_path / "no" / "x.png"],
    }
    for expected, words in commands.items():
        code, _, err = report(*words)
        assert code == 2
        assert err.startswith("edkd: error: ")
        assert expected in err
        assert err.count("\n") == 1


def test_without_matplotlib_there_is_a_table(report, demo, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = report(demo, "--picture", tmp_path / "x.png")
    assert (code, out) == (2, TABLE)
    assert "a picture needs matplotlib: pip install matplotlib" in err
