"""The command figure: each kind on real runs, its files, and its errors."""

import json
import re
import shutil
import zlib

import pytest

from edkd.figures import FIGURES
from edkd.figures.subjects import names_of
from tests.short_forms import slow_but

QUICK = {
    "curves": [],
    "tsne": ["--classes", "0,3,7", "--images", "60"],
    "correlation": ["--images", "100"],
    "cka": ["--images", "40"],
    "landscape": ["--images", "16", "--points", "3"],
}


@pytest.mark.parametrize("kind", slow_but(["curves", "cka"], FIGURES))
def test_each_figure_of_two_runs(draw, picture, table, digits_runs, tmp_path, kind):
    runs = [digits_runs["kd1"], digits_runs["alone"]]
    done = draw(kind, *runs, *QUICK[kind], "--data")
    assert f"written: figures/{kind}.png, figures/{kind}.pdf, figures/{kind}.csv" in done.out
    assert "note: " in done.out

    width, colors = picture(kind)
    assert width == pytest.approx(3.5, abs=0.25 if kind == "curves" else 0.01)
    assert colors > 20
    rows = table(kind)
    assert {row.get("run") or row.get("network") or row["student"] for row in rows} >= {
        "kd",
        "alone",
    }
    assert_fonts_are_truetype(tmp_path / "figures" / f"{kind}.pdf")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        f"{kind}.csv",
        f"{kind}.pdf",
        f"{kind}.png",
    ]


def assert_fonts_are_truetype(path):
    """Type 42 fonts are embedded as /FontFile2 and have /CIDFontType2 or /TrueType."""
    content = path.read_bytes()
    assert content.startswith(b"%PDF")
    text = content
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", content, re.DOTALL):
        try:
            text += zlib.decompress(stream)
        except zlib.error:
            continue
    assert b"/FontFile2" in text
    assert b"/Type3" not in text


@pytest.mark.slow
def test_the_same_command_writes_the_same_bytes(draw, digits_runs, tmp_path):
    words = [digits_runs["kd1"], "--images", "20", "--format", "png", "pdf", "svg"]
    found = []
    for name in ("one", "two"):
        draw("correlation", *words, "--output", name)
        files = [tmp_path / f"{name}.{suffix}" for suffix in ("png", "pdf", "svg")]
        found.append([file.read_bytes() for file in files])
    assert found[0] == found[1]


def test_a_suffix_chooses_the_format_and_a_size_the_width(draw, digits_runs, tmp_path):
    done = draw("curves", digits_runs["kd1"], "--output", "mine.svg", "--size", "page")
    assert "written: mine.svg" in done.out
    assert [path.name for path in tmp_path.iterdir()] == ["mine.svg"]
    text = (tmp_path / "mine.svg").read_text()
    assert float(re.search(r'width="([\d.]+)pt"', text).group(1)) == pytest.approx(515, abs=30)


def test_seeds_of_one_experiment(draw, table, digits_runs):
    seeds = [digits_runs["kd1"], digits_runs["kd2"]]
    assert names_of(seeds) == ["kd, seed 1", "kd, seed 2"]

    draw("curves", *seeds, "--what", "loss", "--data")
    losses = []
    for folder in seeds:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["train_loss"] for line in lines])
    rows = table("curves")
    assert len(rows) == len(losses[0])
    for row, one, two in zip(rows, *losses, strict=True):
        assert float(row["mean"]) == pytest.approx((one + two) / 2)
        assert float(row["deviation"]) == pytest.approx(abs(one - two) / 2**0.5)


@pytest.mark.parametrize("metric", ["lr", "test_loss", "train_loss_kd", "top5"])
def test_metrics_over_the_epochs(draw, table, digits_runs, metric):
    draw("curves", digits_runs["kd1"], "--what", metric, "--data", "--format", "png")
    lines = (digits_runs["kd1"] / "metrics.jsonl").read_text().splitlines()
    key = "test_top5" if metric == "top5" else metric
    expected = [json.loads(line)[key] for line in lines]
    assert [float(row["mean"]) for row in table("curves")] == pytest.approx(expected)


def test_students_of_an_online_method(draw, table, digits_runs):
    files = [digits_runs["dml"] / f"student{number}_best" for number in (1, 2)]
    draw("cka", *files, "--between", "students", "--images", "40", "--data")
    rows = table("cka")
    assert {(row["network"], row["other_network"]) for row in rows} == {
        ("dml student1", "dml student2")
    }


# Errors.


