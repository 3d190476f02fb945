"""The text of the page: its numbers are those of the runs, and no text is taken for markup."""

import json
import re
from collections import Counter
from statistics import mean, stdev

import numpy as np
import pytest
import torch

from edkd.engine.outputs import collect
from edkd.report import analysis
from edkd.report.findings import Problem
from edkd.report.page import MARKER, page
from edkd.report.predictions import prediction_sections
from edkd.report.sections.errors import errors
from edkd.report.subject import subjects_of
from edkd.results.runs import read_run
from tests.html_tables import Tables

EVIL = "<script>window.bad = 1</script><b>&amp;"


def number(text):
    return float(text.split()[0])


def row_of(table, name):
    (row,) = [row for row in table if row[0] == name]
    return row


def test_the_table_has_the_numbers_of_the_results(tables, digits_runs):
    table = tables["Top-1 accuracy on the test set of digits"]
    results = {
        name: json.loads((folder / "result.json").read_text())
        for name, folder in digits_runs.items()
    }
    for which, place in (("last", 5), ("best", 6)):
        key = f"{which}_test_top1"
        assert row_of(table, "alone")[place] == f"{results['alone'][key]:.2f}"
        assert row_of(table, "dml")[place] == f"{results['dml'][key]:.2f}"
        both = [results["kd1"][key], results["kd2"][key]]
        assert row_of(table, "kd")[place] == f"{mean(both):.2f} ± {stdev(both):.2f}"
    assert row_of(table, "kd")[3] == f"{results['kd1']['parameters']:,}"

    runs = tables["Single runs"]
    seeds = {row[1]: row for row in runs if row[0] == "kd"}
    for seed in ("1", "2"):
        result = results[f"kd{seed}"]
        assert seeds[seed][3] == f"{result['last_test_top1']:.2f}"
        assert seeds[seed][4] == f"{result['best_test_top1']:.2f}"
        assert seeds[seed][5] == str(result["best_epoch"])


