"""Following runs: what is printed on a terminal and elsewhere, and when it ends."""

import io
import json
import os

import pytest

from edkd.watch import follow as module
from edkd.watch.follow import WorkLog, follow
from edkd.watch.status import FINISHED, RUNNING, STOPPED, Status


@pytest.fixture
def scenes(monkeypatch):
    """scenes(*statuses): what is read at each look; the clock does not run."""

    def play(*statuses):
        left = [list(each) for each in statuses]
        monkeypatch.setattr(module, "read_all", lambda folders: left.pop(0))
        monkeypatch.setattr(module, "read_status", lambda folder: left.pop(0)[0])
        monkeypatch.setattr(module.time, "sleep", lambda seconds: None)

    return play


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """terminal(): standard output from now on, with 30 columns and 10 lines."""

    def terminal():
        stream = Terminal()
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((30, 10)))
        return stream

    return terminal


def running(folder, epoch, **values):
    return Status(folder, RUNNING, epochs_done=epoch, epochs=3, **values)


def test_one_run_is_followed_by_its_work_log(scenes, tmp_path, capsys):
    (tmp_path / "worklog.txt").write_text("one\ntwo\nhalf a li")
    end = Status(tmp_path, STOPPED, reason="by a signal", resume="edkd train --resume")
    scenes([running(tmp_path, 1)], [running(tmp_path, 1)], [end])
    assert follow([tmp_path]) == [end]
    assert capsys.readouterr().out.splitlines() == [
        "one",
        "two",
        "stopped: by a signal",
        "continue: edkd train --resume",
    ]


def test_on_a_terminal_a_line_is_rewritten(scenes, tmp_path, terminal):
    runs = [running(tmp_path, 1, seconds_left=600.0, doing="teacher cache 12345/67890")]
    scenes(runs, [running(tmp_path, 2)], [Status(tmp_path, FINISHED, epochs_done=3, epochs=3)])
    screen = terminal()
    follow([tmp_path])
    first, second, last = screen.getvalue().split("\x1b[1A\r\x1b[J")
    assert first == "epoch 1/3  teacher cache 1234\n"
    assert second == "epoch 2/3\n"
    assert last == "finished  epoch 3/3\n"


def test_several_runs_are_followed_by_lines_for_their_epochs(scenes, tmp_path, capsys):
    a, b = tmp_path / "a", tmp_path / "b"
    end = Status(b, FINISHED, epochs_done=3, epochs=3)
    scenes(
        [running(a, 1), running(b, 2)],
        [running(a, 1), running(b, 2)],
        [running(a, 2), end],
        [Status(a, STOPPED, epochs_done=2), end],
    )
    assert [run.state for run in follow([a, b])] == [STOPPED, FINISHED]
    assert capsys.readouterr().out.splitlines() == [
        f"{a}  epoch 1/3",
        f"{b}  epoch 2/3",
        f"{a}  epoch 2/3",
        f"{b}  finished  epoch 3/3",
        f"{a}  stopped",
    ]


def test_several_runs_are_a_table_on_a_terminal(scenes, tmp_path, terminal):
    a, b = tmp_path / "a", tmp_path / "b"
    scenes([running(a, 1), running(b, 2)], [Status(a), Status(b, FINISHED)])
    screen = terminal()
    follow([a, b])
    shown = screen.getvalue().split("\x1b[3A\r\x1b[J")
    assert len(shown) == 2
    assert [line.split()[0] for line in shown[1].splitlines()] == ["state", "stopped", "finished"]


def test_a_work_log_is_read_as_it_grows_and_is_replaced(tmp_path):
    path = tmp_path / "worklog.txt"
    log = WorkLog(path)
    assert log.new_lines() == []
    path.write_text("".join(f"{i}\n" for i in range(20)) + "no")
    assert log.new_lines() == ["15", "16", "17", "18", "19"]
    with open(path, "a") as file:
        file.write("w whole\nnext")
    assert log.new_lines() == ["now whole"]
    assert log.new_lines() == []
    path.write_bytes(b"another run \xff\n")
    assert log.new_lines() == ["another run \ufffd"]


def test_it_ends_with_the_exit_code_of_the_run(tool, tmp_path):
    for code in (0, 3):
        run = tmp_path / str(code)
        run.mkdir()
        (run / "config.yaml").touch()
        (run / "latest").touch()
        end = {"state": "failed", "reason": "loss is nan", "exit_code": code}
        status = {"epochs": 2, "epochs_done": 1, "end": end if code else None}
        (run / "status.json").write_text(json.dumps(status))
    (tmp_path / "0" / "result.json").write_text('{"epochs": 2}')

    done = tool("runs", "-f", tmp_path / "0")
    assert (done.code, done.out, done.err) == (0, "finished  epoch 2/2\n", "")
    done = tool("runs", tmp_path / "3", "--follow")
    assert (done.code, done.err) == (3, "")
    assert done.out == "failed (exit code 3): loss is nan\n"
    assert tool("runs", "-f", tmp_path).out == f"no run is running in {tmp_path}\n"