def test_an_unknown_kind_or_format(refused, digits_runs):
    assert "invalid choice: 'tnse'" in refused("tnse", digits_runs["kd1"])
    error = refused("curves", digits_runs["kd1"], "--format", "pgn")
    assert "--format: unknown format 'pgn', did you mean 'png'?" in error
    assert "there is no folder" in refused("curves", digits_runs["kd1"], "--output", "a/b.png")
    assert "there is no folder" in refused("cka", digits_runs["kd1"], "--output", "a/b.png")


@pytest.mark.parametrize("kind", [kind for kind in FIGURES if kind != "curves"])
def test_a_run_without_weights(refused, draw, digits_runs, tmp_path, kind):
    folder = tmp_path / "kept" / "kd"
    folder.mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "result.json"):
        shutil.copy(digits_runs["kd1"] / name, folder)
    error = refused(kind, folder, "--device", "cpu")
    assert f"{folder} holds no student" in error
    assert "the file student_best was not kept" in error
    if kind == "tsne":
        draw("curves", folder)


@pytest.mark.parametrize("words", [["correlation"], ["cka"], ["tsne", "--teacher"]])
def test_no_run_has_a_teacher(refused, digits_runs, words):
    error = refused(*words, digits_runs["alone"], "--device", "cpu")
    assert "no run has a teacher" in error


def test_teacher_weights_that_are_gone(refused, digits_runs):
    words = ["--device", "cpu", "--teacher-ckpt", "/nowhere/weights"]
    error = refused("correlation", digits_runs["kd1"], *words)
    assert "no weights of resnet20 at /nowhere/weights" in error


def test_options_that_would_do_nothing(refused, digits_runs):
    run = digits_runs["kd1"]
    words = [run, "--teacher-ckpt", "weights"]
    assert "shows no teacher; add --teacher" in refused("tsne", *words)
    assert "add --between teacher" in refused("cka", *words, "--between", "students")
    assert "--seed" in refused("correlation", run, "--seed", "1")


def test_values_that_are_not_possible(refused, digits_runs):
    run = digits_runs["kd1"]
    assert "give an odd number" in refused("landscape", run, "--points", "4")
    assert "give a positive number" in refused("landscape", run, "--radius", "0")
    assert "too few for CKA" in refused("cka", run, "--images", "3", "--device", "cpu")
    assert "give a positive number" in refused("landscape", run, "--radius", "inf")
    assert "--seed -1" in refused("cka", run, "--seed", "-1")
    assert "from 0 to 4294967295" in refused("tsne", run, "--seed", str(2**32))
    assert "from 2 to 20 classes" in refused("tsne", run, "--classes", "1")
    assert "the data have 10 classes" in refused("tsne", run, "--classes", "3,10")
    assert "give a number, as 10" in refused("tsne", run, "--classes", "x")
    error = refused("curves", run, "--what", "train_los")
    assert "epoch 1 of the run kd has no train_los, did you mean 'train_loss'?" in error


def test_runs_of_different_data(refused, train_tiny, tiny_folder, digits_runs):
    assert train_tiny("other", "DISTILLER.TYPE", "NONE", "SOLVER.EPOCHS", "1").code == 0
    error = refused("cka", digits_runs["kd1"], tiny_folder / "other", "--device", "cpu")
    assert "have different data sets" in error


# Names.


def test_names_are_distinct(digits_runs, tmp_path):
    copies = []
    for parent in ("a", "b", "c"):
        folder = tmp_path / parent / "kd"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("")
        copies.append(folder)
    assert names_of(copies) == ["kd", "kd (2)", "kd (3)"]
    assert names_of([digits_runs["dml"] / "student_best"]) == ["dml"]


def test_teachers_of_one_architecture_are_distinct(draw, table, digits_runs, tmp_path):
    """The second run has the same teacher in a file of its own."""
    folder = tmp_path / "other"
    shutil.copytree(digits_runs["kd1"], folder)
    weights = tmp_path / "weights"
    shutil.copy(digits_runs["teacher"] / "student_best", weights)
    config = folder / "config.yaml"
    before = f"{digits_runs['teacher']}/student_best"
    config.write_text(config.read_text().replace(before, str(weights)))

    runs = [digits_runs["kd1"], folder, digits_runs["alone"]]
    draw("cka", *runs, "--images", "8", "--data", "--format", "png")
    pairs = {row["network"]: row["other_network"] for row in table("cka")}
    assert list(pairs.values()) == ["teacher resnet20", "teacher resnet20 (2)", "teacher resnet20"]