def test_the_charts_have_the_numbers_of_the_metrics(tables, text, digits_runs):
    lines = (digits_runs["alone"] / "metrics.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    table = tables["Top-1 accuracy, test set, each epoch"]
    shown = row_of(table, "alone")[1 : 1 + len(history)]
    assert shown == [f"{record['test_top1']:.2f} %" for record in history]

    # The student alone has no other loss, so one chart has both its name and this axis.
    (trace,) = [
        trace
        for chart in charts_of(text)
        for trace in chart["data"]
        if trace.get("name") == "alone" and axis_of(chart) == "train_loss_ce"
    ]
    assert trace["y"] == [record["train_loss_ce"] for record in history]


def axis_of(chart):
    return chart["layout"].get("yaxis", {}).get("title", {}).get("text")


def charts_of(text):
    found = re.findall(r'<script type="application/json">(.*?)</script>', text)
    return [json.loads(chart) for chart in found]


def test_the_matrix_counts_each_test_image_of_each_class(tables, findings):
    from sklearn.datasets import load_digits

    matrix = tables["Confusion matrix: number of images; columns are predicted classes"]
    counts = [[int(text) for text in row[1:]] for row in matrix[1:]]
    assert len(counts) == 10
    for row in counts:
        assert sum(row[:-1]) == row[-1]
    assert sum(row[-1] for row in counts) == 898
    assert sum(row[-1] for row in counts) < len(load_digits().target)

    # Against the accuracy that the run itself measured.
    measured = {found.line.name: found.runs[0] for found in findings}
    for name, run in measured.items():
        right = run.confusion.trace()
        if name != "dml":  # its accuracy is that of two students
            assert 100 * right / 898 == pytest.approx(run.run.accuracy("best"), abs=1e-6)


def test_test_images_of_a_class_are_counted_once(findings):
    from edkd.api import load_config
    from edkd.dataset import get_dataset

    cfg = load_config(opts=["DATASET.TYPE", "digits"])
    data = get_dataset(cfg, torch.device("cpu"))
    target = torch.cat([batch.target for batch in data.test.epoch(1)])
    expected = Counter(target.tolist())
    for found in findings:
        totals = found.runs[0].confusion.sum(1).tolist()
        assert dict(enumerate(totals)) == expected


def test_the_calibration_error_is_that_of_the_logits(tables, digits_runs):
    """Directly, from another pass over the test images."""
    from edkd.engine.finished import open_run

    opened = open_run(digits_runs["alone"], device="cpu")
    outputs = collect(opened.student, opened.data)
    probability = outputs.logits.double().softmax(1)
    confidence, predicted = probability.max(1)
    right = (predicted == outputs.target).double()

    error = 0.0
    for number_ in range(1, 16):
        inside = (confidence > (number_ - 1) / 15) & (confidence <= number_ / 15)
        if inside.any():
            gap = (right[inside].mean() - confidence[inside].mean()).abs()
            error += float(inside.double().mean() * gap)
    shown = row_of(tables["Calibration on the test set"], "alone")[1]
    assert shown == f"{100 * error:.2f}"


def test_agreement_is_measured_where_there_is_a_teacher(tables, text, findings):
    table = tables["Student and teacher on the test set"]
    assert [row[0] for row in table[1:]] == ["kd"]
    assert "±" in table[1][1]
    assert "No teacher: alone, dml" in text

    (kd,) = [found for found in findings if found.line.name == "kd"]
    for run in kd.runs:
        cases = run.agreement
        assert 100 * (cases.both_right + cases.only_student) == pytest.approx(run.top1)


def test_the_matrix_of_the_first_seed_alone_is_kept(findings):
    (kd,) = [found for found in findings if found.line.name == "kd"]
    first, second = kd.runs
    assert first.confusion.sum() == first.num_images == second.num_images
    assert second.confusion is None


def test_the_same_teacher_runs_once(digits_runs, monkeypatch):
    """Two seeds have it."""
    computed = []
    whole = analysis._teacher_logits

    def counted(opened, weights):
        computed.append(opened.folder)
        return whole(opened, weights)

    monkeypatch.setattr(analysis, "_teacher_logits", counted)
    runs = [read_run(digits_runs[name]) for name in ("kd1", "kd2")]
    (found,) = analysis.Analyst("cpu", lambda line: None).findings(subjects_of(runs)[0])
    assert computed == [digits_runs["kd1"]]
    same, other = [run.agreement for run in found.runs]
    assert same != other


def test_logits_that_are_not_finite_are_a_problem(digits_runs, monkeypatch):
    def broken(*arguments):
        outputs = collect(*arguments)
        logits = outputs.logits.clone()
        logits[3, 2] = float("nan")
        return outputs._replace(logits=logits)

    monkeypatch.setattr(analysis, "collect", broken)
    (subject,) = subjects_of([read_run(digits_runs["alone"])])
    (found,) = analysis.Analyst("cpu", lambda line: None).findings(subject)
    assert found.runs == []
    assert "student_best are not finite" in found.problems[0].reason


def test_rows_of_other_classes_have_a_chart_of_their_own(findings):
    """As image folders, which are one kind of data set."""
    run = findings[0].runs[0]._replace(confusion=np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
    other = findings[0]._replace(runs=[run], class_names=("cat", "dog", "absent"))
    section = errors([findings[0], other, findings[1]], [])
    charts = [block for block in section.blocks if block.kind == "chart"]
    assert [len(chart.traces) for chart in charts] == [2, 1]

    # A class without test images has no accuracy.
    assert charts[1].traces[0]["y"] == [75, 100]
    assert charts[1].summary == "Lowest on average: cat, 75.0 %; highest: dog, 100.0 %."


def test_wrong_images_are_pictures_with_a_text(text, findings):
    images = re.findall(r'<img class="small" src="data:image/png;base64,[^"]+" alt="([^"]+)"', text)
    assert len(images) == sum(len(found.images) for found in findings) > 0
    wrong = findings[0].images[0]
    assert f"true class {wrong.target}, predicted {wrong.predicted} with" in images[0]
    assert wrong.target != wrong.predicted


def test_pictures_are_the_test_images(findings):
    """With the values of scikit-learn, 0 to 16, at the place that the text names."""
    import base64
    import io

    from PIL import Image

    from edkd.api import load_config
    from edkd.dataset import get_dataset
    from edkd.report.analysis import _pixels

    data = get_dataset(load_config(opts=["DATASET.TYPE", "digits"]), torch.device("cpu"))
    images = torch.cat([batch.image for batch in data.test.epoch(1)])
    wrong = findings[0].images[0]
    file = io.BytesIO(base64.b64decode(wrong.uri.partition(",")[2]))
    shown = torch.from_numpy(np.array(Image.open(file).convert("RGB")).reshape(-1, 3))
    expected = _pixels(images[wrong.position], data).permute(1, 2, 0).reshape(-1, 3)
    assert torch.equal(shown, expected)
    assert shown.max() > 200


def test_several_students_have_curves_of_their_own(tables):
    table = tables["Top-1 accuracy of the students of dml, test set, each epoch"]
    assert [row[0] for row in table[1:]] == ["student1", "student2", "ensemble", "mean"]


def test_methods_are_tested_against_the_student_alone(tmp_path, write_run):
    """With the verdicts of edkd table."""
    from edkd.results.comparison import columns_of
    from edkd.results.grid import Choice, long_grid
    from edkd.results.verdicts import judged

    for kind, start in (("NONE", 60), ("KD", 70)):
        for seed in (1, 2, 3):
            settings = {"DISTILLER.TYPE": kind}
            teacher = "resnet20" if kind == "KD" else ""
            more = {"method": kind, "teacher": teacher, "student": ["resnet8"]}
            curve = (40.0, start + seed / 10)
            write_run(tmp_path / f"{kind},seed={seed}", seed, curve, settings=settings, **more)
    many = [read_run(folder) for folder in sorted(tmp_path.iterdir())]
    (one,) = judged(columns_of(many), "", "last", 0.05)
    grid = long_grid(one, Choice())
    table = Tables(page(many)).found[grid.title]
    assert table == [grid.header, *grid.rows]
    assert "BEATS" in str(table)


def test_what_is_left_out_is_named(text):
    assert "<li>x holds no finished run</li>" in text


def test_the_head(text):
    head = text[:4096]
    assert MARKER in head
    assert '<html lang="en">' in head
    assert "default-src &#39;none&#39;" in head
    assert "<title>4 runs on digits" in head
    assert 'name="viewport"' in head


def test_texts_of_runs_are_escaped(tmp_path, write_run, findings):
    """Names of runs, data sets, settings, commands and classes."""
    folder = write_run(
        tmp_path / "<script>window.bad=1<",
        dataset=EVIL,
        settings={"DISTILLER.TYPE": "KD", EVIL: EVIL},
        method=EVIL,
    )
    about = {"command": ["edkd", EVIL], "cwd": EVIL, "device": EVIL, "packages": {EVIL: EVIL}}
    (folder / "environment.json").write_text(json.dumps(about))
    (subject,) = subjects_of([read_run(folder)])
    named = findings[0]._replace(
        class_names=[EVIL] * 10, problems=[Problem(EVIL, EVIL)], line=subject.lines[0]
    )

    text = page([read_run(folder)], [EVIL], lambda subject: prediction_sections([named]))
    assert text.count("<script") == 2 + text.count('<script type="application/json">')
    assert EVIL not in text
    assert "<script>window" not in text

    # Texts of charts: plotly takes tags for markup.
    for chart in charts_of(text):
        for trace in chart["data"]:
            assert "<" not in trace.get("name", "")


def test_names_can_be_broken_where_they_have_parts(tmp_path, write_run):
    text = page([read_run(write_run(tmp_path / "kd,<b>,A=1"))])
    assert "<span>kd,<wbr>&lt;b&gt;,<wbr>A=<wbr>1</span>" in text


def test_numbers_that_are_not_finite_are_gaps(tmp_path, write_run):
    folder = write_run(tmp_path / "kd")
    lines = [
        {"epoch": 1, "test_top1": 40.0, "train_loss": float("nan"), "lr": "fast"},
        {"epoch": 2, "test_top1": 70.0, "train_loss": 1.5, "lr": 10**400},
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = page([read_run(folder)])
    (chart,) = [chart for chart in charts_of(text) if "train_loss" in json.dumps(chart["layout"])]
    assert chart["data"][0]["y"] == [None, 1.5]
    assert "NaN" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)


def test_rows_of_several_data_sets_have_chapters(tmp_path, write_run):
    for name in ("digits", "mnist"):
        write_run(tmp_path / name / "kd", dataset=name)
    text = page([read_run(tmp_path / name / "kd") for name in ("digits", "mnist")])
    assert re.findall(r'<h2 id="data\d-title">(.*?)</h2>', text) == ["digits", "mnist"]
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_differences_are_marked(tmp_path, write_run):
    folders = [
        write_run(tmp_path / f"{i}" / f"kd{i}", lr=lr) for i, lr in enumerate((0.1, 0.1, 0.2))
    ]
    text = page([read_run(folder) for folder in folders])
    table = Tables(text).found["Keys that differ between the rows"]
    assert table == [["key", "kd0", "kd1", "kd2"], ["SOLVER.LR", "0.1", "0.1", "0.2"]]
    assert re.findall("<mark>(.*?)</mark>", text) == ["0.2"]


def test_without_weights_the_reason_stands_in_the_page(tmp_path, write_run):
    from edkd.report.analysis import Analyst

    run = read_run(write_run(tmp_path / "kd"))
    (subject,) = subjects_of([run])
    sections = prediction_sections(Analyst("cpu", lambda line: None).findings(subject))
    assert [section.key for section in sections] == ["predictions"]
    (note,) = sections[0].blocks
    assert note.text == "Not evaluated: kd: no weights in the folder"


def test_environments_are_compared(tmp_path, write_run):
    commit = "0123456789abcdef" * 2
    for name in ("a", "b", "c"):
        about = {
            "command": ["edkd", "train", "a b"],
            "cwd": "/home/me/my runs",
            "commit": f"{commit}+changes",
            "packages": {"torch": "2.16.0" if name == "b" else "2.15.0"},
        }
        folder = write_run(tmp_path / name, lr=len(name))
        (folder / "environment.json").write_text(json.dumps(about))
    write_run(tmp_path / "d", settings={"SOLVER.EPOCHS": 7})

    text = page([read_run(folder) for folder in sorted(tmp_path.iterdir())])
    found = Tables(text).found
    differing = found["What differs between the runs"]
    assert differing == [["fact", "a", "b", "c"], ["torch", "2.15.0", "2.16.0", "2.15.0"]]
    assert "<mark>2.16.0</mark>" in text
    assert ["commit of edkd", "0123456789ab+changes"] in found["Shared by all of these runs"]
    assert "cd &#39;/home/me/my runs&#39;\nedkd train &#39;a b&#39;" in text
    assert "1 run without environment.json." in text


def test_the_teachers_of_all_seeds_count(tmp_path, write_run):
    """As in `edkd table`: each seed has one, and the runs of a seed count once."""
    about = {"teacher": "resnet20", "student": ["resnet8"], "method": "KD"}
    for seed, top1 in enumerate((96.0, 97.0, 98.0), 1):
        write_run(tmp_path / f"kd,SEED={seed}", seed, teacher_top1=[top1], **about)
    write_run(tmp_path / "again" / "kd,SEED=3", 3, teacher_top1=[98.0], **about)

    # One teacher of all seeds has no deviation; a seed did not measure its two teachers.
    several = about | {"settings": {"DISTILLER.TYPE": "KD+AT"}}
    for seed, top1s in enumerate(([95.0, 90.0], [95.0, 91.0], []), 1):
        write_run(tmp_path / f"two,SEED={seed}", seed, (1.0, 2.0), teacher_top1=top1s, **several)

    folders = [*sorted(tmp_path.glob("*SEED*")), tmp_path / "again" / "kd,SEED=3"]
    text = page([read_run(folder) for folder in folders])
    table = Tables(text).found["Top-1 accuracy on the test set of digits"]
    assert row_of(table, "kd")[-1] == "97.00 ± 1.00"
    assert row_of(table, "two")[-1] == "95.00, 90.50 ± 0.71"
    assert "97.00 ± 1.00 %" in text
