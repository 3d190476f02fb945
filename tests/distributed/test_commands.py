"""The command train in several processes: stopped, killed, resumed, refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from edkd import world
from edkd.engine.build import Networks, build_distiller
from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.processes import check_shared
from edkd.errors import UserError
from tests.runs import CHECKOUT, outcome, records
from tests.small import TinyNet, config, tiny_data

FAULTS = CHECKOUT / "tests" / "reliability" / "fault_plugin.py"
FREQUENT = ["SOLVER.CHECKPOINT_MINUTES", "0.000001"]  # a checkpoint after each step
PATIENCE = 120
SHORT_PATIENCE = 20
"""Seconds, the second where another process has failed already."""


@pytest.fixture
def launch(server):
    """launch(number, words, of_rank, environment): run a command in several processes.

    As torchrun does, this process keeps the store in which they find one another.

    Returns:
        Their exit codes, and the lines on their standard errors.
    """

    def launch(number, words, of_rank=None, environment=None):
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = {"WORLD_SIZE": str(number), "MASTER_PORT": str(store.port)}
        common |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        commands = []
        for rank in range(number):
            own = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            own |= (environment or {}).get(rank, {})
            commands.append(server.start("train", *words, *(of_rank or {}).get(rank, []), **own))

        codes = []
        for command in commands:
            codes.append(code_of(command, PATIENCE if not any(codes) else SHORT_PATIENCE))
        lines = [line for command in commands for line in command.err.splitlines()]
        return codes, [line for line in lines if line.startswith("edkd: ")]

    return launch


def code_of(command, patience):
    """The exit code; a process that hangs is killed."""
    try:
        return command.wait(patience)
    except TimeoutError:
        command.kill()
        return -signal.SIGKILL


@pytest.fixture
def train(launch, tiny):
    """train(number, name, *words, of_rank={1: [...]}, environment={1: {...}}): runs of KD."""

    def train(number, name, *words, **options):
        return launch(number, [*tiny, name, "DISTILLER.TYPE", "KD", *words], **options)

    return train


@pytest.mark.parametrize("method", ["KD", "RKD", "DML"])
def test_two_processes_train_as_one(train, tiny_folder, method):
    """Up to rounding in float32: the same images, figures over all of them, one set of files."""
    words = ["DISTILLER.TYPE", method]
    codes, errors = train(1, "one", *words)
    assert (codes, errors) == ([0], [])
    codes, errors = train(2, "two", *words)
    assert (codes, errors) == ([0, 0], [])

    one, two = (records(tiny_folder / name) for name in ("one", "two"))
    for own, other in zip(one, two, strict=True):
        assert own.keys() == other.keys()
        for name in own:
            if "loss" in name:
                assert other[name] == pytest.approx(own[name], rel=1e-3), name
            if "top1" in name:
                assert other[name] == pytest.approx(own[name], abs=6), name
    assert {path.name for path in (tiny_folder / "one").iterdir()} == {
        path.name for path in (tiny_folder / "two").iterdir()
    }
    lines = (tiny_folder / "two" / "worklog.txt").read_text()
    assert lines.count("epoch 1 ") == 1


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_to_one_process_stops_all_after_the_same_step(train, tiny_folder, number):
    codes, errors = train(2, "whole")
    assert (codes, errors) == ([0, 0], [])

    fault = {1: ["--plugin", FAULTS]}
    place = {1: {"PLACE": "step", "CALL": "4", "SIGNAL": str(int(number))}}
    codes, errors = train(2, "parts", of_rank=fault, environment=place)
    assert codes == [128 + number] * 2
    assert errors == ["edkd: stopped; --resume continues from here"]
    assert load_checkpoint(tiny_folder / "parts" / "latest")["progress"]["step"] == 4
    assert not (tiny_folder / "parts" / "latest.previous").exists()  # it was saved once

    codes, errors = train(2, "parts", "--resume")
    assert (codes, errors) == ([0, 0], [])
    assert outcome(tiny_folder / "parts") == outcome(tiny_folder / "whole")


def test_a_killed_process_ends_the_others_and_no_step_is_lost(train, tiny_folder, extent):
    """At ten instants; a resumed run equals the one that ran through."""
    codes, _ = train(2, "whole", *FREQUENT)
    assert codes == [0, 0]

    calls = extent([2, 13], range(2, 27, 2), range(1, 28))
    for call in calls:
        name = f"killed{call}"
        dying = call % 2
        fault = {dying: ["--plugin", FAULTS]}
        place = {dying: {"PLACE": "step", "CALL": str(call), "SIGNAL": str(int(signal.SIGKILL))}}
        began = time.monotonic()
        codes, errors = train(2, name, *FREQUENT, of_rank=fault, environment=place)
        assert time.monotonic() - began < 30
        assert codes[dying] == -signal.SIGKILL
        assert codes[1 - dying] == 4
        assert len(errors) == 1
        assert "another process of the run ended" in errors[0]

        codes, errors = train(2, name, *FREQUENT, "--resume")
        assert (codes, errors) == ([0, 0], [])
        assert outcome(tiny_folder / name) == outcome(tiny_folder / "whole")


def test_another_number_of_processes_can_resume(train, tiny_folder):
    fault = {0: ["--plugin", FAULTS]}
    place = {0: {"PLACE": "step", "CALL": "5", "SIGNAL": str(int(signal.SIGTERM))}}
    codes, _ = train(3, "run", of_rank=fault, environment=place)
    assert codes == [143] * 3
    codes, errors = train(2, "run", "--resume")
    assert (codes, errors) == ([0, 0], [])

    codes, _ = train(1, "whole")
    own, other = (records(tiny_folder / name)[-1] for name in ("whole", "run"))
    assert other["train_loss"] == pytest.approx(own["train_loss"], rel=1e-3)


def test_a_loss_that_is_not_finite_stops_all(train, tiny_folder):
    codes, errors = train(2, "run", "SOLVER.LR", "1e30")
    assert codes == [3, 3]
    assert len(errors) == 1
    assert "not finite in epoch 1" in errors[0]
    assert (tiny_folder / "run" / "nonfinite.json").is_file()


def test_processes_that_disagree_are_refused(train, tiny_folder):
    codes, errors = train(2, "run", of_rank={1: ["SOLVER.WEIGHT_DECAY", "0.1"]})
    assert codes == [2, 2]
    assert len(errors) == 1
    assert "process 1 has another SOLVER.WEIGHT_DECAY than process 0 (0.1, not" in errors[0]
    assert not (tiny_folder / "run").exists()


def test_a_teacher_of_other_weights_is_refused(train, tiny_folder, tmp_path, tiny_teacher):
    other = tmp_path / "other"
    weights = torch.load(tiny_teacher, weights_only=True)["model"]
    torch.save({"model": {name: each * 1.5 for name, each in weights.items()}}, other)
    codes, errors = train(2, "run", of_rank={1: ["DISTILLER.TEACHER_CKPT", other]})
    assert codes == [2, 2]
    assert len(errors) == 1
    assert "process 1 has another teacher than process 0" in errors[0]
    assert not (tiny_folder / "run").exists()


def test_more_processes_than_images_of_a_batch_are_refused(train, tiny_folder):
    codes, errors = train(2, "run", "SOLVER.BATCH_SIZE", "1")
    assert codes == [2, 2]
    assert errors == [
        "edkd: error: SOLVER.BATCH_SIZE 1 counts the images of all processes, and there are 2; "
        "raise it, or start fewer processes"
    ]
    assert not (tiny_folder / "run").exists()


def test_a_missing_file_of_one_process_is_one_line(train, tiny_folder):
    codes, errors = train(2, "run", of_rank={1: ["DISTILLER.TEACHER_CKPT", "nowhere"]})
    assert codes == [4, 2]
    assert len(errors) == 1
    assert "nowhere" in errors[0]
    assert not (tiny_folder / "run").exists()


def test_an_image_folder_is_shared(launch, image_folder):
    """With workers; the unequal shares of evaluation add up to all images."""
    words = [*image_folder, "run", "DATASET.NUM_WORKERS", "1", "DISTILLER.TYPE", "NONE"]
    assert launch(2, words) == ([0, 0], [])


def test_mixed_images_have_partners_in_other_processes(train, tiny_folder):
    words = ["SOLVER.MIXUP", "0.8", "SOLVER.CUTMIX", "1.0", "DATASET.RANDOM_ERASING", "0.5"]
    for number, name in ((1, "one"), (2, "two")):
        codes, errors = train(number, name, *words)
        assert (codes, errors) == ([0] * number, [])
    own, other = (records(tiny_folder / name)[0] for name in ("one", "two"))
    assert other["train_loss"] == pytest.approx(own["train_loss"], rel=1e-4)


def test_batch_norm_of_shares_gives_another_result(train, tiny_folder):
    """SOLVER.SYNC_BATCH_NORM False; the processes still have the same weights."""
    for name, words in (("synced", []), ("shares", ["SOLVER.SYNC_BATCH_NORM", "False"])):
        codes, errors = train(2, name, *words)
        assert (codes, errors) == ([0, 0], [])
    synced, shares = (records(tiny_folder / name)[0] for name in ("synced", "shares"))
    assert synced["train_loss"] != shares["train_loss"]


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_others(train):
    """After SOLVER.PROCESS_TIMEOUT."""
    fault = {1: ["--plugin", FAULTS]}
    place = {1: {"PLACE": "step", "CALL": "4", "SIGNAL": str(int(signal.SIGSTOP))}}
    words = ["SOLVER.PROCESS_TIMEOUT", "3"]
    codes, errors = train(2, "run", *words, of_rank=fault, environment=place)
    assert codes == [4, -signal.SIGKILL]
    assert len(errors) == 1
    assert "did not answer" in errors[0]


def test_a_full_disk_of_the_first_process_ends_all(train, tmp_path):
    plugin = tmp_path / "full.py"
    plugin.write_text(FULL_DISK)
    codes, errors = train(2, "run", of_rank={0: ["--plugin", plugin]})
    assert codes == [5, 4]
    assert errors == ["edkd: error: no space left"]


FULL_DISK = """
from edkd.engine import run_files
from edkd.errors import StorageError

