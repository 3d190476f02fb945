"""Sweeps on Ray: a cluster of this machine, and addresses where there is none."""

import os
import signal
import socket
import sys
from types import SimpleNamespace

import pytest

from tests.processes import wait_for
from tests.runs import assert_refused, outcome
from tests.sweep.test_sweep import read_results, sweep_folder

ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")

CHILD = "edkd.sweep.child"


def worker_of(folder, seed):
    """The worker of Ray whose child is a run in a folder; None as long as there is none."""
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if CHILD in words and f"SOLVER.SEED={seed}" in words and process.cwd() == str(folder):
                return process.parent()
        except psutil.Error:
            continue
    return None


def epochs(run):
    metrics = run / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.is_file() else 0


@pytest.mark.slow
def test_a_worker_is_killed(write, server, runs, tmp_path, undisturbed):
    """Two workers run at the same time, and one is killed after its first epoch.

    Its run is retried, and resumes; both results are complete, and those of runs that were not
    killed, bit for bit.
    """
    file = write(seeds=[1, 2], retries=1, resources={"cpus": 0.5})
    environment = dict(GO=str(tmp_path / "go"))
    words = ["sweep", file, "--ray", "local", "--device", "cpu"]
    sweep = server.start(*words, folder=tmp_path, **environment)
    first, second = (runs / f"alone,SOLVER.SEED={seed}" for seed in (1, 2))
    wait_for(lambda: epochs(first) and epochs(second))

    workers = [worker_of(tmp_path, seed) for seed in (1, 2)]
    assert workers[0].pid != workers[1].pid
    assert all(worker.name().startswith("ray::") for worker in workers)
    os.kill(workers[0].pid, signal.SIGKILL)
    log = sweep_folder(tmp_path) / "1.log"
    wait_for(lambda: "edkd: stopped" in log.read_text())
    (tmp_path / "go").touch()

    assert sweep.wait() == 0, sweep.err
    assert sweep.err == ""
    assert "submitted: 2; each occupies 0.5 CPUs and 0 GPUs" in sweep.out
    assert [line["state"] for line in read_results(tmp_path)] == ["finished", "finished"]
    by_run = {line.split()[1]: line for line in sweep.out.splitlines() if line.startswith("run ")}
    assert by_run["1"].endswith("resumed")
    assert not by_run["2"].endswith("resumed")
    assert outcome(first) == undisturbed("SOLVER.SEED=1")


@pytest.mark.slow
def test_failures_and_stops(write, server, runs, tmp_path):
    """A run that diverges is not retried; after SIGTERM, a run that waits saves a checkpoint."""
    overrides = {"SOLVER.LR": ["1e30", 0.05]}
    file = write(overrides=overrides, retries=3, resources={"cpus": 0.5})
    environment = dict(GO=str(tmp_path / "go"))
    words = ["sweep", file, "--ray", "local", "--device", "cpu"]
    sweep = server.start(*words, folder=tmp_path, **environment)
    run = runs / "alone,SOLVER.LR=0.05"
    wait_for(lambda: epochs(run) and "run 1 of 2" in sweep.out)
    assert "SOLVER.LR=1e+30: failed (exit code 3): " in sweep.out

    sweep.kill(signal.SIGTERM)
    assert sweep.wait() == 143, sweep.err
    assert sweep.err == "edkd: stopped; the same command continues from here\n"
    assert (run / "latest").is_file()
    assert "edkd: stopped" in (sweep_folder(tmp_path) / "2.log").read_text()
    assert [line["state"] for line in read_results(tmp_path)] == ["failed", "started"]


@pytest.mark.slow
def test_addresses_where_no_ray_is(write, tool, tmp_path, monkeypatch):
    """One that refuses connections, one that accepts them and is silent, and none at all."""
    file = write()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        message = f"--ray {address}: cannot connect to a Ray cluster \\(Connection refused\\)"
        assert_refused(tool("sweep", file, "--ray", address), message)
    assert_refused(tool("sweep", file, "--ray", "nonsense"), "--ray nonsense: .*nonsense")

    monkeypatch.setattr("edkd.sweep.on_ray.CONNECT", 4)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        done = tool("sweep", file, "--ray", address)
    assert_refused(done, f"--ray {address}: .*no answer within 4 s")
    assert not (tmp_path / "output").exists()


