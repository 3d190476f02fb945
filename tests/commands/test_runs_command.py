"""The command runs: on real runs of other processes, and on many folders."""

import json
import shlex
import signal
import subprocess
import sys

import pytest

from tests.commands.conftest import ALONE, DIGITS
from tests.processes import wait_for
from tests.runs import CHECKOUT, assert_refused, records

SIZE = ["SOLVER.BATCH_SIZE", "64", "SOLVER.AMP", "off", "LOG.WANDB", "False"]


@pytest.fixture
def start(server, tmp_path):
    """start(epochs): a run on digits in a process of its own; the process and the run's folder."""
    started = []

    def start(epochs):
        words = ["--cfg", DIGITS / ALONE, *SIZE, "SOLVER.EPOCHS", epochs]
        words += ["LOG.PREFIX", tmp_path / "output", "EXPERIMENT.NAME", "a b"]
        started.append(server.start("train", *words, folder=tmp_path))
        return started[-1], tmp_path / "output" / "digits" / "a b"

    yield start
    for process in started:
        try:
            process.kill()
        except ProcessLookupError:
            continue


def lines_of(path):
    return path.read_text().count("\n") if path.exists() else 0


def test_a_run_is_followed_until_it_ends(start, server, tool, tmp_path):
    process, run = start(epochs=3)
    wait_for(lambda: lines_of(run / "metrics.jsonl") == 1)

    # Seen from another process.
    done = tool("runs", tmp_path / "output", "--json")
    assert (done.code, done.err) == (0, "")
    (seen,) = json.loads(done.out)
    assert (seen["state"], seen["method"], seen["student"]) == ("running", "NONE", ["resnet8"])
    assert (seen["dataset"], seen["epochs"], seen["folder"]) == ("digits", 3, str(run))
    assert seen["age_seconds"] < 60

    # Ctrl-C ends the follower alone.
    follower = server.start("runs", run, "--follow", folder=tmp_path)
    wait_for(lambda: follower.out)
    follower.kill(signal.SIGINT)
    assert follower.wait() == 130
    assert follower.err == "edkd: stopped; the run goes on\n"

    # Followed, in plain lines.
    done = tool("runs", run, "--follow")
    assert (done.code, done.err) == (0, "")
    assert "edkd" not in done.out
    *log, last = done.out.splitlines()
    assert log == (run / "worklog.txt").read_text().splitlines()
    assert last.startswith("finished  epoch 3/3  last ")
    assert process.wait() == 0

    # Each epoch's line, but the last one's, ends with the time left.
    epochs = [line for line in log if " epoch " in line and "train_loss" in line]
    assert [" time left " in line for line in epochs] == [True, True, False]
    status = json.loads((run / "status.json").read_text())
    assert status["end"] == {"state": "finished", "reason": "", "exit_code": 0}
    taken = records(run)[1]
    unit = taken["train_seconds"] + taken["eval_seconds"]
    assert shown_seconds(epochs[1]) == pytest.approx(unit, abs=1.0 + 0.05 * unit)


def shown_seconds(line):
    number, unit = line.split(" time left ")[1].split()
    return float(number) * {"s": 1, "min": 60}[unit]


def test_a_killed_run_is_shown_with_how_to_resume(server, tiny, tool, tmp_path, monkeypatch):
    run = tmp_path / "distill" / "a b"
    keys = ["DISTILLER.TYPE", "KD", "SOLVER.EPOCHS", "30"]
    process = server.start("train", *tiny, "a b", *keys, folder=tmp_path)
    wait_for((run / "latest").exists)
    process.kill()
    process.wait()

    monkeypatch.chdir(tmp_path)
    done = tool("runs", "distill")
    row, reason, way, _, summary = done.out.splitlines()[1:]
    assert row.split()[:6] == ["stopped", "KD", "wide", "->", "narrow", "tiny"]
    assert row.endswith("distill/a b")
    assert reason.strip() == "killed, or the machine stopped"
    assert summary == "1 run: 1 stopped"

    # That command continues it.
    python, script, *words = shlex.split(way.strip().removeprefix("continue: "))
    assert (python, script, words[-1]) == ("python", "tools/train.py", "--resume")
    done = tool("train", *words)
    assert done.code == 0, done.err
    assert len(records(run)) == 30
    assert tool("runs", "distill", "--state", "finished").out.count("30/30") == 1


def many(folder, number):
    """Folders of runs: finished, killed, and of older versions, with 240 epochs each."""
    record = {"lr": 0.05, "train_loss": 1.0, "train_top1": 50.0, "test_top1": 60.0}
    record |= {"test_loss": 1.0, "train_seconds": 10.0, "eval_seconds": 1.0}
    history = "".join(json.dumps({"epoch": i, **record}) + "\n" for i in range(1, 241))
    config = (CHECKOUT / "configs/cifar100/_base_.yaml").read_text()
    result = {"method": "KD", "student": ["resnet20"], "dataset": "cifar100", "epochs": 240}
    result |= {"last_test_top1": 60.0, "best_test_top1": 60.0}
    for i in range(number):
        run = folder / f"project{i % 7}" / f"run{i}"
        run.mkdir(parents=True)
        (run / ".lock").touch()
        (run / "latest").touch()
        (run / "config.yaml").write_text(config)
        (run / "metrics.jsonl").write_text(history)
        if i % 4:
            (run / "result.json").write_text(json.dumps(result))
        if i % 2:
            (run / "status.json").write_text(json.dumps({"epochs": 240, "epochs_done": 240}))
    (folder / "project0" / "run0" / "result.json").write_text('{"epochs": 2')
    (folder / "project1" / "run1" / "config.yaml").write_bytes(b"\xff\0")


def test_many_folders_are_listed_quickly(tmp_path):
    """200 in a fresh interpreter, without torch; some are damaged. Mostly a third of a second."""
    many(tmp_path, 200)
    code = (
        "import sys; from edkd.__main__ import main; import time; begin = time.process_time(); "
        f"main(['runs', {str(tmp_path)!r}, '--state', 'finished']); "
        "assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules); "
        "print(time.process_time() - begin)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    *_, summary, seconds = done.stdout.splitlines()
    assert summary == "150 runs: 150 finished"
    assert float(seconds) < 2


def test_a_folder_without_runs(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tool("runs").out == "no runs\n"
    assert tool("runs", "--json").out == "[]\n"
    assert tool("runs", "--follow").out == "no run is running in output\n"
    assert_refused(tool("runs", "nowhere"), "nowhere does not exist; give the folder of a run")
    assert_refused(tool("runs", tmp_path, "--state", "finishd"), "did you mean 'finished'")
    assert_refused(tool("runs", "--follow", "--json"), "leave out --json")