def full(*args, **options):
    raise StorageError("no space left")

run_files.save_checkpoint = full
"""


@pytest.mark.slow
def test_memory_does_not_grow(train, tmp_path):
    """Over 20 epochs, in both processes; the first epochs fill caches."""
    plugin = tmp_path / "memory.py"
    plugin.write_text(MEMORY)
    words = ["SOLVER.EPOCHS", "20", "--plugin", plugin]
    places = {rank: {"MEMORY": str(tmp_path / f"memory{rank}")} for rank in range(2)}
    codes, errors = train(2, "run", *words, environment=places)
    assert (codes, errors) == ([0, 0], [])
    for place in places.values():
        pages = [int(line) for line in Path(place["MEMORY"]).read_text().split()]
        assert len(pages) == 20
        assert pages[-1] - pages[4] < 1024  # 4 MiB


MEMORY = """
import os
from edkd.engine.run_files import RunFiles

original = RunFiles.save_epoch

def save_epoch(self, epoch):
    original(self, epoch)
    pages = open("/proc/self/statm").read().split()[1]
    with open(os.environ["MEMORY"], "a") as file:
        file.write(pages + "\\n")

RunFiles.save_epoch = save_epoch
"""


def test_fewer_images_than_processes_are_refused(monkeypatch):
    cfg = config("DISTILLER.TYPE", "NONE")
    data = tiny_data(cfg)
    distiller = build_distiller(cfg, data, Networks([TinyNet()], []))
    monkeypatch.setattr(world, "size", lambda: data.test.num_images)
    check_shared(data, distiller, "NONE")
    monkeypatch.setattr(world, "size", lambda: data.test.num_images + 1)
    with pytest.raises(UserError, match=r"there are \d+ test images for \d+ processes"):
        check_shared(data, distiller, "NONE")


@pytest.mark.slow
def test_torchrun_starts_and_restarts_a_run(tiny, tiny_folder):
    """One of its processes is killed once; the run goes on from its last checkpoint."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*launcher, "--max-restarts", "1", "-m", "edkd", "train", "--device", "cpu"]
    plugin = tiny_folder.parent / "once.py"
    plugin.write_text(KILLS_ONCE)
    marker = tiny_folder.parent / "killed"
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    environment |= {"MARKER": str(marker)}
    done = subprocess.run(
        [*command, *tiny, "run", *FREQUENT, "--plugin", str(plugin)],
        env=environment,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert marker.exists()
    assert [record["epoch"] for record in records(tiny_folder / "run")] == [1, 2, 3]


KILLS_ONCE = """
import os, pathlib, signal
from edkd.engine.train_step import TrainStep

original = TrainStep.__call__
calls = []

def train_step(*args):
    calls.append(1)
    marker = pathlib.Path(os.environ["MARKER"])
    if os.environ["RANK"] == "1" and len(calls) == 12 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)

TrainStep.__call__ = train_step
"""
