"""Folders of runs, as training leaves them."""

import json
import os
import socket
import time

import pytest


@pytest.fixture
def run_at():
    """run_at(folder, epochs_done, epochs, ...): the folder of a run that no process has.

    Args:
        end: of `status.json`; None: the process was killed.
        has_status: False: a run of an older version.
        is_finished: whether there is a result.
        is_saved: whether there is a checkpoint.
    """

    def run_at(
        folder, done=2, epochs=4, end=None, has_status=True, is_finished=False, is_saved=True
    ):
        folder.mkdir(parents=True)
        config = (
            "DATASET:\n  TYPE: digits\nDISTILLER:\n  TYPE: KD\n  STUDENT: resnet8\n"
            f"  TEACHER: resnet20\nSOLVER:\n  EPOCHS: {epochs}\n  SEED: 3\n"
        )
        (folder / "config.yaml").write_text(config)
        records = [
            {"epoch": i, "test_top1": 50.0 - i, "train_seconds": 8.0, "eval_seconds": 2.0}
            for i in range(1, done + 1)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
        (folder / "worklog.txt").write_text(
            "2026-01-01 00:00:00 KD  resnet20 -> resnet8  digits: 899 training images, 10 classes\n"
        )
        command = ["/usr/bin/python", "/usr/bin/edkd", "train", "--cfg", "a b.yaml"]
        environment = {"command": command, "cwd": os.getcwd()}
        (folder / "environment.json").write_text(json.dumps(environment))
        (folder / ".lock").touch()
        if has_status:
            (folder / "status.json").write_text(json.dumps(status(done, epochs, end)))
        if is_saved:
            (folder / "latest").touch()
        if is_finished:
            (folder / "result.json").write_text(json.dumps(result(done)))
        return folder

    return run_at


def status(done, epochs, end):
    """The content of `status.json`."""
    now = time.time() - 120
    return {
        "method": "KD",
        "teacher": "resnet20",
        "student": ["resnet8"],
        "dataset": "digits",
        "seed": 3,
        "epochs": epochs,
        "epochs_done": done,
        "step": 10 * done + 5,
        "steps_per_epoch": 10,
        "doing": "",
        "split": "test",
        "last_top1": 50.0 - done,
        "best_top1": 49.0,
        "seconds_left": 20.0,
        "last_sign": now,
        "written": now,
        "host": socket.gethostname(),
        "pid": 1,
        "end": end,
    }


def result(done):
    """The content of `result.json`."""
    return {
        "method": "KD",
        "teacher": "resnet20",
        "student": ["resnet8"],
        "dataset": "digits",
        "epochs": done,
        "seed": 3,
        "last_test_top1": 50.0 - done,
        "best_test_top1": 49.0,
    }
