"""TensorBoard's event files, and runs in wandb with and without credentials and network."""

import gc
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from yacs.config import CfgNode

from edkd.engine.config.load import load_config
from edkd.engine.log.logger import Logger
from edkd.engine.log.tensorboard import Curves, TensorBoard
from edkd.engine.log.wandb import Wandb
from tests.engine.log.read_logs import events

CONFIG = {
    "EXPERIMENT": {"PROJECT": "digits", "TAG": f"kd,,{'x' * 99}", "NAME": "run"},
    "LOG": {"TENSORBOARD_FREQ": 1, "WANDB": True, "PRINT": True},
    "SOLVER": {"LR_DECAY_STAGES": (1, 2)},
}

SETTINGS = {"SOLVER.LR": 0.1, "SOLVER.LR_DECAY_STAGES": [1, 2]}


def test_tensorboard_gets_a_curve_of_each_figure(tmp_path):
    board = TensorBoard(tmp_path, done_steps=0)
    board.send({"step/loss": 1.5, "step/top1": 50.0}, 2)
    board.close()
    found = list(events(tmp_path))
    points = [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value]
    assert points == [(2, "step/loss", 1.5), (2, "step/top1", 50.0)]
    assert not any(event.HasField("session_log") for event in found)


def test_tensorboard_hides_points_of_steps_that_run_again(tmp_path):
    TensorBoard(tmp_path, done_steps=10).close()
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts == [11]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_tensorboard_on_a_full_disk_is_one_error_and_no_traceback(tmp_path, capfd):
    """Neither a thread nor the end of the process reports it again."""
    board = TensorBoard(tmp_path, done_steps=0)
    with open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), board.writer._py_recordio_writer._writer.fileno())
    board.send({"step/loss": 1.5}, 1)
    with pytest.raises(OSError, match="No space left on device"):
        board.close()

    del board
    gc.collect()
    assert capfd.readouterr() == ("", "")


def test_a_logger_has_tensorboard_and_wandb_only_where_wanted(tmp_path):
    cfg = load_config(opts=["DISTILLER.TYPE=NONE", "LOG.WANDB=False"])
    with Logger(tmp_path, cfg, [{"epoch": 1, "lr": 0.5}], 2, 0) as logger:
        logger.epoch(2)
    assert [sink.name for sink in logger.sinks] == ["TensorBoard"]
    values = [
        value.tag for event in events(tmp_path / "train.events") for value in event.summary.value
    ]
    assert [tag for tag in values if not tag.startswith("_hparams_")] == ["epoch/lr"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_curves_of_a_loop_on_a_full_disk_are_one_warning(tmp_path, capfd):
    curves = Curves(tmp_path)
    with open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), curves._sink.writer._py_recordio_writer._writer.fileno())
    for epoch in range(1000):
        curves.add_scalar("loss", 1.0, epoch)
    curves.close()
    warning = "edkd: warning: TensorBoard is off: OSError: No space left on device\n"
    assert capfd.readouterr() == ("", warning)


def test_curves_in_a_place_that_cannot_be_a_folder_are_one_warning(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    curves = Curves(tmp_path / "file")
    curves.add_scalar("loss", 1.0, 1)
    curves.close()
    assert capsys.readouterr().err.count("TensorBoard is off: ") == 1


# wandb.


class FakeWandb:
    """The parts of the library that are used; `online` is "ok", "no login" or "unreachable"."""

    class errors:
        class Error(Exception):
            pass

    Settings = staticmethod(lambda **options: SimpleNamespace(**options))

    def __init__(self, online):
        self.online = online
        self.inits = []
        self.rows = []
        self.Table = SimpleNamespace
        self.is_finished = False

    def setup(self, settings):
        assert settings.console == "off"

    def login(self, prompt, verify):
        assert not prompt
        return self.online != "no login"

    def init(self, **options):
        self.inits.append(options)
        if options["mode"] == "online" and self.online == "unreachable":
            raise self.errors.Error("timed\nout")
        return self

    def log(self, figures, step):
        self.rows.append((figures, step))

    def finish(self):
        self.is_finished = True


@pytest.fixture
def make(tmp_path, monkeypatch):
    """make(online, mode): a sink with a fake library, and the lines that it logged."""
    lines = []

    def make(online="ok", mode=None):
        monkeypatch.delenv("WANDB_MODE", raising=False)
        if mode:
            monkeypatch.setenv("WANDB_MODE", mode)
        library = FakeWandb(online)
        return Wandb(tmp_path, CfgNode(CONFIG), SETTINGS, lines.append, library), library, lines

    return make


def test_wandb_gets_rows_and_a_description(make, tmp_path):
    sink, library, lines = make()
    sink.send({"epoch/lr": 0.1}, 5)
    sink.close()
    assert library.rows == [({"epoch/lr": 0.1}, 5)]
    assert library.is_finished
    assert lines == []

    (options,) = library.inits
    assert options["mode"] == "online"
    assert options["project"] == "digits"
    assert options["name"] == tmp_path.name
    assert options["tags"] == ["kd", "x" * 64]
    assert options["config"] == SETTINGS
    assert options["settings"].silent


def test_a_resumed_run_continues_in_wandb(make, tmp_path):
    ids = [make()[1].inits[0]["id"] for _ in range(2)]
    assert ids[0] == ids[1] == (tmp_path / "wandb/id").read_text()


@pytest.mark.parametrize(
    ("online", "mode", "reason"),
    [
        ("no login", None, "there are no credentials"),
        ("no login", "online", "there are no credentials"),
        ("unreachable", None, r"the server cannot be reached \(timed out\)"),
        ("ok", "offline", "WANDB_MODE is offline"),
    ],
)
def test_wandb_records_offline(make, online, mode, reason):
    _, library, (line,) = make(online, mode)
    assert library.inits[-1]["mode"] == "offline"
    assert re.fullmatch(f"wandb: recorded offline in .*/wandb, as {reason}; 'wandb sync' .*", line)


def test_after_a_failed_attempt_the_offline_run_has_another_id(make):
    _, library, _ = make("unreachable")
    first, second = (options["id"] for options in library.inits)
    assert first != second


SCRIPT = """
import sys
from pathlib import Path
from edkd.engine.config.load import load_config
from edkd.engine.log.logger import Logger

folder = Path(sys.argv[1])
cfg = load_config(opts=["DISTILLER.TYPE=NONE"])
with Logger(folder, cfg, [{"epoch": 1, "lr": 0.1}], 1, 0) as logger:
    logger.epoch(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"WANDB_MODE": "offline"}, "WANDB_MODE is offline"),
        ({}, "there are no credentials"),
        ({"WANDB_MODE": "online"}, "there are no credentials"),
        ({"WANDB_API_KEY": 40 * "0"}, "the server cannot be reached"),
    ],
)
def test_the_real_wandb_records_offline(tmp_path, env, reason):
    """No server listens at the address: nothing is prompted for, and the run ends soon."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    clean |= {"HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9"} | env
    folder = tmp_path / "run"
    folder.mkdir()

    command = [sys.executable, "-c", SCRIPT, folder]
    start = time.monotonic()
    done = subprocess.run(
        command, env=clean, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 100

    (line,) = [line for line in done.stdout.splitlines() if line.startswith("wandb")]
    assert re.match(f"wandb: recorded offline in .*, as {reason}", line)
    assert list((folder / "wandb").glob("offline-run-*"))
