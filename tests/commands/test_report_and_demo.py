"""The commands report, memo, keys and demo on real runs."""

import json
import re

import pytest

from edkd.engine.config.plugins import import_plugin
from tests.conftest import PLUGIN
from tests.runs import assert_refused, records


def test_report_compares_runs_over_seeds(train_tiny, tiny_folder, tool, tmp_path):
    runs = [(name, seed) for name in ("a", "b") for seed in (1, 2)]
    for name, seed in runs:
        rate = 0.05 if name == "a" else 0.1
        opts = ["SOLVER.SEED", seed, "SOLVER.LR", rate, "SOLVER.EPOCHS", 1]
        assert train_tiny(f"{name},SOLVER.SEED={seed}", *opts).code == 0

    done = tool("report", tiny_folder, "--picture", tmp_path / "curves.png")
    assert done.code == 0
    rows = [line for line in done.out.splitlines() if re.match(r"\| [ab] ", line)]
    assert len(rows) == 2
    reached = [records(tiny_folder / f"a,SOLVER.SEED={seed}")[0]["test_top1"] for seed in (1, 2)]
    assert f"| 2 | {sum(reached) / 2:.2f} ± " in rows[0]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert_refused(tool("report", tmp_path / "nowhere"), "no file or folder at")


def test_memo_lists_verifies_and_deletes(train_tiny, tool, tmp_path):
    assert train_tiny("a", "DISTILLER.TYPE", "KD", "SOLVER.EPOCHS", 1).code == 0
    where = ["--folder", tmp_path / "teacher_memo"]
    listed = tool("memo", "list", *where)
    assert listed.code == 0
    assert re.match(r"tiny_wide_[0-9a-f]{16}: wide on tiny, float32, 71 of \d+ logits", listed.out)
    assert "all intact (1 files)" in tool("memo", "verify", *where).out

    (folder,) = (tmp_path / "teacher_memo").iterdir()
    (segment,) = (path for path in folder.iterdir() if path.name != "about.json")
    segment.write_bytes(segment.read_bytes()[:-1] + b"?")
    assert_refused(tool("memo", "verify", *where), f"damaged: {segment}")
    assert tool("memo", "delete", "--all", *where).code == 0
    assert "no teacher caches in" in tool("memo", "list", *where).out


def test_keys_are_listed(tool):
    done = tool("keys", "SOLVER.LR", "DKD")
    assert done.code == 0
    assert "SOLVER.LR: 0.05" in done.out
    assert "DKD.BETA: 8.0" in done.out
    assert "EDKD" not in done.out
    assert_refused(tool("keys", "SOLVR"), "no key or group SOLVR.*did you mean 'SOLVER'")


def test_demo(tool, tiny, tmp_path):
    """Its table and its picture, and what it does when it runs again; here not on digits."""
    import_plugin(str(PLUGIN))
    words = ["--prefix", tmp_path, "--seeds", "1", "SOLVER.EPOCHS", "1", "SOLVER.AMP", "off"]
    words += ["DATASET.TYPE", "tiny", "DISTILLER.TEACHER", "narrow", "DISTILLER.STUDENT", "narrow"]
    first = tool("demo", *words)
    assert first.code == 0, first.err
    for name in ("teacher", "student alone", "student by EDKD"):
        assert re.search(rf"\| {name} \| [\d,]+ \| 1 \| \d", first.out)
    picture = tmp_path / "demo" / "curves.png"
    assert picture.stat().st_size > 10_000
    result = json.loads((tmp_path / "demo/student by EDKD,seed=1/result.json").read_text())
    assert (result["method"], result["epochs"]) == ("EDKD", 1)

    again = tool("demo", *words)
    assert again.code == 0
    assert again.out.split("Handwritten digits")[1] == first.out.split("Handwritten digits")[1]
    assert again.out.count("\nepoch ") == 0


@pytest.mark.slow
def test_a_distilled_student_beats_one_alone_on_digits(tool, tmp_path):
    """With one seed; the README has the mean of three, four points apart."""
    done = tool("demo", "--prefix", tmp_path, "--seeds", "1")
    assert done.code == 0
    best = dict(re.findall(r"\| ([\w ]+) \| [\d,]+ \| 1 \| [^|]+ \| ([\d.]+) \|", done.out))
    assert float(best["student by EDKD"]) > float(best["student alone"])
