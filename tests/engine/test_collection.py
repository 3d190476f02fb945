"""Statistics of the teacher before the first step: of all images, once, kept on resume."""

import pytest
import torch

from edkd.engine.checkpoint import load_checkpoint
from tests.runs import assert_refused, outcome

METHOD = """
import torch
from edkd.distillers import Distiller, register

@register("MEANS")
class Means(Distiller):
    defaults = dict(WEIGHT=0.1)
    teacher_needs = ("pooled_feat",)
    student_needs = ("logits", "pooled_feat")
    collects = True

    def __init__(self, student, teacher, cfg, data):
        super().__init__(student, teacher, cfg, data)
        width = self.feature_shapes(teacher).pooled_feat[1]
        self.register_buffer("sums", torch.zeros(data.num_classes, width))
        self.register_buffer("counts", torch.zeros(data.num_classes))
        self.register_buffer("ends", torch.zeros(()))

    def collect(self, teacher, batch):
        self.sums.index_add_(0, batch.target, teacher.features["pooled_feat"].float())
        self.counts += torch.bincount(batch.target, minlength=len(self.counts))

    def end_collection(self):
        self.ends += 1

    def losses(self, student, teacher, batch):
        mean = (self.sums.sum(0) / self.counts.sum()).mean()
        distance = student.features["pooled_feat"].mean() - mean
        return {"loss_kd": self.hp.WEIGHT * distance.square()}
"""


@pytest.fixture
def train_means(train_tiny, tmp_path):
    plugin = tmp_path / "means.py"
    plugin.write_text(METHOD)

    def run(name, *opts, method="MEANS"):
        words = ["--plugin", plugin, "DISTILLER.TYPE", method, *opts]
        return train_tiny(name, *words)

    return run


def buffers(run, prefix=""):
    state = load_checkpoint(run / "latest")["model"]
    return tuple(state[f"{prefix}{name}"] for name in ("sums", "counts", "ends"))


def test_every_image_is_seen_once_with_and_without_the_cache(train_means, tiny_folder):
    for name, is_on in (("cached", "True"), ("live", "False")):
        assert train_means(name, "TEACHER_MEMO.ENABLED", is_on, "SOLVER.EPOCHS", 1).code == 0

    sums, counts, ends = buffers(tiny_folder / "cached")
    assert counts.tolist() == [18, 18, 18, 17]  # the 71 images of `tiny`
    assert ends == 1
    torch.testing.assert_close(sums, buffers(tiny_folder / "live")[0])


def test_a_resumed_run_keeps_the_statistics(train_means, tiny_folder):
    assert train_means("whole").code == 0
    assert train_means("parts", "SOLVER.EPOCHS", 1).code == 0
    assert train_means("parts", "--resume").code == 0
    assert buffers(tiny_folder / "parts")[2] == 1
    assert outcome(tiny_folder / "parts") == outcome(tiny_folder / "whole")


def test_in_a_combination(train_means, tiny_folder):
    assert train_means("both", "SOLVER.EPOCHS", 1, method="KD+MEANS").code == 0
    assert buffers(tiny_folder / "both", "parts.1.")[1].sum() == 71


def test_a_switch_for_logits_is_refused(train_means, tiny_folder):
    done = train_means("run", "DISTILLER.LSKD", "True")
    assert_refused(done, "LSKD cannot be used with DISTILLER.TYPE MEANS, which compares no logits")
    assert not tiny_folder.exists()
