"""Sweeps on this machine: each run is a process of its own."""

import csv
import signal
import subprocess
import sys

import pytest

from tests.conftest import PLUGIN
from tests.processes import wait_for
from tests.runs import assert_refused, outcome


def sweep_folder(tmp_path):
    """The folder of the sweep s.yaml."""
    (folder,) = (tmp_path / "output" / "sweeps").glob("s-*")
    return folder


def read_results(tmp_path):
    with open(sweep_folder(tmp_path) / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_run_that_dies_is_resumed_and_one_that_diverges_is_not(
    write, tool, runs, tmp_path, monkeypatch, undisturbed
):
    """The first run is killed in its second epoch; the second one diverges; a sweep repeats none.

    The result of the first is that of a run that was not killed, bit for bit.
    """
    monkeypatch.setenv("DIED", str(tmp_path / "died"))
    file = write(overrides={"SOLVER.LR": [0.05, "1e30"]}, retries=1)
    first, second = (runs / f"alone,SOLVER.LR={rate}" for rate in ("0.05", "1e+30"))

    done = tool("sweep", file, "--device", "cpu")
    lines = done.out.splitlines()
    assert done.code == 6
    assert lines[1] == "run 1 of 2: output/p/alone,SOLVER.LR=0.05: starts"
    assert "exit code -9: ended by SIGKILL; the memory may have been too small" in lines[2]
    assert lines[3].endswith("SOLVER.LR=0.05: continues")
    assert " %), " in lines[4]
    assert lines[5].endswith("SOLVER.LR=1e+30: starts")
    assert "failed (exit code 3)" in lines[6]
    assert "| alone,SOLVER.LR=0.05 |" in done.out
    message = "not finished, of 2 runs: 1 failed; .* output/sweeps/s-[0-9a-f]{6}/NUMBER.log"
    assert_refused(done, message, code=6)
    assert "epochs 2-3" in (first / "worklog.txt").read_text()

    # The results.
    good, bad = read_results(tmp_path)
    assert (good["state"], bad["state"]) == ("finished", "failed")
    assert good["SOLVER.LR"] == "0.05"
    assert float(good["best_test_top1"]) >= float(good["last_test_top1"]) > 0
    assert bad["last_test_top1"] == ""
    assert "finite" in bad["error"]

    # Once more: the finished run is left alone.
    before = (first / "result.json").stat().st_mtime_ns
    file = write(overrides={"SOLVER.LR": [0.05]})
    done = tool("sweep", file)
    assert done.code == 0
    assert "SOLVER.LR=0.05: already there, " in done.out
    assert (first / "result.json").stat().st_mtime_ns == before
    assert not (second / "result.json").exists()
    assert outcome(first) == undisturbed("SOLVER.LR=0.05")


@pytest.mark.slow
def test_a_signal_stops_the_run_with_a_checkpoint(write, server, runs, tmp_path, undisturbed):
    """The same command then continues, to the bits of a run that was not stopped."""
    file = write()
    environment = dict(GO=str(tmp_path / "go"))
    run = runs / "alone"

    sweep = server.start("sweep", file, "--device", "cpu", folder=tmp_path, **environment)
    wait_for(lambda: (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").read_text())
    sweep.kill(signal.SIGTERM)
    assert sweep.wait() == 143, sweep.err
    assert sweep.err == "edkd: stopped; the same command continues from here\n"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    assert "edkd: stopped" in (sweep_folder(tmp_path) / "1.log").read_text()

    (tmp_path / "go").touch()
    sweep = server.start("sweep", file, "--device", "cpu", folder=tmp_path, **environment)
    assert sweep.wait() == 0, sweep.err
    assert "runs: 1 started" in sweep.out
    assert "run 1 of 1: output/p/alone: continues" in sweep.out
    assert outcome(run) == undisturbed()


LOCK = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX)"


def test_a_run_of_another_process_is_skipped(write, tool, runs):
    file = write()
    words = ["--plugin", PLUGIN, "--plugin", "pausing.py", "--cfg", "alone.yaml"]
    assert tool("train", *words, "SOLVER.EPOCHS=1").code == 0

    command = [sys.executable, "-c", f"{LOCK}; print(flush=True); sys.stdin.read()"]
    command.append(str(runs / "alone" / ".lock"))
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen(command, **pipes) as other:
        other.stdout.readline()
        done = tool("sweep", file)
        other.stdin.close()

    assert "run 1 of 1: output/p/alone: skipped: another process runs it" in done.out
    assert_refused(done, "not finished, of 1 runs: 1 in use by another process", code=6)
