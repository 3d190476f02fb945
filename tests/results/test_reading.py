"""Reading runs, and the rows that they form."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edkd.errors import UserError
from edkd.results import finding
from edkd.results.runs import Run, find_runs, group_runs, read_run


def run_of(name="kd", seed=1, history=None, **result):
    """A run as `read_run` returns it."""
    result = {"parameters": 78042, "last_test_top1": 70.0, "best_test_top1": 71.0} | result
    history = history or [{"epoch": 1, "test_top1": 70.0}]
    return Run(name, {"SOLVER.LR": 0.05}, seed, result, history)


# Finding.


def test_folders_of_runs_and_of_projects(tmp_path, write_run):
    a, b = (write_run(tmp_path / "demo" / name) for name in ("a,seed=1", "b,seed=1"))
    assert find_runs([a]) == [a]
    assert find_runs([tmp_path / "demo"]) == [a, b]
    assert find_runs([b, tmp_path / "demo", a]) == [b, a]


def test_runs_are_found_at_any_depth(tmp_path, write_run):
    """In the order of their names, with 9 before 10; not in hidden folders, nor in a run."""
    runs = [write_run(tmp_path / "output" / "cifar" / f"T={t}" / "kd,seed=1") for t in (2, 9, 10)]
    runs.append(write_run(tmp_path / "output" / "digits" / "a"))
    write_run(tmp_path / "output" / ".trash" / "b")
    write_run(runs[0] / "wandb" / "c")
    (tmp_path / "output" / "teacher_memo" / "x").mkdir(parents=True)
    assert find_runs([tmp_path]) == runs
    assert find_runs([tmp_path / "output" / "cifar"]) == runs[:3]


def test_numbers_with_a_point_are_in_order(tmp_path, write_run):
    runs = [write_run(tmp_path / f"lr={lr}") for lr in ("0.05", "0.1", "0.5", "1", "x")]
    assert find_runs([tmp_path]) == runs


def test_a_link_to_a_folder_above_ends(tmp_path, write_run):
    run = write_run(tmp_path / "a" / "b")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert find_runs([tmp_path]) == [run]


def test_files_of_a_glob_are_left_out_with_a_warning(tmp_path, write_run, capsys):
    """A folder of runs also has pictures and notes, as the demo's curves.png."""
    run = write_run(tmp_path / "a")
    picture = tmp_path / "curves.png"
    picture.write_bytes(b"\x89PNG")
    (tmp_path / "broken").symlink_to(tmp_path / "absent")
    assert find_runs(sorted(tmp_path.iterdir())) == [run]
    assert capsys.readouterr().err == "".join(
        f"edkd: warning: {path} is no folder of a run; it is left out\n"
        for path in (tmp_path / "broken", picture)
    )
    assert find_runs([tmp_path]) == [run]
    assert capsys.readouterr().err == ""


def test_a_folder_without_runs_beside_others_is_left_out(tmp_path, write_run, capsys):
    run = write_run(tmp_path / "a")
    memo = tmp_path / "teacher_memo"
    memo.mkdir()
    assert find_runs([run, memo]) == [run]
    assert f"{memo} holds no finished run; it is left out" in capsys.readouterr().err


def test_unfinished_runs_are_left_out_with_a_warning(tmp_path, write_run, capsys):
    run = write_run(tmp_path / "a")
    unfinished = tmp_path / "b"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("")
    expected = f"edkd: warning: {unfinished} holds no finished run; it is left out\n"
    for paths in ([tmp_path], [run, unfinished]):
        assert find_runs(paths) == [run]
        assert capsys.readouterr().err == expected


def test_a_link_to_a_run_is_that_run(tmp_path, write_run):
    run = write_run(tmp_path / "a")
    (tmp_path / "link").symlink_to(run)
    assert find_runs([tmp_path / "link", run]) == [run]


def test_no_run_is_an_error(tmp_path):
    (tmp_path / "curves.png").write_bytes(b"")
    for path in (tmp_path, tmp_path / "curves.png"):
        with pytest.raises(UserError, match=f"no finished run at {path}; .*result.json"):
            find_runs([path])
    with pytest.raises(UserError, match="no file or folder at nowhere"):
        find_runs([tmp_path, tmp_path.relative_to(tmp_path) / "nowhere"])


@pytest.fixture
def close(monkeypatch):
    """close(folder, os.scandir, ...): as if its user may not call these functions in a folder."""

    def close(folder, *calls):
        def refusing(call):
            def refuse(path=".", *args, **kwargs):
                if folder in (Path(path), *Path(path).parents):
                    raise PermissionError(errno.EACCES, "Permission denied", str(path))
                return call(path, *args, **kwargs)

            return refuse

        for call in calls:
            monkeypatch.setattr(os, call.__name__, refusing(call))

    return close


