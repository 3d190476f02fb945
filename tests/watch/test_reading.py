"""The state of a run, from its folder."""

import json
import multiprocessing
import os
import time

import pytest

from edkd import folder_lock
from edkd.folder_lock import is_in_use, lock
from edkd.watch.folders import find_folders
from edkd.watch.reading import FRESH, SILENT, read_all, read_status
from edkd.watch.status import ABANDONED, FAILED, FINISHED, RUNNING, STOPPED
from edkd.watch.table import as_json, table
from tests.watch.conftest import result

NO_CODE = {"state": "stopped", "reason": "by a signal", "exit_code": 143}
FAILURE = {"state": "failed", "reason": "DATASET.ROOT is gone", "exit_code": 4}


def change(folder, **values):
    """Change `status.json`."""
    path = folder / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("has_status", [True, False])
def test_a_finished_run(run_at, tmp_path, has_status):
    run = read_status(run_at(tmp_path / "a", 4, 4, None, has_status, is_finished=True))
    assert (run.state, run.reason, run.exit_code) == (FINISHED, "", 0)
    assert (run.method, run.pair, run.dataset, run.seed) == (
        "KD",
        "resnet20 -> resnet8",
        "digits",
        3,
    )
    assert (run.epochs_done, run.epochs) == (4, 4)
    assert (run.last_top1, run.best_top1, run.split) == (46.0, 49.0, "test")
    assert (run.seconds_left, run.resume) == (None, "")


def test_a_finished_run_that_was_evaluated_on_held_out_images_only(run_at, tmp_path):
    """As a trial of `edkd tune`, which never sees the test set."""
    folder = run_at(tmp_path / "a", 4, 4, is_finished=True)
    held_out = {"last_val_top1": 12.22, "best_val_top1": 13.5}
    figures = {key: value for key, value in result(4).items() if not key.endswith("test_top1")}
    (folder / "result.json").write_text(json.dumps(figures | held_out))

    run = read_status(folder)
    assert (run.state, run.split) == (FINISHED, "val")
    assert (run.last_top1, run.best_top1) == (12.22, 13.5)
    assert "12.22 val  13.50 val" in table([run])

    # With figures of both, those of the test set count.
    (folder / "result.json").write_text(json.dumps(result(4) | held_out))
    run = read_status(folder)
    assert (run.split, run.last_top1, run.best_top1) == ("test", 46.0, 49.0)


@pytest.mark.parametrize("has_status", [True, False])
def test_a_killed_run_can_be_resumed(run_at, tmp_path, monkeypatch, has_status):
    monkeypatch.setattr("sys.argv", ["edkd", "runs"])
    run = read_status(run_at(tmp_path / "a", has_status=has_status))
    assert (run.state, run.epochs_done, run.epochs) == (STOPPED, 2, 4)
    assert (run.last_top1, run.best_top1) == (48.0, 49.0)
    assert run.reason.startswith("killed")
    assert run.resume == "edkd train --cfg 'a b.yaml' --resume"
    assert run.seconds_left is None


def test_a_stopped_run_has_its_exit_code(run_at, tmp_path):
    run = read_status(run_at(tmp_path / "a", end=NO_CODE))
    assert (run.state, run.reason, run.exit_code) == (STOPPED, "by a signal", 143)


def test_a_failed_run_has_its_reason(run_at, tmp_path):
    run = read_status(run_at(tmp_path / "a", end=FAILURE))
    assert (run.state, run.reason, run.exit_code) == (FAILED, "DATASET.ROOT is gone", 4)


@pytest.mark.parametrize("has_status", [True, False])
def test_a_figure_that_is_not_finite_is_a_failure(run_at, tmp_path, has_status):
    folder = run_at(tmp_path / "a", has_status=has_status)
    figures = {"loss_kd": "nan", "loss_ce": "2.3", "norm of the gradient": "inf"}
    found = {"epoch": 3, "step": 7, "figures": figures, "cause": "the teacher's logits"}
    (folder / "nonfinite.json").write_text(json.dumps(found))
    run = read_status(folder)
    assert (run.state, run.exit_code) == (FAILED, 3)
    expected = "loss_kd, norm of the gradient not finite in epoch 3, step 7; the teacher's logits"
    assert run.reason == expected

    # The run went on, past that epoch.
    (folder / "nonfinite.json").write_text(json.dumps(found | {"epoch": 2}))
    assert read_status(folder).state == STOPPED


@pytest.mark.parametrize("has_status", [True, False])
def test_a_run_without_a_checkpoint_is_abandoned(run_at, tmp_path, has_status):
    run = read_status(run_at(tmp_path / "a", 0, 4, None, has_status, is_saved=False))
    assert (run.state, run.resume) == (ABANDONED, "")


