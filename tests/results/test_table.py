"""The command table: verdicts, protocols, outliers, published figures, its formats and errors."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from edkd.engine.config.compare import flatten
from edkd.results.names import method_of
from edkd.results.protocol import protocol_of
from edkd.results.published import code_of, published
from edkd.sweep.plan import plan
from tests.runs import CHECKOUT

ALONE = [69.0, 69.2, 69.1]
KD = [70.6, 70.9, 70.7]


@pytest.fixture
def show(tool):
    """show(*words) -> exit code, standard output, standard error."""
    return partial(tool, "table")


@pytest.fixture
def text(show):
    """text(*words) -> the printed table of a command that succeeds."""

    def text(*words):
        code, out, err = show(*words)
        assert (code, err) == (0, "")
        return out

    return text


@pytest.fixture
def records(text):
    """records(*words) -> the lines of the CSV by the names of rows."""

    def records(*words):
        lines = csv.DictReader(io.StringIO(text(*words, "--format", "csv")))
        return {line["row"]: line for line in lines}

    return records


@pytest.fixture
def runs(write_method):
    """The student alone, KD, a method that is level with KD, and a worse one; three seeds each."""
    write_method("NONE", ALONE)
    write_method("KD", KD)
    write_method("DKD", [70.8, 70.5, 71.2])
    return write_method("RKD", [66.0, 66.1, 66.2])


def line_of(table, start):
    """The words of the line of a table that begins with a name."""
    (line,) = [line for line in table.splitlines() if line.startswith(f"{start} ")]
    return re.split(r"\s{2,}", line)


# What is computed.


def test_a_table(text, runs):
    table = text(runs)
    assert table.splitlines()[0] == "cifar100, resnet56 -> resnet20"
    header = line_of(table, "method")
    assert header[:5] == ["method", "n", "last", "best (test)", "vs alone"]
    assert header[5:] == ["p", "verdict", "needed", "published"]
    assert line_of(table, "teacher resnet56") == [
        *("teacher resnet56", "72.34", "+3.24", "72.34 P240"),
    ]
    assert line_of(table, "student alone") == [
        *("student alone", "3", "69.10 ± 0.10", "69.60 ± 0.10", "(baseline)", "69.06 P240"),
    ]
    assert line_of(table, "KD") == [
        *("KD", "3", "70.73 ± 0.15", "71.23 ± 0.15", "+1.63", "<0.001", "BEATS", "2"),
        "70.66 P240",
    ]
    assert line_of(table, "RKD")[4:8] == ["-3.00", "<0.001", "WORSE", "2"]
    assert max(map(len, table.splitlines())) <= 100


def test_another_baseline(text, records, runs):
    table = text(runs, "--baseline", "kd")
    assert line_of(table, "method")[4:6] == ["vs alone", "vs KD"]
    alone, versus, p, verdict, seeds = line_of(table, "DKD")[4:9]
    assert (alone, versus, verdict) == ("+1.73", "+0.10", "INCONCLUSIVE")
    assert float(p) > 0.05
    assert int(seeds) > 50

    record = records(runs, "--baseline", "KD")["DKD"]
    assert float(record["p"]) == pytest.approx(float(p), abs=0.0005)
    assert float(record["low"]) < float(record["vs_baseline"]) < float(record["high"])
    assert record["seeds_needed"] == seeds


def test_the_level_decides(text, runs):
    """KD against DKD is inconclusive at any level, KD against the student alone is not."""
    strict = text(runs, "--alpha", "0.0000001")
    assert line_of(strict, "KD")[6] == "INCONCLUSIVE"
    assert "alpha 1e-07" in strict


def test_best_or_last(write_method, records):
    """A method whose best epoch is good, and whose last one is not."""
    write_method("NONE", ALONE)
    folder = write_method("KD", ALONE)
    for run in folder.glob("KD*"):
        content = json.loads((run / "result.json").read_text())
        content["best_test_top1"] += 5
        (run / "result.json").write_text(json.dumps(content))

    assert records(folder)["KD"]["verdict"] == "INCONCLUSIVE"
    best = records(folder, "--by", "best")["KD"]
    assert (best["compared"], best["verdict"]) == ("best", "BEATS")


def test_one_seed_has_no_verdict(write_method, text):
    write_method("NONE", ALONE)
    folder = write_method("KD", [75.0])
    table = text(folder)
    assert line_of(table, "KD")[1:6] == ["1", "75.00", "75.50", "+5.90", "(one seed)"]
    assert "no verdict: a test needs two seeds or more" in table


def test_a_baseline_that_has_nothing_to_be_tested_with(write_method, text):
    assert "no verdict" not in text(write_method("NONE", ALONE))


def test_equal_seeds_have_no_verdict(write_method, text):
    write_method("NONE", [69.0] * 3)
    table = text(write_method("KD", [70.0] * 3))
    assert line_of(table, "KD")[2:6] == ["70.00 ± 0.00", "70.50 ± 0.00", "+1.00", "(no variance)"]
    assert "no verdict" not in table, "the seeds are not too few"


def test_several_runs_of_a_seed_count_once(write_method, text):
    write_method("NONE", ALONE)
    write_method("KD", KD)
    table = text(write_method("KD", KD, name="again"))
    assert line_of(table, "KD")[1:3] == ["3 (6 runs)", "70.73 ± 0.15"]


def test_many_tests_are_pointed_out(text, runs):
    notes = " ".join(text(runs).split())
    assert "the 3 tests are not corrected for their number" in notes
    assert "0.15 of them would be BEATS or WORSE on average" in notes


def test_a_test_in_two_columns_is_one_test(write_method, text):
    """Runs without a teacher stand in the column of each teacher."""
    write_method("NONE", ALONE)
    write_method("USKD", KD, teacher="")
    write_method("KD", KD)
    folder = write_method("KD", KD, name="other", teacher="resnet110")

    notes = " ".join(text(folder).split())
    assert notes.count("USKD") == 2
    assert "the 3 tests are not corrected for their number" in notes


# Rows and columns.


def test_switches_are_part_of_the_method(write_method, text):
    write_method("NONE", ALONE)
    write_method("NONE", ALONE, "doubled", settings={"NONE.CE_WEIGHT": 2.0})
    write_method("NONE", ALONE, "smooth", settings={"SOLVER.LABEL_SMOOTHING": 0.1})
    write_method("KD", KD, "lskd", settings={"DISTILLER.LSKD": True})
    write_method("KD", KD, "shuffled", settings={"DISTILLER.SHUFFLE_TEACHER": True})
    write_method("KD", KD, "dot", settings={"SOLVER.TRAINER": "dot", "SOLVER.DOT.DELTA": 0.1})
    write_method("EDKD", KD, "paper", settings={"EDKD.FORM": "paper"})
    folder = write_method("EDKD", KD, "code", settings={"EDKD.FORM": "reference"})

    table = text(folder, "--format", "markdown")
    names = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
    assert sorted(names[2:]) == [
        "EDKD (paper)",
        "EDKD (reference)",
        "KD (teacher shuffled)",
        "KD+DOT",
        "KD+LSKD",
        "student alone",
        "student alone (CE x 2)",
        "student alone (label smoothing 0.1)",
    ]
    assert names[2] == "student alone"
    assert "| 71.43 P240 |" in table, "the published figure of KD+LSKD"


def test_other_settings_of_a_method_are_rows_of_their_own(write_method, show, text):
    write_method("NONE", ALONE)
    write_method("KD", KD, "cool", settings={"KD.TEMPERATURE": 2.0})
    folder = write_method("KD", KD, "warm", settings={"KD.TEMPERATURE": 4.0})
    rows = text(folder, "--format", "markdown")
    assert "| KD (KD.TEMPERATURE=2.0) | 3 |" in rows
    assert "| KD (KD.TEMPERATURE=4.0) | 3 |" in rows

    code, _, err = show(folder, "--baseline", "KD")
    assert code == 2
    assert "several such rows; give one: 'KD (KD.TEMPERATURE=2.0)'" in err
    table = text(folder, "--baseline", "KD (KD.TEMPERATURE=2.0)", "--format", "markdown")
    assert "vs KD" in table


def test_a_setting_that_older_versions_lack_makes_no_row_where_it_is_off(write_method, records):
    write_method("KD", KD)
    folder = write_method("KD", KD, "new", settings={"DISTILLER.NEW": False})
    assert list(records(folder)) == ["KD"]
    folder = write_method("KD", KD, "newer", settings={"DISTILLER.NEW": True})
    assert sorted(records(folder)) == ["KD", "KD (DISTILLER.NEW=True)"]


def test_the_student_alone_stands_in_all_columns_of_its_student(write_method, text):
    write_method("NONE", ALONE)
    write_method("NONE", [72.0, 72.1], student="resnet8x4")
    write_method("KD", KD)
    write_method("KD", KD, name="110", teacher="resnet110")
    both = ["resnet20", "resnet20"]
    folder = write_method("DML", [71.0, 71.1], teacher="", teacher_top1=[], student=both)
    table = text(folder)
    titles = [line for line in table.splitlines() if line.startswith("cifar100, ")]
    assert titles == [
        "cifar100, resnet110 -> resnet20",
        "cifar100, resnet56 -> resnet20",
        "cifar100, resnet8x4",
    ]
    assert table.count("\nstudent alone ") == 3
    assert table.count("\nDML (mean of 2") == 2


def test_the_order_of_the_runs_is_that_of_the_columns(write_method, text):
    folder = write_method("KD", KD, student="resnet8x4")
    write_method("KD", KD)
    first, second = sorted(folder.glob("*SEED=1"), reverse=True)
    table = text(first, second)
    assert table.index("resnet56 -> resnet8x4") < table.index("resnet56 -> resnet20")


def test_without_the_student_alone(write_method, show):
    folder = write_method("KD", KD)
    code, out, _ = show(folder)
    assert code == 0
    assert "no baseline, so no test: cifar100, resnet56 -> resnet20 (--baseline names one)" in out
    assert "verdict" not in line_of(out, "method")


def test_a_baseline_that_some_pairs_lack(write_method, text):
    write_method("KD", KD)
    write_method("DKD", KD)
    folder = write_method("DKD", KD, student="resnet8x4")
    table = text(folder, "--baseline", "KD")
    assert "no baseline, so no test: cifar100, resnet56 -> resnet8x4" in table
    assert "INCONCLUSIVE" in table


# What must not be hidden.


def test_mixed_protocols_are_refused(write_method, show):
    write_method("NONE", ALONE)
    short = {"SOLVER.EPOCHS": 12, "SOLVER.LR_DECAY_STAGES": [7, 9, 11]}
    folder = write_method("KD", KD, settings=short)
    code, out, err = show(folder)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert f"{folder}/NONE,resnet20,SEED=1 and {folder}/KD,resnet20,SEED=1" in err
    assert "SOLVER.EPOCHS 240 and 12" in err
    assert "--mix-protocols" in err


def test_protocols_of_any_two_runs_are_compared(write_method, show):
    """Also where the first run does not list the key, because its version did not have it."""
    write_method("NONE", ALONE)
    write_method("DKD", KD, settings={"SOLVER.NEW": 1})
    folder = write_method("KD", KD, settings={"SOLVER.NEW": 2})
    code, _, err = show(folder)
    assert code == 2
    assert "different protocols (SOLVER.NEW 1 and 2)" in err


@pytest.fixture
def initialise():
    """initialise(folder, "KD"): each seed of a method has initial weights of its own."""

    def initialise(folder, method):
        for run in folder.glob(f"{method},*"):
            content = json.loads((run / "result.json").read_text())
            content["settings"]["DISTILLER.STUDENT_CKPT"] = f"/weights/{content['seed']}"
            (run / "result.json").write_text(json.dumps(content))

    return initialise


def test_initial_weights_of_each_seed_are_no_rows(write_method, initialise, text):
    write_method("NONE", ALONE)
    folder = write_method("KD", KD)
    initialise(folder, "NONE")
    initialise(folder, "KD")
    table = text(folder)
    assert line_of(table, "student alone")[1] == "3"
    assert line_of(table, "KD")[1] == "3"
    assert "weight decay 0.0005, DISTILLER.STUDENT_CKPT given" in " ".join(table.split())


def test_initial_weights_are_another_protocol_than_new_ones(write_method, initialise, show, text):
    write_method("KD", KD, name="new")
    folder = write_method("KD", KD)
    initialise(folder, "KD")
    code, _, err = show(folder)
    assert code == 2
    assert "different protocols (DISTILLER.STUDENT_CKPT given and ''); give" in err

    table = text(folder, "--mix-protocols", "--format", "markdown")
    assert "| KD (DISTILLER.STUDENT_CKPT=given) | 3 |" in table


def test_a_protocol_without_a_usual_setting_is_another_one(write_method, show):
    """Weight decay 0 is not its absence, which stands for the default."""
    write_method("KD", KD, settings={"SOLVER.WEIGHT_DECAY": 0.0})
    folder = write_method("KD", KD, "usual")
    for run in folder.glob("usual*"):
        content = json.loads((run / "result.json").read_text())
        del content["settings"]["SOLVER.WEIGHT_DECAY"]
        (run / "result.json").write_text(json.dumps(content))

    code, _, err = show(folder)
    assert code == 2
    assert "SOLVER.WEIGHT_DECAY" in err


def test_mixed_protocols_on_request(write_method, text, records):
    """Each row has its protocol, and there is no test across protocols."""
    write_method("NONE", ALONE)
    short = {"SOLVER.EPOCHS": 12, "SOLVER.LR_DECAY_STAGES": [7, 9, 11]}
    write_method("DKD", KD)
    folder = write_method("KD", KD, settings=short)

    table = text(folder, "--mix-protocols", "--format", "markdown")
    (header,) = [line for line in table.splitlines() if line.startswith("| method")]
    assert header.endswith("| protocol |")
    assert "| (other protocol) |  | 70.66 P240† | 12 epochs, batch 64, SGD, lr 0.05 " in table
    assert "† another protocol than that of the runs; P240: 240 epochs" in table

    found = records(folder, "--mix-protocols")
    assert found["KD"]["no_verdict_because"] == "other protocol"
    assert found["KD"]["published_same_protocol"] == "False"
    assert found["DKD"]["verdict"] == "BEATS"


def test_pairs_may_differ_in_their_learning_rate(write_method, text):
    """As in the published protocol, in which light students have 0.01."""
    write_method("KD", KD)
    folder = write_method("KD", KD, student="MobileNetV2", settings={"SOLVER.LR": 0.01})
    assert text(folder).count("protocol: P240: 240 epochs") == 1


def test_outliers_are_listed_and_count(write_method, text, records):
    write_method("NONE", ALONE)
    folder = write_method("KD", [77.1, 77.2, 60.03])
    table = text(folder)
    assert line_of(table, "KD")[2] == "71.44 ± 9.88"
    lines = " ".join(table.split())
    start = "outlier, which counts in all figures: last 60.03, best 60.53, KD, seed 3:"
    assert f"{start} {folder}/KD,resnet20,SEED=3" in lines
    assert records(folder)["KD"]["last_outlier_seeds"] == "3"


def test_who_chose_the_best_epoch(write_method, text):
    folder = write_method("KD", KD)
    table = text(folder)
    assert "chosen on the test set" in table
    assert line_of(table, "method")[3] == "best (test)"

    for run in folder.iterdir():
        lines = (run / "metrics.jsonl").read_text().replace("test_top1", "val_top1")
        (run / "metrics.jsonl").write_text(lines)
    table = text(folder)
    assert "chosen on held-out images" in table
    assert "chosen on the test set" not in table
    assert line_of(table, "method")[3] == "best (val)"
    assert "teacher resnet56" not in table, "its accuracy is that of held-out images"


def test_hardware_and_precision(write_method, text):
    """A line where all runs share them, another one where they differ."""
    write_method("NONE", ALONE)
    folder = write_method("KD", KD)
    assert "not recorded: hardware, precision, version of edkd" in text(folder)

    facts = {"device": "NVIDIA H100", "precision": "bfloat16", "edkd": "1.0", "commit": "a" * 40}
    for run in folder.iterdir():
        (run / "environment.json").write_text(json.dumps(facts))
    table = text(folder)
    assert (
        "- hardware: NVIDIA H100\n- precision: bfloat16\n- version of edkd: 1.0 aaaaaaa\n" in table
    )

    facts["precision"] = "float32"
    (run / "environment.json").write_text(json.dumps(facts))
    assert "- the runs differ in precision: " in text(folder)
    (run / "environment.json").write_text("damaged")
    assert "not recorded" in text(folder)


def test_teachers_that_differ(write_method, text):
    write_method("KD", KD)
    folder = write_method("DKD", KD, teacher_top1=[74.0])
    lines = " ".join(text(folder).split())
    for seed in (1, 2, 3):
        line = f"the teachers of seed {seed} differ in accuracy: DKD 74.00, KD 72.34"
        assert f"cifar100, resnet56 -> resnet20: {line}" in lines


def test_an_outlier_is_listed_once(write_method, text):
    """Although the student alone stands in the tables of two teachers."""
    write_method("NONE", [77.1, 77.2, 60.0])
    write_method("KD", KD)
    table = text(write_method("KD", KD, name="110", teacher="resnet110"))
    assert table.count("60.00") == 1


def test_folders_of_images_that_differ(write_method, text):
    """The data set has one name, and may be another one."""
    folder = write_method("KD", KD, dataset="folder", settings={"DATASET.TYPE": "folder"})
    for run, root in zip(sorted(folder.iterdir()), ["cats", "cats", "dogs"], strict=True):
        (run / "config.yaml").write_text(f"DATASET: {{ROOT: {root}}}\n")
    assert "only figures of the same images can be compared: cats; dogs" in text(folder).replace(
        "\n  ", " "
    )


def test_a_teacher_for_each_seed(write_run, tmp_path, text):
    for seed, top1 in enumerate((96.0, 97.0, 98.0), 1):
        about = {"teacher": "resnet20", "student": ["resnet8"], "teacher_top1": [top1]}
        write_run(tmp_path / f"r/kd,SEED={seed}", seed, method="KD", **about)
    write_run(tmp_path / "r/dkd,SEED=1", method="DKD", **about | {"teacher_top1": [96.0]})

    table = text(tmp_path / "r")
    assert line_of(table, "teacher resnet20")[1:3] == ["3", "97.00 ± 1.00"]
    assert "differ in accuracy" not in table


def test_several_teachers(write_run, tmp_path, text):
    """The mean of their accuracies is not that of the ensemble."""
    about = {"teacher": ["resnet20", "resnet14"], "student": ["resnet8"]}
    folder = write_run(tmp_path / "r/kd", method="KD", teacher_top1=[98.0, 97.0], **about)
    name = "teacher resnet20 + resnet14 (mean of 2)"
    assert line_of(text(folder), name) == [name, "97.50"]
    assert line_of(text(folder, "--layout", "wide"), "teacher")[1] == "97.50 (mean of 2)"


def test_columns_without_content_are_left_out(write_run, tmp_path, text):
    """There are no published figures for digits, and one row has nothing to be tested against."""
    about = {"method": "NONE", "teacher": "", "student": ["resnet8"]}
    table = text(write_run(tmp_path / "a", settings={"DISTILLER.TYPE": "NONE"}, **about))
    assert line_of(table, "method") == ["method", "n", "last", "best (test)"]


def test_all_published_figures_are_listed_with_their_sources(write_method, text):
    lines = " ".join(text(write_method("KD", KD)).split())
    assert (
        "published for KD: 70.66 (P240, RepDistiller README); 71.74 (PSKD, SKD README, its own run)"
    ) in lines


def test_the_published_figure_follows_the_protocol(write_method, text):
    """Of several, the one that was published under the protocol of the runs."""
    folder = write_method("KD", KD, settings={"SOLVER.LR": 0.1})
    table = text(folder)
    assert line_of(table, "KD")[-1] == "71.74 PSKD"
    assert "protocol: PSKD" in table


def test_the_published_figure_of_the_teacher_has_its_source(write_method, text):
    """Also where it is the only one with another protocol than that of the runs."""
    folder = write_method("KD", KD, settings={"SOLVER.LR": 0.1})
    table = text(folder)
    assert line_of(table, "teacher resnet56")[-1] == "72.34 P240†"
    lines = " ".join(table.split())
    assert (
        "- published for teacher resnet56: 72.34 (P240, RepDistiller README) - published for KD"
        in lines
    )
    assert "- † another protocol than that of the runs; P240: 240 epochs" in lines

    wide = text(folder, "--layout", "wide")
    assert "†" not in wide, "it does not have the published figure of the teacher"


def test_the_published_figure_of_the_teacher_follows_the_protocol(write_method, text):
    """Of three, the one that was published under the protocol of the runs."""
    folder = write_method("KD", KD, settings={"SOLVER.LR": 0.1}, teacher="resnet8x4")
    assert line_of(text(folder), "teacher resnet8x4")[-1] == "72.48 PSKD"


def test_a_published_figure_with_other_weights_is_explained(write_method, text):
    pair = {"student": "resnet8x4", "teacher": "resnet32x4"}
    table = text(write_method("DIST", KD, **pair))
    assert line_of(table, "DIST")[-1] == "76.31 PDIST"
    assert "the same training as that of the runs; PDIST: as P240, with weights" in table


# Formats.


def test_wide(write_method, runs, text):
    write_method("NONE", ALONE, student="resnet8x4")
    write_method("KD", KD, student="resnet8x4")
    table = text(runs, "--layout", "wide")
    assert line_of(table, "method") == ["method", "resnet56 -> resnet20", "resnet56 -> resnet8x4"]
    assert line_of(table, "KD") == ["KD", "70.73 ± 0.15 ↑", "70.73 ± 0.15 ↑"]
    assert line_of(table, "RKD") == ["RKD", "66.10 ± 0.10 ↓"]
    assert "↑ BEATS, ↓ WORSE, ~ INCONCLUSIVE: Welch's t-test of the last epoch" in table
    assert "no mark" not in table


def test_wide_says_why_a_figure_has_no_mark(write_method, runs, text):
    write_method("AT", [70.0])
    table = text(runs, "--layout", "wide")
    assert line_of(table, "AT") == ["AT", "70.00"]
    assert "no mark: one seed" in " ".join(table.split())


def test_csv_has_full_precision(records, runs):
    found = records(runs)
    assert list(found) == ["student alone", "DKD", "KD", "RKD"]
    kd = found["KD"]
    assert float(kd["last_mean"]) == sum(KD) / 3
    assert kd["last_values"] == "70.6;70.9;70.7"
    assert float(kd["vs_teacher"]) == pytest.approx(sum(KD) / 3 - 72.34)
    assert (kd["protocol"], kd["best_chosen_on"], kd["seeds"]) == ("P240", "test", "3")
    assert (kd["published"], kd["published_protocol"]) == ("70.66", "P240")
    assert kd["folders"].count(";") == 2


def test_markdown_has_equal_cells_in_each_row(text, runs):
    table = text(runs, "--format", "markdown")
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 7
    assert len({line.count("|") for line in rows}) == 1
    assert "| KD | 3 | 70.73 ± 0.15 | 71.23 ± 0.15 | -1.61 | +1.63 | <0.001 | BEATS | 2 |" in table


def latex(text, *words):
    """A LaTeX table, of which all rows have as many cells as columns were declared."""
    table = text(*words, "--format", "latex")
    assert table.startswith("% needs \\usepackage{booktabs}\n")
    environments = table.split(r"\begin{table}")[1:]
    for environment in environments:
        columns = re.search(r"\\begin{tabular}{(\w+)}", environment).group(1)
        rows = [line for line in environment.splitlines() if line.endswith(r"\\")]
        assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(columns)}
        for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}", r"\end{table}"):
            assert environment.count(rule) == 1
    assert table.count("{") == table.count("}")
    return table


def test_latex(text, write_method, runs):
    one = latex(text, runs)
    assert r"\caption{cifar100, resnet56 $\rightarrow$ resnet20}" in one
    assert r"KD & 3 & 70.73 $\pm$ 0.15 & 71.23 $\pm$ 0.15 & $-1.61$ & $+1.63$ & $<$0.001" in one

    write_method("NONE", ALONE, student="wrn_16_2")
    write_method("KD", KD, student="wrn_16_2")
    wide = latex(text, runs)
    assert wide.count(r"\begin{table}") == 1
    assert r"resnet56 $\rightarrow$ wrn\_16\_2" in wide
    assert r"\quad published &" in wide
    assert latex(text, runs, "--layout", "long").count(r"\begin{table}") == 2


def test_latex_compiles(text, write_method, runs, tmp_path):
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex on this machine; test_latex reads the structure")
    write_method("KD", KD, student="a_b%#$&{}~^\\")
    preamble = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    file = tmp_path / "table.tex"
    file.write_text(f"{preamble}{latex(text, runs)}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", file.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_special_characters_are_escaped_in_latex(text, write_method):
    table = text(write_method("KD", KD, student="a_b&50%"), "--format", "latex")
    assert r"a\_b\&50\%" in table


def test_a_file(show, runs, tmp_path):
    file = tmp_path / "table.md"
    file.write_text("before")
    code, out, _ = show(runs, "--format", "markdown", "--output", file)
    assert (code, out) == (0, f"table: {file}\n")
    assert file.read_text().startswith("**cifar100, resnet56 -> resnet20**\n")
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_device_gets_the_table_alone(show, runs):
    """With --output /dev/stdout, a note would end in the table; here, in what is printed."""
    assert show(runs, "--format", "csv", "--output", "/dev/null") == (0, "", "")
    assert Path("/dev/null").is_char_device()


def test_a_link_stays_and_its_target_is_replaced(show, runs, tmp_path):
    target = tmp_path / "table.md"
    target.write_text("before")
    link = tmp_path / "link.md"
    link.symlink_to(target)
    assert show(runs, "--format", "markdown", "--output", link)[0] == 0
    assert link.is_symlink()
    assert target.read_text().startswith("**cifar100, resnet56 -> resnet20**\n")


@pytest.mark.parametrize("output", ["", "."])
def test_a_folder_is_no_file_to_write(show, runs, tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    code, out, err = show(runs, "--output", output)
    assert (code, out) == (2, "")
    assert err == (
        "edkd: error: cannot write .: it is a folder; give --output the name of a file\n"
    )


def test_a_name_that_is_no_text_is_escaped_in_a_file(show, write_run, tmp_path):
    """CSV has the folders of the runs; a byte that is no UTF-8 was a UnicodeEncodeError."""
    about = {"method": "NONE", "teacher": "", "student": ["resnet8"]}
    name = os.fsdecode(b"a\xff")
    try:
        write_run(tmp_path / name, settings={"DISTILLER.TYPE": "NONE"}, **about)
    except OSError:
        pytest.skip("this file system has no such names")
    file = tmp_path / "table.csv"
    code, _, err = show(tmp_path, "--format", "csv", "--output", file)
    assert (code, err) == (0, "")
    assert r"/a\udcff" in file.read_text()


# Runs that are not as they should be.


def test_unfinished_runs_are_left_out_with_a_warning(show, runs):
    unfinished = runs / "KD,resnet20,SEED=2"
    (unfinished / "result.json").unlink()
    (unfinished / "config.yaml").write_text("")
    code, out, err = show(runs)
    assert code == 0
    assert line_of(out, "KD")[1] == "2"
    assert err == f"edkd: warning: {unfinished} holds no finished run; it is left out\n"


@pytest.mark.parametrize(
    "content",
    [
        {"student": 7},
        {"teacher": 7},
        {"teacher_top1": "high"},
        {"teacher_top1": [None]},
        {"settings": {"SOLVER.LR_DECAY_STAGES": "often"}},
        {"settings": {"SOLVER.EPOCHS": [1]}},
        {"last_test_top1": None},
    ],
)
def test_damaged_runs(show, write_method, content):
    """One line that names the run, and exit code 2."""
    folder = write_method("KD", [70.0])
    (run,) = folder.iterdir()
    saved = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(saved | content))
    code, out, err = show(folder)
    assert (code, out) == (2, "")
    assert err.startswith(f"edkd: error: {run} holds no finished run (")
    assert err.count("\n") == 1


def test_mistakes_are_one_line_and_exit_2(show, runs, tmp_path):
    commands = {
        "RUN_FOLDER": [],
        "no file or folder at nowhere": ["nowhere"],
        "no run has this method, did you mean 'DKD'": [runs, "--baseline", "DKDD"],
        "must be between 0 and 1": [runs, "--alpha", "1"],
        "invalid choice: 'html'": [runs, "--format", "html"],
        "--layout is for text": [runs, "--format", "csv", "--layout", "wide"],
        "cannot write": [runs, "--output", tmp_path / "no" / "table.txt"],
    }
    for expected, words in commands.items():
        code, _, err = show(*words)
        assert code == 2, words
        assert err.startswith("edkd: error: ")
        assert expected in err
        assert err.count("\n") == 1


def test_a_table_of_single_seeds_needs_no_scipy(show, write_method, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    write_method("NONE", [69.0])
    folder = write_method("KD", [70.0])
    assert show(folder)[0] == 0

    write_method("NONE", ALONE, name="more")
    code, _, err = show(write_method("KD", KD, name="again"))
    assert (code, err) == (2, "edkd: error: a t-test needs scipy: pip install scipy\n")


def test_the_runs_of_this_repository(text):
    folder = CHECKOUT / "results" / "2026-11-27_methods"
    table = text(*(folder / name for name in ("NONE", "KD", "DKD")))
    assert line_of(table, "DKD")[:4] == ["DKD", "1", "47.52", "47.52"]
    assert "5 epochs, batch 64, SGD, lr 0.05 x0.1 after 3, 4" in table


# From a suite to a table.


def test_from_runs_to_a_table(tool, train_tiny, tiny_folder):
    """Two methods and two seeds of tiny networks."""
    for method in ("NONE", "KD"):
        for seed in (1, 2):
            name = f"{method},seed={seed}"
            done = train_tiny(name, "DISTILLER.TYPE", method, "SOLVER.SEED", seed)
            assert done.code == 0, done.err

    done = tool("table", tiny_folder)
    assert done.code == 0, done.err
    assert done.out.startswith("tiny, wide -> narrow\n")
    assert line_of(done.out, "student alone")[1] == "2"
    assert line_of(done.out, "KD")[1] == "2"
    assert "protocol: 3 epochs, batch 8, SGD, lr 0.05 x0.1 after 1, 2" in done.out
    assert "precision: float32" in done.out
    assert "not recorded" not in done.out


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """suite("quick.yaml") -> the runs of a suite with one seed."""
    monkeypatch.chdir(tmp_path)

    def suite(name):
        content = (CHECKOUT / "configs/suites" / name).read_text()
        assert "seeds: [1, 2, 3]" in content
        (tmp_path / name).write_text(content.replace("seeds: [1, 2, 3]", "seeds: [1]"))
        return plan(name).runs

    return suite


def labels_of(runs):
    """The labels of the methods of planned runs, in their order."""
    return [method_of(dict(flatten(run.cfg)), {}) for run in runs]


def test_the_quick_suite(suite):
    runs = suite("quick.yaml")
    labels = ["NONE", "NONE", "KD", "EDKD (paper)", "EDKD (reference)"]
    assert labels_of(runs) == labels
    assert [run.needs for run in runs] == [(), (), (1,), (1,), (1,)]


def test_the_suite_of_controls(suite):
    assert labels_of(suite("controls.yaml")) == [
        "NONE",
        "NONE (CE x 2)",
        "NONE (label smoothing 0.1)",
        "USKD",
        "KD (teacher shuffled)",
        "KD",
    ]


def test_the_suite_of_the_edkd_table(suite):
    """Its seven pairs, each by KD, DKD and both forms of EDKD; their students alone."""
    runs = suite("edkd_table.yaml")
    found: dict[str, set[str]] = {}
    for run, label in zip(runs, labels_of(runs), strict=True):
        teacher, student = run.cfg.DISTILLER.TEACHER, run.cfg.DISTILLER.STUDENT
        found.setdefault(label, set()).add(f"{teacher} -> {student}")

    alone, *methods = ["NONE", "KD", "DKD", "EDKD (paper)", "EDKD (reference)"]
    assert list(found) == [alone, *methods]
    assert len(found[alone]) == 6
    for label in methods:
        assert len(found[label]) == 7
        assert all(published("cifar100", pair, "EDKD (reference)") for pair in found[label])

    for run in runs:
        protocol = protocol_of(dict(flatten(run.cfg)))
        assert code_of(protocol, run.cfg.DISTILLER.STUDENT) == "P240"


@pytest.mark.slow
def test_from_a_suite_to_a_table(tool, tmp_path, monkeypatch):
    """configs/suites/quick.yaml with two seeds and one epoch, in processes of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    content = (CHECKOUT / "configs/suites/quick.yaml").read_text()
    short = content.replace("EPOCHS: 8", "EPOCHS: 1").replace("EPOCHS=8", "EPOCHS=1")
    (tmp_path / "quick.yaml").write_text(short.replace("seeds: [1, 2, 3]", "seeds: [1, 2]"))

    done = tool("sweep", "quick.yaml", "--device", "cpu")
    assert done.code == 0, done.err
    done = tool("table", "output/quick", "--format", "markdown")
    assert done.code == 0, done.err
    names = re.findall(r"^\| (.*?) \| 2 \|", done.out, re.MULTILINE)
    assert names == [
        *("teacher resnet20", "student alone", "EDKD (paper)", "EDKD (reference)", "KD"),
        "student alone",
    ]
    assert "protocol: 1 epoch, batch 32, SGD, lr 0.02 cosine" in done.out
    assert "not recorded" not in done.out
