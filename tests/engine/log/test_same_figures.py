"""TensorBoard and wandb have the same figures, hyper-parameters and final table."""

import json
import re
import sys

import pytest
import wandb

from edkd.engine.log.final import final_of
from edkd.engine.log.logger import Logger
from tests.engine.log.read_logs import events, wandb_run
from tests.runs import assert_refused, records

RESULT = {
    "method": "DML",
    "teacher": "",
    "student": ["narrow", "wide"],
    "parameters": 1234,
    "extra_parameters": 5,
    "epochs": 2,
    "best_epoch": 1,
    "last_test_top1": 50.0,
    "best_test_student1_top1": 60.0,
    "teacher_top1": [70.0, 80.0],
    "settings": {},
}


@pytest.fixture
def logged(train_tiny, tiny_folder, monkeypatch):
    """The folder of a run with KD, held-out images and wandb offline."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    options = ["DISTILLER.TYPE", "KD", "LOG.WANDB", "True", "LOG.TENSORBOARD_FREQ", "2"]
    options += ["DATASET.VAL_SPLIT", "0.2", "DISTILLER.CHECK_TEACHER", "True", "SOLVER.EPOCHS", "2"]
    options += ["SOLVER.LR_DECAY_STAGES", "[1]"]
    done = train_tiny("a", *options)
    assert done.code == 0, done.err
    wandb.teardown()  # its service writes the rest of the file
    return tiny_folder / "a"


def board_of(folder):
    """Points by (name, step), hyper-parameters, and texts by name, of the event files."""
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    points = {}
    parameters = {}
    texts = {}
    is_ended = False
    for event in events(folder / "train.events"):
        for value in event.summary.value:
            content = value.metadata.plugin_data.content
            if value.tag == "_hparams_/session_start_info":
                start = HParamsPluginData.FromString(content).session_start_info
                for key, item in start.hparams.items():
                    kind = item.WhichOneof("kind")
                    parameters[key] = getattr(item, kind)
            elif value.tag == "_hparams_/session_end_info":
                is_ended = True
            elif value.tag.endswith("/text_summary"):
                texts[value.tag.removesuffix("/text_summary")] = value.tensor.string_val[0].decode()
            else:
                points[value.tag, event.step] = value.simple_value
    assert is_ended
    return points, parameters, texts


def test_both_have_the_same_figures_parameters_and_table(logged):
    points, parameters, texts = board_of(logged)
    run = wandb_run(logged)

    # Each point: TensorBoard has 32 bits.
    rows = {}
    for step, row in run.rows:
        for name, value in row.items():
            if not name.startswith("final/table"):
                rows[name, step] = value
    assert points.keys() == rows.keys()
    for key, value in points.items():
        assert value == pytest.approx(rows[key], rel=1e-6), key
    assert {step for _, step in points} == {2, 4, 6, 7, 8, 10, 12, 14}
    names = {name for name, _ in points}
    assert {"step/loss", "epoch/val_top1", "epoch/lr", "final/last_test_top1"} <= names

    # The figures of the files of the run.
    result = json.loads((logged / "result.json").read_text())
    last = records(logged)[-1]
    step = max(step for _, step in points)
    assert rows["epoch/val_top1", step] == last["val_top1"]
    for key in ("last_val_top1", "best_val_top1", "last_test_top1", "best_test_top1", "parameters"):
        assert rows[f"final/{key}", step] == result[key] == run.summary[f"final/{key}"]
    assert rows["final/teacher_top1", step] == result["teacher_top1"][0]

    # Hyper-parameters: those that decide the result.
    assert parameters.keys() == run.config.keys() == {*result["settings"], "SOLVER.SEED"}
    for key, value in parameters.items():
        is_list = isinstance(run.config[key], list)
        assert value == (json.dumps(run.config[key]) if is_list else run.config[key]), key
    assert run.config["KD.TEMPERATURE"] == 4.0
    assert run.config["SOLVER.LR_DECAY_STAGES"] == [1]

    # The table.
    path = run.summary["final/table/path"]
    (file,) = logged.glob(f"wandb/offline-run-*/files/{path}")
    content = json.loads(file.read_text())
    header, _, row = texts["final/table"].splitlines()
    assert re.findall(r"[^| ][^|]*[^| ]", header) == content["columns"]
    assert row == f"| {' | '.join(content['data'][0])} |"
    cells = dict(zip(content["columns"], content["data"][0], strict=True))
    assert (cells["run"], cells["method"], cells["student"]) == ("a", "KD", "narrow")
    assert cells["last_test_top1"] == f"{result['last_test_top1']:.2f}"


def test_tensorboard_itself_reads_the_parameters_and_the_final_figures(logged):
    """The tab HParams of TensorBoard, by its own code."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    board = EventAccumulator(str(logged / "train.events"))
    board.Reload()
    content = board.PluginTagToContent("hparams")
    assert set(content) == {"_hparams_/session_start_info", "_hparams_/session_end_info"}
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"])
    assert start.session_start_info.hparams["SOLVER.BATCH_SIZE"].number_value == 8
    (point,) = board.Scalars("final/last_test_top1")
    result = json.loads((logged / "result.json").read_text())
    assert point.value == pytest.approx(result["last_test_top1"])
    assert "final/table/text_summary" in board.Tags()["tensors"]


def test_the_final_figures_of_several_students_and_teachers():
    final = final_of(RESULT, "dml", 10)
    assert final.figures == {
        "final/last_test_top1": 50.0,
        "final/best_test_student1_top1": 60.0,
        "final/teacher1_top1": 70.0,
        "final/teacher2_top1": 80.0,
        "final/parameters": 1234.0,
        "final/extra_parameters": 5.0,
        "final/best_epoch": 1.0,
        "final/epochs": 2.0,
    }
    assert final.markdown.splitlines()[2].startswith(
        "| dml | DML |  | narrow + wide | 1,234 | 50.00"
    )


class Full:
    """A sink whose disk is full when the final figures arrive."""

    def send(self, figures, step):
        pass

    def finish(self, final):
        raise OSError("No space left on device")

    def close(self):
        raise AssertionError("a dropped sink is closed")


def test_a_sink_that_fails_at_the_end_leaves_the_run(tmp_path, capsys):
    from tests.engine.log.test_logger import config

    with Logger(tmp_path, config(0), [], 1, 0, sinks={"Full": Full}) as logger:
        logger.finish(RESULT)
    assert capsys.readouterr().out == "Full is off: OSError: No space left on device\n"


def test_a_run_without_wandb_installed_has_its_result(train_tiny, tiny_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    done = train_tiny("a", "LOG.WANDB", "True", "SOLVER.EPOCHS", "1")
    assert done.code == 0, done.err
    assert "Wandb is off: " in done.out
    assert (tiny_folder / "a" / "result.json").is_file()


def test_held_out_images_alone_need_a_split(train_tiny, tiny_folder):
    done = train_tiny("a", "DATASET.TEST.EVALUATE", "False")
    assert_refused(done, "no images are held out instead; set DATASET.VAL_SPLIT 0.1")
    assert not (tiny_folder / "a").exists()