@pytest.mark.parametrize("calls", [[os.scandir], [os.scandir, os.stat], [os.stat]])
def test_folders_that_cannot_be_read_are_left_out_with_a_warning(
    tmp_path, write_run, close, capsys, calls
):
    """os.stat alone: the names in a folder can be read, and its files cannot."""
    run = write_run(tmp_path / "a")
    closed = tmp_path / "b" / "closed"
    write_run(closed / "c")
    if os.stat in calls:
        closed = closed / "c"
    close(closed, *calls)

    assert find_runs([tmp_path]) == [run]
    expected = f"edkd: warning: {closed} cannot be read: Permission denied; it is left out\n"
    assert capsys.readouterr().err == expected

    expected = f"no finished run to use at {closed.parent}: {closed} cannot be read: Permission"
    with pytest.raises(UserError, match=expected):
        find_runs([closed.parent])


def test_a_link_to_a_folder_that_cannot_be_read_hides_no_others(tmp_path, write_run, capsys):
    """os.DirEntry.is_dir raises for such a link, and for one to itself."""

    class Link:
        def __init__(self, error):
            self.error = error

        def is_dir(self):
            raise OSError(self.error, os.strerror(self.error))

    assert finding._is_folder(Link(errno.EACCES))
    assert not finding._is_folder(Link(errno.ELOOP))

    run = write_run(tmp_path / "a")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert find_runs([tmp_path]) == [run]
    assert capsys.readouterr().err == ""


def leave_test_set_out(folder):
    """Turn a finished run into one of DATASET.TEST.EVALUATE False."""
    result = json.loads((folder / "result.json").read_text())
    result["last_val_top1"] = result.pop("last_test_top1")
    (folder / "result.json").write_text(json.dumps(result))


def test_the_error_has_the_reasons_of_runs_with_a_result(tmp_path, write_run):
    """It stated that a finished run has a result.json, of a run that has one."""
    runs = [write_run(tmp_path / "p" / name) for name in "abcde"]
    for run in runs:
        leave_test_set_out(run)
    with pytest.raises(UserError) as caught:
        find_runs([runs[0]])
    assert str(caught.value) == (
        f"no finished run to use at {runs[0]}: {runs[0]} was not evaluated on the test set; give "
        "folders of other runs"
    )

    (tmp_path / "p" / "unfinished").mkdir()
    (tmp_path / "p" / "unfinished" / "config.yaml").touch()
    with pytest.raises(UserError) as caught:
        find_runs([tmp_path])
    assert f"{runs[2]} was not evaluated on the test set, and 2 more; give" in str(caught.value)
    assert "result.json" not in str(caught.value)


def test_the_error_names_the_trials_of_a_study(tmp_path):
    (tmp_path / "study.log").touch()
    expected = f"{tmp_path} holds the trials of a study, which were not evaluated on the test set"
    with pytest.raises(UserError, match=f"no finished run to use at {tmp_path}: {expected}; give"):
        find_runs([tmp_path])


# Reading.


def test_a_run(tmp_path, write_run):
    folder = write_run(tmp_path / "kd,SOLVER.LR=0.1", seed=3, curve=(50.0, 70.0), lr=0.1)
    run = read_run(folder)
    assert run.name == "kd,SOLVER.LR=0.1"
    assert run.seed == 3
    assert run.settings["SOLVER.LR"] == 0.1
    assert run.curve == [50.0, 70.0]
    assert (run.accuracy("last"), run.accuracy("best")) == (70.0, 70.0)
    assert run.split == "test"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("kd,seed=1", "kd"),
        ("kd,SOLVER.SEED=12", "kd"),
        ("kd,SOLVER.SEED:2", "kd"),
        ("kd,SOLVER.SEED=2,SOLVER.LR=0.1", "kd,SOLVER.LR=0.1"),
        ("student by EDKD,seed=3", "student by EDKD"),
        ("SOLVER.SEED=2,SOLVER.LR=0.1", "SOLVER.LR=0.1"),
        ("seed=1", "project"),
        ("kd,seed=1b", "kd,seed=1b"),
        ("kd,MYSEED=1", "kd,MYSEED=1"),
    ],
)
def test_a_name_is_that_of_the_folder_without_the_seed(tmp_path, write_run, folder, name):
    assert read_run(write_run(tmp_path / "project" / folder)).name == name


def test_a_run_with_held_out_images(tmp_path, write_run):
    folder = write_run(tmp_path / "a")
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "val_top1": 60.0}\n')
    run = read_run(folder)
    assert run.split == "val"
    assert run.curve == [60.0]


def test_a_run_of_an_older_version_is_described_by_its_configuration(tmp_path, write_run):
    folder = write_run(tmp_path / "a", settings=None)
    (folder / "config.yaml").write_text(
        "DATASET: {ROOT: /data, TYPE: digits}\n"
        "DISTILLER: {TEACHER_CKPT: /t, TYPE: KD}\n"
        "EXPERIMENT: {NAME: a}\nLOG: {WANDB: false}\nSOLVER: {LR: 0.1, SEED: 7}\n"
    )
    run = read_run(folder)
    assert run.settings == {"DATASET.TYPE": "digits", "DISTILLER.TYPE": "KD", "SOLVER.LR": 0.1}
    assert run.seed == 1


