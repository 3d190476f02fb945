"""The number of data workers is at most that of the cores of this process."""

import os

import pytest

from edkd.dataset import cores


@pytest.fixture
def system(tmp_path, monkeypatch):
    """system("0::/a/b", {"a/cpu.max": "150000 100000"}, 8): a machine with control groups."""

    def make(groups, files, number):
        (tmp_path / "groups").write_text(groups)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(cores, "_GROUPS", tmp_path / "groups")
        monkeypatch.setattr(cores, "_ROOT", tmp_path)
        affinity = lambda process: set(range(number))  # noqa: E731
        monkeypatch.setattr(os, "sched_getaffinity", affinity, raising=False)

    return make


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/job/step\n", {"job/cpu.max": "400000 100000", "job/step/cpu.max": "max 100000"}, 4),
        (
            "1:cpu:/\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"},
            1,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("nonsense\n0::/\n", {"cpu.max": "nonsense"}, 8),
    ],
)
def test_available_cores(system, groups, files, expected):
    system(groups, files, 8)
    assert cores.available_cores() == expected


def test_the_number_in_use_is_logged(system, tool, image_folder, tmp_path):
    system("", {}, 1)
    assert cores.workers_for(0) == 0
    assert cores.workers_note(1) == []
    done = tool("train", *image_folder, "a", "DATASET.NUM_WORKERS", 32, "SOLVER.EPOCHS", 1)
    line = "1 data worker, one for each available core, instead of DATASET.NUM_WORKERS 32"
    assert line in done.out
    assert line in (tmp_path / "distill/a/worklog.txt").read_text()
