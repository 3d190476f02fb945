"""What single methods on logits do beside the properties that all have."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edkd.distillers import construct, dkd_loss, find_method
from edkd.distillers._math import scaled_gradient
from edkd.distillers.ctkd import curriculum
from edkd.distillers.nkd import nkd_loss
from edkd.distillers.normkd import normdkd_loss, normkd_loss
from edkd.distillers.rld import masked_correlation, rld_loss
from edkd.distillers.ttm import ttm_loss
from edkd.distillers.uskd import uskd_loss
from edkd.errors import UserError
from edkd.types import Batch
from tests.distillers.logits import sample, value_and_gradient
from tests.distillers.reference import ctkd
from tests.small import batch, config, info, make_distiller


def test_nkd_takes_the_class_with_the_larger_share():
    student, teacher, target = sample()
    mixed = 0.8 * F.one_hot(target, 5) + 0.2 * F.one_hot((target + 1) % 5, 5)
    expected = nkd_loss(student, teacher, target, 1.5, 1.0)
    assert nkd_loss(student, teacher, mixed, 1.5, 1.0) == expected


def test_ttm_does_not_underflow():
    """Powers of probabilities do: in float16 of almost all but the largest."""
    torch.manual_seed(0)
    teacher = 24 * torch.randn(64, 100)
    exact = (0.1 * teacher.half().double()).softmax(1)
    by_power = teacher.half().softmax(1) ** 0.1
    by_power = (by_power / by_power.sum(1, keepdim=True)).double()
    assert (by_power - exact).abs().sum(1).mean() > 0.5

    student = exact.log().half()
    assert ttm_loss(student, teacher.half(), 0.1) < 1e-5


def test_rld_drops_an_image_whose_target_is_the_least_likely_class():
    student, teacher, _ = sample()
    lowest = teacher.argmin(1)
    value, gradient = value_and_gradient(
        lambda s, t, y: masked_correlation(s, t, y, 4.0).sum(), student, teacher, lowest
    )
    assert value == 0
    assert not gradient.any()

    # The same where all classes are equally likely: none is below the target.
    for dtype in (torch.float16, torch.float32):
        equal = torch.zeros(6, 5, dtype=dtype)
        assert not masked_correlation(student.to(dtype), equal, lowest, 4.0).any()


def test_rld_is_dkd_without_wrong_teachers():
    """Where the target is the teacher's top class, no class is masked, and SCD is TCKD."""
    student, teacher, _ = sample()
    target = teacher.argmax(1)
    expected = dkd_loss(student, teacher, target, 1.0, 8.0, 4.0)
    torch.testing.assert_close(rld_loss(student, teacher, target, 1.0, 8.0, 4.0, 4.0), expected)


def test_soft_targets_are_refused_by_rld_and_by_normkd_with_dkd():
    student, teacher, target = sample()
    soft = F.one_hot(target, 5).double()
    with pytest.raises(UserError, match="needs class numbers"):
        rld_loss(student, teacher, soft, 1.0, 8.0, 4.0, 1.0)
    with pytest.raises(UserError, match="needs class numbers"):
        normdkd_loss(student, teacher, soft, 1.0, 8.0, 2.0)


@pytest.mark.parametrize("key", ["MIXUP", "CUTMIX"])
def test_normkd_with_dkd_refuses_mixed_images_before_it_trains(key):
    make_distiller("NORMKD", f"SOLVER.{key}", "0.2")
    with pytest.raises(UserError, match="BASE dkd needs the class of each image, but SOLVER"):
        make_distiller("NORMKD", f"SOLVER.{key}", "0.2", "NORMKD.BASE", "dkd")


def test_normkd_does_not_depend_on_the_scale_of_the_student():
    student, teacher, _ = sample()
    expected = normkd_loss(student, teacher, 2.0)
    torch.testing.assert_close(normkd_loss(7 * student, teacher, 2.0), expected)
    ratio = normkd_loss(student, 3 * teacher, 2.0) / expected
    assert ratio.item() == pytest.approx(9)