GOOD_RESULT = {"last_test_top1": 1, "best_test_top1": 1, "parameters": 3, "seed": 1}
DAMAGED = {
    "cut": {"result.json": "{"},
    "a list": {"result.json": "[]"},
    "deep": {"result.json": 5000 * "["},
    "no parameters": {"result.json": json.dumps({**GOOD_RESULT, "parameters": None})},
    "a word": {"result.json": json.dumps({**GOOD_RESULT, "last_test_top1": "high"})},
    "not a number": {"result.json": json.dumps({**GOOD_RESULT, "best_test_top1": float("nan")})},
    "a seed in words": {"result.json": json.dumps({**GOOD_RESULT, "seed": "one"})},
    "settings in a list": {"result.json": json.dumps({**GOOD_RESULT, "settings": []})},
    "no epochs": {"metrics.jsonl": ""},
    "no accuracy": {"metrics.jsonl": '{"epoch": 1}\n'},
    "an accuracy in words": {"metrics.jsonl": '{"epoch": 1, "test_top1": "high"}\n'},
    "an accuracy that is NaN": {"metrics.jsonl": '{"epoch": 1, "test_top1": NaN}\n'},
    "a cut line": {"metrics.jsonl": '{"epoch": 1, "test_top1": 1.0}\n{"epoch": 2, "te'},
    "a record that is a number": {"metrics.jsonl": "5\n"},
    "a cut configuration": {"config.yaml": "LOG: {\n"},
    "an empty configuration": {"config.yaml": ""},
    "a configuration that contains itself": {"config.yaml": "A: &x [*x]\n"},
    "a node that contains itself": {"config.yaml": "A: &x {B: *x}\n"},
    "bytes": {"config.yaml": b"\xff"},
    "code": {"config.yaml": "!!python/object/apply:os.system ['true']"},
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_an_error(tmp_path, damage):
    files = {
        "result.json": json.dumps(GOOD_RESULT),
        "config.yaml": "SOLVER: {LR: 0.1}\n",
        "metrics.jsonl": '{"epoch": 1, "test_top1": 1.0}\n',
    }
    for name, content in (files | damage).items():
        content = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{tmp_path} holds no finished run"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl"])
def test_missing_files_are_an_error(tmp_path, write_run, name):
    folder = write_run(tmp_path / "a")
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"a holds no finished run .*{name}"):
        read_run(folder)


# Rows.


def test_runs_that_differ_in_their_seed_alone_share_a_row():
    runs = [run_of("kd", 1), run_of("dkd", 1), run_of("kd", 2), run_of("dkd", 2)]
    rows = group_runs(runs)
    assert [row.name for row in rows] == ["kd", "dkd"]
    assert [[run.seed for run in row.runs] for row in rows] == [[1, 2], [1, 2]]


def test_runs_with_other_settings_have_another_row():
    slow = run_of("kd", 1)
    fast = slow.__class__("kd", {"SOLVER.LR": 0.1}, 2, slow.result, slow.history)
    names = [row.name for row in group_runs([slow, fast])]
    assert names == ["kd (SOLVER.LR=0.05)", "kd (SOLVER.LR=0.1)"]


def test_seeds_with_initial_weights_of_their_own_share_a_row():
    first = run_of("kd")
    key = "DISTILLER.STUDENT_CKPT"
    runs = [
        first.__class__("kd", {key: value}, seed, first.result, first.history)
        for seed, value in enumerate(("a/1", "a/2", ""), 1)
    ]
    names = {row.name: len(row.runs) for row in group_runs(runs)}
    assert names == {f"kd ({key}=given)": 2, f"kd ({key}=)": 1}


def test_of_many_differences_the_first_are_shown():
    first = run_of("kd")
    many = {f"KD.{letter}": 1 for letter in "ABCDE"}
    second = first.__class__("kd", many, 1, first.result, first.history)
    assert group_runs([first, second])[1].name == "kd (KD.A=1, KD.B=1, KD.C=1, ...)"


def test_runs_of_the_same_seed_count_as_one():
    runs = [run_of(seed=1, last_test_top1=70.0), run_of(seed=1, last_test_top1=72.0)]
    (row,) = group_runs([*runs, run_of(seed=2, last_test_top1=75.0)])
    assert len(row.seeds) == 2
    assert row.accuracies("last") == [71.0, 75.0]


def test_curves_are_cut_to_the_shortest():
    def history(*curve):
        return [{"epoch": epoch, "test_top1": top1} for epoch, top1 in enumerate(curve, 1)]

    runs = [
        run_of(seed=1, history=history(10.0, 20.0, 30.0)),
        run_of(seed=1, history=history(20.0, 30.0)),
        run_of(seed=2, history=history(40.0, 50.0, 60.0)),
    ]
    (row,) = group_runs(runs)
    assert row.curves() == [[15.0, 25.0], [40.0, 50.0]]


def test_reports_import_no_torch():
    code = (
        "import sys, edkd.results.runs, edkd.results.table, edkd.results.figures\n"
        "import edkd.commands.report, edkd.commands.download\n"
        "print([name for name in ('torch', 'numpy', 'matplotlib', 'edkd.engine')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
