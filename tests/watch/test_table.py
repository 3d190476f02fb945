"""The table of runs: its order, what is left out, and what stands below a line."""

import json
from pathlib import Path

import pytest

from edkd.errors import UserError
from edkd.watch.status import FAILED, FINISHED, RUNNING, STOPPED, Status
from edkd.watch.table import HEADER, SORTS, as_json, chosen, ordered, summary, table
from edkd.watch.wording import ending, progress


def status(name, state=FINISHED, **values):
    facts = {"method": "KD", "student": ["resnet8"], "dataset": "digits", "split": "test"}
    return Status(Path(name), state, **(facts | values))


RUNS = [
    status("a", best_top1=60.0, last_top1=59.0, epochs_done=4, epochs=4),
    status("b", RUNNING, best_top1=70.0, epochs_done=1, epochs=9, seconds_left=4000.0),
    status("c", STOPPED, method="DKD", reason="by a signal", resume="edkd train --resume"),
    status("d", FAILED, reason="loss is nan", exit_code=3, split="val", last_top1=1.0),
]


def words(line):
    return " ".join(line.split())


def test_a_line_for_each_run_and_its_reason_below():
    lines = table(RUNS).splitlines()
    assert words(lines[0]) == " ".join(HEADER)
    assert words(lines[1]) == "finished KD resnet8 digits 4/4 59.00 60.00 - - a"
    assert words(lines[2]) == "running KD resnet8 digits 1/9 - 70.00 67 min - b"
    assert lines[4:6] == ["    by a signal", "    continue: edkd train --resume"]
    assert "1.00 val" in lines[6]
    assert lines[7] == "    loss is nan"
    assert summary(RUNS) == "4 runs: 1 running, 1 stopped, 1 failed, 1 finished"
    assert summary([]) == "no runs"


def names(runs):
    return "".join(run.folder.name for run in runs)


def test_runs_are_chosen_by_state_and_words():
    assert names(chosen(RUNS, ["running", "failed"], [])) == "bd"
    assert names(chosen(RUNS, [], ["dkd", "DIGITS"])) == "c"
    assert names(chosen(RUNS, ["running"], ["dkd"])) == ""
    with pytest.raises(UserError, match="unknown state 'runing', did you mean 'running'"):
        chosen(RUNS, ["runing"], [])


@pytest.mark.parametrize(("by", "order"), [("best", "bacd"), ("state", "bcda"), ("left", "bacd")])
def test_runs_are_sorted(by, order):
    assert names(ordered(RUNS, by)) == order
    assert len(ordered(RUNS, by, is_reversed=True)) == 4


@pytest.mark.parametrize("by", SORTS)
def test_every_order_takes_runs_of_which_nothing_is_known(by):
    assert len(ordered([*RUNS, Status(Path("x")), Status(Path("y"))], by)) == 6


def test_json_has_every_value():
    (values, *_) = json.loads(json.dumps([as_json(run) for run in RUNS]))
    assert (values["folder"], values["state"], values["best_top1"]) == ("a", "finished", 60.0)
    assert values["age_seconds"] is None


def test_progress_and_ending_in_one_line():
    assert progress(RUNS[1]) == "epoch 1/9  best 70.00  left 67 min"
    assert ending(RUNS[0]) == "finished  epoch 4/4  last 59.00  best 60.00"
    assert ending(RUNS[3]) == "failed (exit code 3): loss is nan"