def test_a_finished_run_with_more_epochs_is_not_finished(run_at, tmp_path):
    """SOLVER.EPOCHS was 2 and is 4 since it was resumed."""
    run = read_status(run_at(tmp_path / "a", 2, 4, NO_CODE, is_finished=True))
    assert (run.state, run.epochs_done, run.epochs) == (STOPPED, 2, 4)


def hold_lock(folder, is_locked, is_seen):
    with lock(folder):
        is_locked.set()
        is_seen.wait(60)


@pytest.fixture
def locked():
    """locked(folder): a process has locked it until the end of the test."""
    context = multiprocessing.get_context("fork")
    is_locked, is_seen = context.Event(), context.Event()
    processes = []

    def start(folder):
        processes.append(context.Process(target=hold_lock, args=(folder, is_locked, is_seen)))
        processes[-1].start()
        assert is_locked.wait(60)
        return folder

    yield start
    is_seen.set()
    for process in processes:
        process.join()


def test_a_locked_folder_is_that_of_a_running_run(run_at, tmp_path, locked):
    folder = locked(run_at(tmp_path / "a"))
    now = time.time()
    change(folder, written=now + 1, last_sign=now - 5, doing="teacher cache 1/2")
    run = read_status(folder)
    assert (run.state, run.exit_code, run.reason, run.resume) == (RUNNING, None, "", "")
    assert (run.step, run.steps_per_epoch, run.seconds_left) == (5, 10, 20.0)
    assert run.doing == "teacher cache 1/2"
    assert 4 < run.age < 60
    assert is_in_use(folder)

    # Between the last step of an epoch and its record.
    change(folder, step=30, doing="")
    assert read_status(folder).doing == "evaluation"
    change(folder, last_sign=time.time() - SILENT - 60)
    assert read_status(folder).reason == "no step for 11 min"


def test_a_running_run_of_an_older_version(run_at, tmp_path, locked):
    run = read_status(locked(run_at(tmp_path / "a", has_status=False)))
    assert (run.state, run.epochs_done, run.seconds_left) == (RUNNING, 2, 20.0)
    assert run.age < 60


def test_a_resumed_run_is_running_whatever_its_files_say(run_at, tmp_path, locked):
    run = read_status(locked(run_at(tmp_path / "a", 4, 4, FAILURE, is_finished=True)))
    assert (run.state, run.reason) == (RUNNING, "")


def test_a_resumed_run_that_starts_shows_nothing_of_the_process_before(run_at, tmp_path, locked):
    folder = run_at(tmp_path / "a", 3, 6, NO_CODE)
    before = time.time() - 2 * SILENT
    change(folder, last_sign=before, written=before, step=35)
    os.utime(folder / ".lock", (before, before))
    run = read_status(locked(folder))
    assert (run.state, run.reason, run.doing, run.step) == (RUNNING, "", "start", None)
    assert (run.epochs_done, run.seconds_left) == (3, 30.0)
    assert run.age < 60


def test_a_run_that_ends_while_it_is_read_is_not_taken_for_a_killed_one(
    run_at, tmp_path, monkeypatch
):
    """The lock is looked at before the files, which are those of the end once it is released."""
    folder = run_at(tmp_path / "a", 3, 4)

    def end_after_the_look(folder):
        finished = {"state": "finished", "reason": "", "exit_code": 0}
        change(folder, end=finished, epochs_done=4)
        (folder / "result.json").write_text(json.dumps(result(4)))
        return False

    monkeypatch.setattr("edkd.watch.reading.is_in_use", end_after_the_look)
    run = read_status(folder)
    assert (run.state, run.exit_code, run.epochs_done) == (FINISHED, 0, 4)


@pytest.mark.parametrize(("age", "state"), [(FRESH / 2, RUNNING), (2 * FRESH, STOPPED)])
def test_without_a_visible_lock_a_recent_status_counts(run_at, tmp_path, age, state):
    """As of another machine, on a network drive that does not pass on locks."""
    folder = run_at(tmp_path / "a")
    change(folder, host="elsewhere", written=time.time() - age)
    assert read_status(folder).state == state


def test_a_killed_process_of_this_machine_does_not_run(run_at, tmp_path):
    folder = run_at(tmp_path / "a")
    change(folder, written=time.time())
    assert read_status(folder).state == STOPPED


def look(folder, is_over):
    while not is_over.is_set():
        assert is_in_use(folder) is not None


def test_looks_do_not_disturb_a_run_that_starts(tmp_path):
    """Nor one another: none of them takes the lock."""
    (tmp_path / ".lock").touch()
    context = multiprocessing.get_context("fork")
    is_over = context.Event()
    lookers = [context.Process(target=look, args=(tmp_path, is_over)) for _ in range(2)]
    for looker in lookers:
        looker.start()

    for _ in range(300):
        assert is_in_use(tmp_path) is False
        with lock(tmp_path):
            assert is_in_use(tmp_path)
    is_over.set()
    for looker in lookers:
        looker.join()
    assert [looker.exitcode for looker in lookers] == [0, 0]


