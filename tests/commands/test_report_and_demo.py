"""The commands report, memo, keys and demo on real runs."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

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
    assert re.match(r"tiny_wide_[0-9a-f]{16}: wide on tiny, float32, 71 of \d+ views", listed.out)
    assert "all intact (1 file)" in tool("memo", "verify", *where).out

    (folder,) = (tmp_path / "teacher_memo").iterdir()
    (segment,) = (path for path in folder.iterdir() if path.name != "about.json")
    segment.write_bytes(segment.read_bytes()[:-1] + b"?")
    assert_refused(tool("memo", "verify", *where), f"damaged: {segment}; 0 of 1 files are intact")
    assert tool("memo", "delete", "--all", *where).code == 0
    assert "no teacher caches in" in tool("memo", "list", *where).out


def test_keys_are_listed(tool):
    done = tool("keys", "SOLVER.LR", "DKD")
    assert done.code == 0
    assert "SOLVER.LR: 0.05" in done.out
    assert "DKD.BETA: 8.0" in done.out
    assert "EDKD" not in done.out
    assert_refused(tool("keys", "SOLVR"), "no key or group SOLVR.*did you mean 'SOLVER'")


@pytest.fixture
def demo(tool, tmp_path):
    """demo(*words): the demo in its folder, not on digits but on tiny images, with one seed."""
    import_plugin(str(PLUGIN))
    keys = ["SOLVER.EPOCHS", "2", "SOLVER.AMP", "off", "DATASET.TYPE", "tiny"]
    keys += ["DISTILLER.TEACHER", "narrow", "DISTILLER.STUDENT", "narrow"]
    keys += ["DISTILLER.CHECK_TEACHER", "False"]  # two epochs leave it near chance
    return lambda *words: tool("demo", "--prefix", tmp_path, "--seeds", "1", *words, *keys)


LINE = r"run (\d) of 3: (.+), seed 1: ([\d.]+) %, (\d+ s|already there)"


def test_demo_shows_a_line_for_each_run(demo, tmp_path):
    first = demo()
    assert first.code == 0, first.err
    runs = re.findall(f"^{LINE}$", first.out, re.MULTILINE)
    assert [run[:2] for run in runs] == [
        ("1", "teacher"),
        ("2", "student alone"),
        ("3", "student by EDKD"),
    ]
    assert "epoch" not in first.out.split("Handwritten digits")[0]
    for _, name, top1, took in runs:
        assert re.search(rf"\| {name} \| [\d,]+ \| 1 \| {top1} \|", first.out)
        assert took.endswith(" s")

    # Files.
    picture = tmp_path / "demo" / "curves.png"
    assert picture.stat().st_size > 10_000
    assert f"curves: {picture}" in first.out
    run = tmp_path / "demo" / "student by EDKD,seed=1"
    result = json.loads((run / "result.json").read_text())
    assert (result["method"], result["epochs"]) == ("EDKD", 2)
    assert "epoch 2" in (run / "worklog.txt").read_text()

    # A second time.
    again = demo()
    assert again.code == 0
    assert again.out.split("Handwritten digits")[1] == first.out.split("Handwritten digits")[1]
    assert {took for *_, took in re.findall(LINE, again.out)} == {"already there"}


def test_demo_continues_an_interrupted_run(demo):
    """The message says so; the runs before it are not repeated."""
    from edkd.signals import Stopped

    def stop(*args):
        raise Stopped(2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edkd.distillers.edkd.EDKD.losses", stop)
        stopped = demo()
    assert stopped.err == "edkd: stopped; the same command continues from here\n"
    assert stopped.out.count(" %, ") == 2

    done = demo()
    assert done.code == 0, done.err
    took = [took for *_, took in re.findall(LINE, done.out)]
    assert took[:2] == ["already there", "already there"]
    assert took[2].endswith(" s")


def test_demo_verbose_shows_the_log(demo):
    out = demo("--verbose").out
    assert re.search(r"^epoch 2  lr ", out, re.MULTILINE)
    assert len(re.findall(LINE, out)) == 3


def test_demo_rewrites_its_line_on_a_terminal(demo, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((50, 20)))
    out = demo().out
    assert "\rrun 3 of 3: student by EDKD, seed 1, epoch 2 of 2" in out
    screen = [line.rsplit("\r", 1)[-1] for line in out.splitlines()]
    assert len([line for line in screen if re.fullmatch(LINE, line)]) == 3


def test_what_the_demo_names_to_try_next_works(demo, tool, tmp_path):
    """The three commands, as a shell takes them; DKD appears in the table of the second."""
    lines = demo().out.split("To try next")[1].splitlines()[1:]
    names = []
    for line in lines:
        python, script, *words = shlex.split(line)
        assert shutil.which(python)
        names.append(Path(script).stem)
        plugin = ["--plugin", PLUGIN] if names[-1] == "eval" else []
        done = tool(names[-1], *words, *plugin)
        assert done.code == 0, (line, done.err)
        if names[-1] == "eval":
            assert words[0] == str(tmp_path / "demo" / "student by EDKD,seed=1")
            assert "-c" not in words
        if names[-1] == "report":
            assert "| student by DKD |" in done.out
    assert names == ["train", "report", "eval"]
    assert (tmp_path / "demo" / "student by DKD,seed=1" / "result.json").is_file()


@pytest.mark.slow
def test_a_distilled_student_beats_one_alone_on_digits(tool, tmp_path):
    """With one seed; the README has the mean of three, four points apart."""
    done = tool("demo", "--prefix", tmp_path, "--seeds", "1")
    assert done.code == 0
    best = dict(re.findall(r"\| ([\w ]+) \| [\d,]+ \| 1 \| [^|]+ \| ([\d.]+) \|", done.out))
    assert float(best["student by EDKD"]) > float(best["student alone"])
