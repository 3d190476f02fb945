"""The time left of a run, from its epochs."""

import pytest

from edkd.engine.log import time_left
from edkd.engine.log.time_left import TimeLeft, epoch_seconds, shown_duration


def history(*seconds):
    return [{"epoch": i, "train_seconds": each} for i, each in enumerate(seconds, 1)]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([], None),
        ([60], 60),  # the only one
        ([60, 10], 10),  # the first one fills the teacher cache
        ([60, 10, 11], 11),
        ([60, 10, 11, 10, 10], 10),
        ([60, 10, 10, 10, 300], 10),  # the machine was busy for one epoch
        ([10, 10, 10, 10, 10, 10, 5, 5], 5),  # resumed on another machine
        ([9, 9, 30, 12, 11, 10, 10], 10),  # the cache fills over several epochs
    ],
)
def test_seconds_of_an_epoch(seconds, expected):
    assert epoch_seconds(history(*seconds)) == expected


def test_evaluation_counts():
    records = [{"train_seconds": 8.0, "eval_seconds": 2.0}]
    assert epoch_seconds(records) == 10.0


def test_records_of_older_versions_do_not_count():
    records = [{"epoch": 1}, {"epoch": 2}, *history(7.0)]
    assert epoch_seconds([{"epoch": 1}]) is None
    assert epoch_seconds(records) == 7.0


def test_the_rest_of_an_epoch_counts_by_its_steps():
    """10 epochs of 4 steps; 2 epochs and 2 steps are done."""
    left = TimeLeft(history(99.0, 20.0), 10, 40)
    assert left.seconds(10) == 20.0 * 7.5
    assert left.seconds(40) == 0.0


def test_a_resumed_run_has_an_estimate_from_the_beginning():
    left = TimeLeft(history(50.0, 10.0, 10.0, 12.0), 5, 500)
    assert left.seconds(400) == 10.0


def test_in_the_first_epoch_the_pace_of_the_steps_counts(monkeypatch):
    """The first step is slow, as libraries prepare themselves."""
    now = [100.0]
    monkeypatch.setattr(time_left.time, "monotonic", lambda: now[0])
    left = TimeLeft([], 2, 100)
    assert left.seconds(0) is None
    left.count(1)
    assert left.seconds(1) is None
    for step in range(2, 12):
        now[0] += 0.5
        left.count(step)
    assert left.seconds(11) == pytest.approx(89 * 0.5)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1.0, "0 s"),
        (0.4, "0 s"),
        (89.4, "89 s"),
        (89.6, "2 min"),
        (12 * 60, "12 min"),
        (89.4 * 60, "89 min"),
        (5 * 3600 + 12 * 60, "5 h 12 min"),
        (3599.6 * 2, "2 h 0 min"),
        (47.4 * 3600, "47 h 24 min"),
        (76 * 3600, "3 d 4 h"),
    ],
)
def test_durations(seconds, text):
    assert shown_duration(seconds) == text