def test_the_weak_head_of_uskd_learns_from_its_own_term_alone():
    student, weak, target = sample()
    student.requires_grad_()
    weak.requires_grad_()
    loss = uskd_loss(student, weak, target, 1.0, 0.1, 0.005)
    of_weak = torch.autograd.grad(loss, weak, retain_graph=True)[0]
    expected = 0.005 * F.cross_entropy(weak, target, label_smoothing=0.1)
    torch.testing.assert_close(of_weak, torch.autograd.grad(expected, weak)[0])


class NoStages(nn.Module):
    """As a vision transformer: without feature maps."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(192, 4)

    def forward(self, x):
        x = x.flatten(1)
        return self.fc(x), {"feats": [], "preact_feats": [], "pooled_feat": x}


def test_uskd_needs_feature_maps():
    method = find_method("USKD")
    with pytest.raises(UserError, match="USKD needs a student with two or more feature maps"):
        construct(method, NoStages(), None, config("DISTILLER.TYPE", "USKD"), info())


# CTKD.


@pytest.mark.parametrize("loops", [0, 1, 5, 10])
def test_the_curriculum(loops):
    for epoch in (1, 2, 5, 10, 40):
        expected = ctkd.factor(epoch, loops) if loops else -1.0
        assert curriculum(epoch, loops).item() == pytest.approx(expected, abs=1e-6)
        on_device = curriculum(torch.tensor(float(epoch)), loops)
        assert on_device.item() == pytest.approx(expected, abs=1e-6)


def test_scaled_gradient():
    value = torch.tensor([2.0, -3.0], requires_grad=True)
    scaled = scaled_gradient(value, -0.5)
    assert torch.equal(scaled, value)
    (gradient,) = torch.autograd.grad(scaled.square().sum(), value)
    torch.testing.assert_close(gradient, -0.5 * 2 * value.detach())


def test_the_temperature_of_ctkd_climbs_the_loss():
    """Its gradient is that of the loss times the curriculum, T^2 included."""
    distiller = make_distiller("CTKD").double().train()
    about = batch(epoch=3)
    about = replace(about, image=about.image.double())
    _, losses = distiller.training_step(about)
    (gradient,) = torch.autograd.grad(losses["loss_kd"], distiller.theta)

    with torch.no_grad():
        student = distiller.student(about.image)[0].tolist()
        teacher = distiller.teacher(about.image)[0].tolist()

    def total(theta):
        rows = zip(student, teacher, strict=True)
        return 0.9 * sum(ctkd.ctkd(s, t, theta, 1.0, 20.0) for s, t in rows) / 8

    slope = (total(1 + 1e-4) - total(1 - 1e-4)) / 2e-4
    assert losses["loss_kd"].item() == pytest.approx(total(1.0))
    assert gradient.item() == pytest.approx(ctkd.factor(3, 10) * slope, rel=1e-5)
    assert math.copysign(1, gradient.item()) == -math.copysign(1, slope)
    assert distiller.get_extra_parameters() == 1
    assert "theta" in distiller.trained_state()


def test_ctkd_takes_the_epoch_as_a_tensor():
    distiller = make_distiller("CTKD").train()
    about = batch(epoch=4)
    as_tensor = Batch(about.image, about.target, about.index, torch.tensor(4.0))
    results = []
    for each in (about, as_tensor):
        losses = distiller.training_step(each)[1]
        results.append(torch.autograd.grad(losses["loss_kd"], distiller.theta)[0])
    torch.testing.assert_close(*results)


# Whole runs.


@pytest.mark.parametrize(
    "opts",
    [
        *[(name,) for name in ("NKD", "TTM", "WTTM", "CTKD", "NORMKD", "RLD", "USKD")],
        ("NORMKD", "NORMKD.BASE", "dkd"),
    ],
    ids=" ".join,
)
def test_a_run_that_is_resumed_is_the_same(assert_resumes, opts):
    assert_resumes("DISTILLER.TYPE", *opts)
