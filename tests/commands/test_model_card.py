"""What the card of a student says of its run and of the runs beside it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from edkd.engine.file_facts import Facts
from edkd.engine.saved_run import run_at
from edkd.export.card import _accuracies
from edkd.export.training_facts import (
    UNKNOWN,
    Measured,
    alone,
    student_accuracy,
    teacher_accuracy,
)


@pytest.fixture
def write(tmp_path):
    """Write the folder of a run that has finished."""

    def run(name, root="photos", more="", **result):
        folder = tmp_path / name
        folder.mkdir()
        config = f"DATASET:\n  TYPE: folder\n  ROOT: {root}\nDISTILLER:\n  STUDENT: ResNet18\n"
        config += "  TYPE: KD\n  TEACHER: ResNet34\n  TEACHER_CKPT: pretrained\n"
        (folder / "config.yaml").write_text(f"{config}{more}")
        content = {"student": ["ResNet18"], "dataset": "folder", "epochs": 3} | result
        (folder / "result.json").write_text(json.dumps(content))
        return run_at(folder)

    return run


def test_the_student_alone_has_seen_the_same_images(write):
    run = write("kd", method="KD")
    write("alone", method="NONE", best_test_top1=70.0)
    write("elsewhere", "paintings", method="NONE", best_test_top1=10.0)
    assert alone(run, "best") == [70.0]


@pytest.mark.parametrize(
    "other",
    [
        "  STUDENT_CKPT: pretrained\n",
        "SOLVER:\n  TRAIN_ONLY: head\n",
        "SOLVER:\n  LR: 0.001\n",
        "SOLVER:\n  LABEL_SMOOTHING: 0.1\n",
        "MODEL:\n  ResNet18:\n    WIDTH: 8\n",
    ],
)
def test_the_student_alone_was_trained_in_the_same_way(write, other):
    """A run of `finetune` is none, nor is one with another rate."""
    write("other", more=other, method="NONE", best_test_top1=10.0)
    unused = "SOLVER:\n  SEED: 2\n  BETAS: [0.8, 0.9]\n"
    write("alone", more=unused, method="NONE", best_test_top1=70.0)

    assert alone(write("kd", method="KD"), "best") == [70.0]
    assert alone(write("same", more=other, method="KD"), "best") == [10.0]


def test_the_test_figure_is_that_of_the_file(write):
    own = write("kd", method="KD", best_test_top1=70.0, last_test_top1=60.0)
    figures = [student_accuracy(own, f"student_{tag}") for tag in ("best", "latest", "2")]
    assert figures == [Measured(70.0, "test images"), Measured(60.0, "test images"), UNKNOWN]

    several = {"best_test_student1_top1": 71.0, "best_test_student2_top1": 73.0}
    run = write("dml", method="DML", best_student="student2 (a)", best_test_top1=72.0, **several)
    names = ("student_best", "student1_best", "student_latest")
    assert [student_accuracy(run, name).top1 for name in names] == [73.0, 71.0, None]


@pytest.mark.parametrize(
    ("split", "images"), [("val", "images that chose the best epoch"), ("test", "test images")]
)
def test_validation_images_need_not_be_training_images(split, images):
    """The folder val/ beside test/ is none of them."""
    facts = Facts(accuracy=70.0)
    source = SimpleNamespace(run=None, file=Path("student_best"), split=split, facts=facts)
    assert _accuracies(source) == [["this student, `student_best`", "70.00", images]]


def test_published_weights_are_no_file(write):
    assert teacher_accuracy(write("kd", method="KD"), 0) == UNKNOWN
