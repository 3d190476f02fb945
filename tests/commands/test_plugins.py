"""Parts from outside, in the commands: a method in one file, and files that are broken."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from edkd.engine.checkpoint import save_checkpoint
from edkd.models import get_model
from tests.runs import CHECKOUT, assert_refused, outcome, records

METHOD = """
import numpy as np
import torch, torch.nn.functional as F
from edkd.distillers import Distiller, kd_loss, register

@register("MYKD")
class MyKD(Distiller):
    defaults = dict(WEIGHT=1.0)

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher)
        self.weight = cfg.MYKD.WEIGHT

    def forward_train(self, image, target, **kwargs):
        logits_student, _ = self.student(image)
        with torch.no_grad():
            logits_teacher, _ = self.teacher(image)
        loss = self.weight * np.random.rand() * kd_loss(logits_student, logits_teacher, 4.0)
        return logits_student, {"loss_ce": F.cross_entropy(logits_student, target), "loss_kd": loss}
"""


def test_a_method_from_outside_needs_one_file(train_tiny, tiny_folder, tmp_path):
    """It may draw from NumPy: two runs are equal all the same. Runs without it do not need it."""
    plugin = tmp_path / "my_kd.py"
    plugin.write_text(METHOD)
    assert train_tiny("alone", "SOLVER.EPOCHS", 1).code == 0
    for name in ("a", "b"):
        opts = ["--plugin", plugin, "DISTILLER.TYPE", "MYKD", "MYKD.WEIGHT", 0.5]
        assert train_tiny(name, *opts).code == 0
    assert train_tiny("alone", "SOLVER.EPOCHS", 2, "--plugin", plugin, "--resume").code == 0
    assert outcome(tiny_folder / "a") == outcome(tiny_folder / "b")
    assert records(tiny_folder / "a")[0]["train_loss_kd"] > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def", "line|SyntaxError"),
        ("import nowhere", "line 1: ModuleNotFoundError: No module named 'nowhere'"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("from edkd.distillers import register\n@register('X')\nclass X: pass", "Distiller"),
        (METHOD.replace("forward_train", "train_forward"), "losses|forward_train"),
        (METHOD.replace("WEIGHT=1.0", "WEIGHT=object()"), "defaults of MyKD in .*WEIGHT"),
    ],
)
def test_a_broken_plugin_is_one_line(train_tiny, tiny_folder, tmp_path, text, message):
    plugin = tmp_path / "broken.py"
    plugin.write_text(text)
    assert_refused(train_tiny("run", "--plugin", plugin), message)
    assert not tiny_folder.exists()


@pytest.mark.slow
def test_a_method_in_the_package_needs_one_file(tmp_path):
    """A file in edkd/distillers/ and a YAML; nothing else is touched."""
    copy = tmp_path / "copy"
    for name in ("edkd", "tools", "configs"):
        shutil.copytree(CHECKOUT / name, copy / name)
    (copy / "edkd/distillers/mykd.py").write_text(METHOD)
    (copy / "mykd.yaml").write_text(
        "DATASET:\n  TYPE: digits\n"
        "DISTILLER: {TYPE: MYKD, TEACHER: resnet8, STUDENT: resnet8, TEACHER_CKPT: t}\n"
        "SOLVER:\n  EPOCHS: 1\nLOG:\n  WANDB: False\nMYKD:\n  WEIGHT: 2\n"
    )
    torch.manual_seed(0)
    save_checkpoint({"model": get_model("cifar", "resnet8", 10).state_dict()}, copy / "t")
    done = subprocess.run(
        [sys.executable, "tools/train.py", "--cfg", "mykd.yaml"],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    metrics = (copy / "output/distill/default/metrics.jsonl").read_text()
    assert re.search("train_loss_kd", metrics)
