"""Careless users: one line that names the mistake, exit code 2, and nothing is written."""

import pytest
import torch

from edkd.engine.checkpoint import save_checkpoint
from edkd.models import get_model
from tests.commands.conftest import ALONE, DIGITS
from tests.runs import CHECKOUT, assert_refused

MISTAKES = [
    (["SOLVER.LRR", "1"], "unknown key SOLVER.LRR .*did you mean 'SOLVER.LR'"),
    (["SOLVER.LR"], "'SOLVER.LR' has no value"),
    (["configs/digits/kd/res20_res8.yaml"], "is not a key; for a YAML file write --cfg configs/"),
    (["--cfg", "configs/digits/kd/res20_rse8.yaml"], "did you mean '.*digits/kd/res20_res8.yaml'"),
    (["--cfg", "tools/train.py"], "a configuration is a .yaml file"),
    (["--confg", "x"], "unrecognized arguments: --confg.*; see .*train.* --help"),
    (["--device", "gpu"], "--device gpu: no such device"),
    (["--plugin", "nowhere.py"], "--plugin nowhere.py"),
    (["DATASET.TYPE", "cifra10"], "DATASET.TYPE is 'cifra10', not one of"),
    (
        ["DATASET.TYPE=cifar10", "DATASET.ROOT=/nowhere"],
        "no data set at /nowhere.*download.* cifar10",
    ),
    (["DISTILLER.STUDENT", "resnet9"], "DISTILLER.STUDENT is 'resnet9'.*did you mean"),
    (["DISTILLER.TYPE", "KDD"], "DISTILLER.TYPE is 'KDD'.*did you mean 'KD'"),
    (["DISTILLER.TYPE", "KD+KDD"], "DISTILLER.TYPE is 'KDD'.*did you mean 'KD'"),
    (
        ["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", "vgg8"],
        "vgg8 has no published weights for digits; train it with .*/resnet8.yaml "
        "DISTILLER.STUDENT vgg8'",
    ),
    (
        ["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER_CKPT", "gone"],
        "DISTILLER.TEACHER_CKPT: no weights of .* at gone",
    ),
    (["EXPERIMENT.NAME", "../../x"], "not inside LOG.PREFIX"),
    (["EXPERIMENT.NAME", "x" * 300], "name of the run is too long"),
    (["EXPERIMENT.PROJECT", "/tmp"], "not inside LOG.PREFIX"),
    (["EXPERIMENT.NAME", "."], "not inside LOG.PREFIX"),
    (["EXPERIMENT.NAME", "a\0b"], "a character that no name can have"),
    (["--resume"], "--resume: no run at"),
    (["SOLVER.AMP", "fp16", "--device", "cpu"], "SOLVER.AMP fp16 needs a GPU"),
    (["EDKD.FORM", "papre"], "EDKD.FORM is 'papre'.*did you mean 'paper'"),
    (["DKD.BETA", "-1"], "DKD.BETA is -1.0, but must be at least 0"),
    (["SOLVER.LR", "-1e-3"], "SOLVER.LR is -0.001, but must be at least 0"),
    (["SOLVER.NESTEROV", "True", "SOLVER.MOMENTUM", "0"], "SOLVER.NESTEROV needs"),
    (["SOLVER.BATCH_SIZE", "1" + 30 * "0"], "SOLVER.BATCH_SIZE is 1000"),
    (["DATASET.VAL_SPLIT", "0.999"], "DATASET.VAL_SPLIT 0.999 leaves 0 images"),
]


@pytest.mark.parametrize(("opts", "message"), MISTAKES)
def test_mistakes_are_one_line_and_write_nothing(tool, tmp_path, monkeypatch, opts, message):
    monkeypatch.chdir(CHECKOUT)
    base = [] if "--cfg" in opts else ["--cfg", DIGITS / ALONE]
    assert_refused(tool("train", *base, "LOG.PREFIX", tmp_path / "o", *opts), message)
    assert not (tmp_path / "o").exists()


def test_a_teacher_of_another_architecture_or_class_count_is_refused(
    train, tmp_path, teacher, folder
):
    wrong = tmp_path / "wrong"
    opts = ["DISTILLER.TEACHER_CKPT", wrong]
    for model, classes, message in [
        ("resnet14", 10, "wrong is of another architecture: it has layer1.1"),
        ("resnet8", 7, r"number of classes: fc.weight is \(7, 64\) there but \(10, 64\) here"),
    ]:
        save_checkpoint({"model": get_model("cifar", model, classes).state_dict()}, wrong)
        assert_refused(train("kd/res20_res8.yaml", "run", *opts), message)
    wrong.write_bytes(teacher.read_bytes()[:-100])
    assert_refused(train("kd/res20_res8.yaml", "run", *opts), "wrong is damaged")
    assert not folder.exists()


def test_mistakes_in_eval(tool, tmp_path, teacher):
    digits = ["-d", "digits"]
    gone = tool("eval", "-m", "resnet20", "-c", tmp_path / "gone", *digits)
    assert_refused(gone, "-c: no weights of resnet20 at")
    assert_refused(tool("eval", "-m", "resnt20", "-c", teacher, *digits), "did you mean 'resnet20'")
    assert_refused(tool("eval", "-m", "resnet14", "-c", teacher, *digits), "another architecture")
    assert_refused(tool("eval", "-m", "resnet20", *digits), "-m resnet20 has no published weights")
    misspelt = tool("eval", "-m", "resnet8", "-c", teacher, "-d", "digit")
    assert_refused(misspelt, "did you mean 'digits'")
    negative = tool("eval", "-m", "resnet8", "-c", teacher, *digits, "-bs", "-1")
    assert_refused(negative, "TEST.BATCH_SIZE is -1")
    assert_refused(tool("eval", "-c", teacher), "give the architecture with -m")


def test_weights_that_are_not_finite_are_named(tool, tmp_path, teacher):
    state = torch.load(teacher, weights_only=True)["model"]
    nan = {key: value * torch.nan if value.dim() else value for key, value in state.items()}
    save_checkpoint({"model": nan}, tmp_path / "nan")
    words = ["-m", "resnet8", "-c", tmp_path / "nan", "-d", "digits"]
    assert_refused(tool("eval", *words), "values of conv1.weight are NaN or infinite.*diverged")