def test_ray_is_not_installed(write, tool, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = tool("sweep", write(), "--ray", "auto")
    assert_refused(done, "--ray needs Ray; install it: pip install 'edkd\\[ray\\]'")
    assert not (tmp_path / "output").exists()


class Cluster:
    """As much of Ray as is read."""

    def __init__(self, gpus):
        self.gpus = gpus

    def cluster_resources(self):
        return {"CPU": 4.0, "GPU": self.gpus}

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": self.gpus}}]


def test_resources_that_a_cluster_lacks(capsys):
    from edkd.errors import UserError
    from edkd.sweep.file import Resources
    from edkd.sweep.on_ray import _check_resources

    with pytest.raises(UserError, match="the cluster has 2 GPUs, and the sweep does not say"):
        _check_resources(Cluster(2.0), Resources())
    _check_resources(Cluster(2.0), Resources(gpus=0.5))
    _check_resources(Cluster(0), Resources())
    assert capsys.readouterr().err == ""
    _check_resources(Cluster(2.0), Resources(gpus=1, cpus=8))
    assert "no machine of the Ray cluster has 1 GPUs and 8 CPUs" in capsys.readouterr().err


def test_results_are_dropped_once_they_are_written(monkeypatch):
    """Ray frees the memory of a result when no reference to it is left."""
    from edkd.sweep import on_ray

    tasks = [SimpleNamespace(number=number) for number in range(3)]
    submitted = {id(task): task for task in tasks}
    collected = []
    monkeypatch.setattr(on_ray, "_collect", lambda ray, task, run, progress: collected.append(run))
    cluster = SimpleNamespace(wait=lambda waiting, timeout: (waiting[:2], waiting[2:]))
    on_ray._collect_ended(cluster, submitted, None)
    assert collected == tasks[:2]
    assert submitted == {id(tasks[2]): tasks[2]}


@pytest.mark.parametrize("token", ["this sweep", "another sweep", None])
def test_weights_are_returned_where_storage_is_not_shared(tmp_path, monkeypatch, token):
    from edkd.sweep import ray_task
    from edkd.sweep.job import Job, Outcome

    run = tmp_path / "run"
    run.mkdir()
    (run / "result.json").write_bytes(b"{}")
    (run / "student_best").write_bytes(b"weights")
    if token:
        (tmp_path / ".token").write_text(token)

    monkeypatch.setattr(ray_task, "attempt", lambda job, environment: Outcome(0))
    done = ray_task.run_task(Job((), str(tmp_path), "run", "1.log", {}, "this sweep"))
    assert done.files["result.json"] == b"{}"
    assert ("student_best" in done.files) == (token != "this sweep")


def test_a_machine_without_space_is_tried_again(tmp_path):
    from edkd.sweep.job import Job
    from edkd.sweep.ray_task import Failed, run_task

    (tmp_path / "logs").touch()
    with pytest.raises(Failed) as raised:
        run_task(Job((), str(tmp_path), "run", "logs/1.log", {}))
    code, error = raised.value.args
    assert code == 5
    assert "logs/1.log (File exists)" in error


def test_results_of_a_machine_with_a_disk_of_its_own(tmp_path):
    """What the task returns is written here, and nothing that is here is replaced."""
    from edkd.sweep.job import Outcome
    from edkd.sweep.on_ray import _write_files
    from edkd.sweep.ray_task import Done

    run = SimpleNamespace(folder=tmp_path / "p" / "run")
    files = {"result.json": b"{}", "student_best": b"weights", "metrics.jsonl": b""}
    _write_files(run, Done(Outcome(0), files, "elsewhere", 1.0, False))
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == files

    _write_files(run, Done(Outcome(0), {"result.json": b"other"}, "elsewhere", 1.0, False))
    assert (run.folder / "result.json").read_bytes() == b"{}"
