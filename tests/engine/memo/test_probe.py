"""The trial step of methods in the published style: only those that read logits alone pass."""

import pytest
import torch

from edkd.engine.checkpoint import fingerprint
from edkd.engine.memo.probe import reason_against
from edkd.types import Batch
from tests.engine.memo.parts import (
    HoldsTheTeacherTwice,
    OwnStep,
    Published,
    ReadsFeatures,
    ReadsLogits,
)
from tests.small import CPU, batch, make_distiller


class RunsTheTeacherTwice(Published):
    def distil(self, image, **kwargs):
        return self.teacher(image)[0].mean() + self.teacher(image)[0].amax()


class RunsTheTeacherThroughTheBase(Published):
    def distil(self, image, **kwargs):
        return self.run_teachers(Batch(image, kwargs["index"])).logits.mean()


class NeedsStartEpoch(ReadsLogits):
    def start_epoch(self, epoch):
        self.stage = epoch

    def distil(self, image, **kwargs):
        assert self.stage == kwargs["epoch"] == 1
        assert kwargs["index"] is not None
        return super().distil(image)


SERVED = [
    ReadsLogits,
    RunsTheTeacherTwice,
    RunsTheTeacherThroughTheBase,
    NeedsStartEpoch,
    HoldsTheTeacherTwice,
    OwnStep,
]


class TakesFeaturesForADict(Published):
    def distil(self, image, **kwargs):
        return self.teacher(image)[1].copy()["pooled_feat"].mean()


class FlipsTheImage(Published):
    def distil(self, image, **kwargs):
        return self.teacher(image.flip(3))[0].mean()


class ChangesTheImage(Published):
    def distil(self, image, **kwargs):
        image[:, :, :4] = 0
        return self.teacher(image)[0].mean()


class NamesTheArgument(Published):
    def distil(self, image, **kwargs):
        return self.teacher(x=image)[0].mean()


class ReadsAWeight(Published):
    def distil(self, image, **kwargs):
        return self.teacher.fc.weight.mean() + self.teacher(image)[0].mean()


class DoesNotRunTheTeacher(Published):
    def distil(self, image, **kwargs):
        return 0.0


class WantsTheGradientOfTheImage(Published):
    @torch.enable_grad()
    def distil(self, image, **kwargs):
        image = image.requires_grad_()
        (slope,) = torch.autograd.grad(self.teacher(image)[0].sum(), image)
        return slope.mean()


class SwitchesAutocastOff(Published):
    def distil(self, image, **kwargs):
        with torch.autocast("cpu", enabled=False):
            return self.teacher(image)[0].mean()


class Fails(Published):
    def distil(self, image, **kwargs):
        raise RuntimeError("two\nlines")


REFUSED = [
    (ReadsFeatures, "the method reads the teacher's features"),
    (TakesFeaturesForADict, "a trial step of the method failed: AttributeError"),
    (FlipsTheImage, "other images than those of the batch"),
    (ChangesTheImage, "other images than those of the batch"),
    (NamesTheArgument, "other images than those of the batch"),
    (ReadsAWeight, "the method reads the teacher's attribute fc"),
    (DoesNotRunTheTeacher, "did not run the teacher"),
    (WantsTheGradientOfTheImage, "other images than those of the batch"),
    (SwitchesAutocastOff, "in another precision"),
    (Fails, "a trial step of the method failed: RuntimeError: two lines"),
]


def probe(distiller):
    amp = torch.bfloat16 if isinstance(distiller, SwitchesAutocastOff) else None
    (teacher,) = distiller.teachers()
    return reason_against(distiller, teacher, batch(), amp, CPU)


@pytest.mark.parametrize("method", SERVED)
def test_a_method_that_reads_logits_alone_passes(method):
    assert probe(make_distiller(method)) == ""


@pytest.mark.parametrize(("method", "reason"), REFUSED)
def test_a_method_that_needs_more_is_refused_with_the_reason(method, reason):
    found = probe(make_distiller(method))
    assert reason in found
    assert "\n" not in found


@pytest.mark.parametrize("method", [*SERVED, *(method for method, _ in REFUSED)])
def test_the_trial_changes_neither_method_nor_teacher(method):
    distiller = make_distiller(method).train()
    (teacher,) = distiller.teachers()
    before = fingerprint(distiller)
    probe(distiller)
    assert fingerprint(distiller) == before
    assert distiller.teacher is teacher
    assert not teacher.training
    assert all(p.grad is None for p in distiller.parameters())
    assert not hasattr(distiller, "stage")