def test_the_lock_of_another_process_is_found(tmp_path):
    context = multiprocessing.get_context("fork")
    with lock(tmp_path), context.Pool(1, initializer=folder_lock._held.clear) as pool:
        assert pool.apply(is_in_use, [tmp_path]) is True


# Damage.

GARBAGE = [b"", b"\0\0\0", b"{", b"[1, 2]", b"null", b"\xff\xfe", b'{"end": 3, "epochs": "x"}']


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize(
    "name",
    ["config.yaml", "status.json", "result.json", "metrics.jsonl", "nonfinite.json", "worklog.txt"],
)
def test_a_damaged_file_raises_nothing(run_at, tmp_path, name, garbage):
    folder = run_at(tmp_path / "a", 4, 4, has_status=name == "status.json", is_finished=True)
    (folder / name).write_bytes(garbage)
    run = read_status(folder)
    assert run.folder == folder
    assert run.state in (FINISHED, STOPPED)


HUGE = {"digits": 10**400, "negative": -(10**400), "past": -1e300, "inf": float("inf")}


@pytest.mark.parametrize("value", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize(
    "key", ["last_sign", "epochs", "steps_per_epoch", "seconds_left", "written"]
)
def test_a_status_with_an_impossible_number_is_damaged(run_at, tmp_path, key, value):
    folder = run_at(tmp_path / "a")
    change(folder, **{key: value})
    run = read_status(folder)
    assert run.reason.endswith("damaged: status.json")
    assert (run.state, run.epochs_done, run.epochs, run.last_top1) == (STOPPED, 2, 4, 48.0)
    assert all(len(line) < 300 for line in table([run]).splitlines())
    json.dumps(as_json(run))


@pytest.mark.parametrize("value", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize("key", ["epochs", "seed", "last_test_top1"])
def test_a_result_with_an_impossible_number_is_damaged(run_at, tmp_path, key, value):
    folder = run_at(tmp_path / "a", 4, 4, is_finished=True)
    (folder / "result.json").write_text(json.dumps(result(4) | {key: value}))
    run = read_status(folder)
    assert run.reason.endswith("damaged: result.json")
    assert (run.state, run.epochs_done, run.last_top1) == (STOPPED, 4, 46.0)
    assert len(table([run])) < 1000


@pytest.mark.parametrize("value", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize("key", ["test_top1", "train_seconds", "eval_seconds"])
def test_records_with_impossible_numbers_are_left_out(run_at, tmp_path, locked, key, value):
    folder = run_at(tmp_path / "a", has_status=False)
    record = {"epoch": 3, "test_top1": 40.0, "train_seconds": 1.0, key: value}
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(record))
    run = read_status(locked(folder))
    assert (run.epochs_done, run.last_top1, run.seconds_left) == (2, 48.0, 20.0)
    assert run.reason == "damaged: metrics.jsonl"


IMPOSSIBLE = [str(10**400), "!!bool x", "!!int ''", "!!timestamp x", f"1{200 * ':00'}.5"]
"""The last one is a number to the base of 60 that no float can hold."""


@pytest.mark.parametrize("text", IMPOSSIBLE, ids=lambda text: text[:20])
def test_configurations_with_impossible_values(run_at, tmp_path, locked, text):
    folder = run_at(tmp_path / "a", has_status=False)
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("EPOCHS: 4", f"EPOCHS: {text}"))
    run = read_status(locked(folder))
    assert (run.epochs, run.seconds_left) == (None, None)
    assert run.reason == "damaged: config.yaml"


def test_damaged_files_are_named(run_at, tmp_path):
    folder = run_at(tmp_path / "a")
    (folder / "result.json").write_text('{"epochs": 4, "last_te')
    run = read_status(folder)
    assert run.state == STOPPED
    assert run.reason.endswith("damaged: result.json")


def test_files_that_are_folders_raise_nothing(run_at, tmp_path):
    folder = run_at(tmp_path / "a", has_status=False)
    for name in ("status.json", "result.json", "nonfinite.json"):
        (folder / name).mkdir()
    assert read_status(folder).state == STOPPED


def test_a_half_written_line_is_left_out(run_at, tmp_path):
    folder = run_at(tmp_path / "a", has_status=False)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "test_to')
    assert read_status(folder).epochs_done == 2


# Finding.


def test_runs_are_found_at_any_depth(run_at, tmp_path):
    runs = [run_at(tmp_path / name) for name in ("a", "b/c/d", "e,LR=0.1")]
    run_at(tmp_path / "a/train.events/inside")  # a run holds no other ones
    run_at(tmp_path / ".hidden/f")
    os.symlink(tmp_path, tmp_path / "b" / "loop")
    assert find_folders([tmp_path]) == runs
    assert find_folders([runs[0], tmp_path]) == runs
    assert [run.folder for run in read_all(runs)] == runs
