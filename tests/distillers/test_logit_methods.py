"""Losses on logits: properties that all of them have, and their equations image by image.

A loss joins with an entry in LOSSES, and with one in EQUATIONS where it has a reference.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from edkd.distillers import dkd_loss, edkd_loss, kd_loss
from edkd.distillers.ctkd import ctkd_loss, learned_temperature
from edkd.distillers.nkd import nkd_loss
from edkd.distillers.normkd import normdkd_loss, normkd_loss
from edkd.distillers.rld import rld_loss
from edkd.distillers.ttm import ttm_loss
from edkd.distillers.uskd import uskd_loss
from edkd.distillers.wttm import wttm_loss
from edkd.errors import UserError
from tests.distillers.logits import sample, value_and_gradient
from tests.distillers.reference import ctkd, normkd, rld, ttm, uskd
from tests.distillers.reference import nkd as reference_nkd
from tests.distillers.reference.switches import dkd_term, kd_term


def with_target(loss, *settings):
    """`loss(student, teacher, target, *settings)` as an entry of LOSSES."""
    return lambda student, teacher, target, **more: loss(
        student, teacher, target, *settings, **more
    )


def without_target(loss, *settings):
    """The same for a loss that reads no target."""
    return lambda student, teacher, target, **more: loss(student, teacher, *settings, **more)


def self_distilled(student, teacher, target, reduction="mean"):
    """USKD, with the other logits as those of its weak head."""
    assert reduction == "mean"
    return uskd_loss(student, teacher, target, 1.0, 0.1, 0.005)


LOSSES = {
    "KD": without_target(kd_loss, 4.0),
    "DKD": with_target(dkd_loss, 1.0, 8.0, 4.0),
    "EDKD": with_target(edkd_loss, 1.0, 8.0, 4.0),
    "NKD": with_target(nkd_loss, 1.5, 1.0),
    "TTM": without_target(ttm_loss, 0.1),
    "WTTM": without_target(wttm_loss, 0.2),
    "CTKD": without_target(ctkd_loss, torch.tensor([15.6])),
    "NORMKD": without_target(normkd_loss, 2.0),
    "NORMKD_dkd": with_target(normdkd_loss, 4.0, 5.0, 2.0),
    "RLD": with_target(rld_loss, 1.0, 8.0, 4.0, 1.0),
    "USKD": self_distilled,
}
"""Name -> function(student (N,C), teacher (N,C), target (N,), reduction="mean")."""

SELF_LABELLED = ["USKD"]
"""Their labels depend on the student, without gradient; they relate the images of a batch."""

ZERO_WHERE_EQUAL = ["KD", "DKD", "EDKD", "CTKD", "NORMKD", "NORMKD_dkd"]
"""They are 0 where student and teacher agree."""


def each_of(names):
    """Run a test with these losses."""
    return pytest.mark.parametrize("loss", [LOSSES[name] for name in names], ids=names)


EVERY = each_of(list(LOSSES))
PER_IMAGE = each_of([name for name in LOSSES if name not in SELF_LABELLED])


# Properties.


@PER_IMAGE
def test_gradcheck(loss):
    student, teacher, target = sample()
    function = partial(loss, teacher=teacher, target=target)
    assert torch.autograd.gradcheck(function, student.requires_grad_())


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("classes", [2, 100])
def test_finite_up_to_1e4(loss, dtype, classes):
    """A confidently wrong student, a margin of 120, uniform noise; float32 or better inside."""
    torch.manual_seed(0)
    target = torch.randint(classes, (32,))
    noise = 2e4 * torch.rand(32, classes) - 1e4
    sure = F.one_hot(target, classes).float()
    pairs = [(noise, -noise), (1e4 * sure, -1e4 * sure), (-1e4 * sure, 1e4 * sure)]
    pairs += [(120 * sure, -120 * sure), (-120 * sure, 120 * sure), (noise, 120 * sure)]
    for student, teacher in pairs:
        value, gradient = value_and_gradient(loss, student.to(dtype), teacher.to(dtype), target)
        assert value.isfinite()
        assert value.dtype == torch.float32
        assert gradient.isfinite().all()


@EVERY
@pytest.mark.parametrize("number", [1, 8])
def test_constant_rows(loss, number):
    """As of a head that begins with zeros: finite, and no step of a thousand."""
    _, noise, target = sample(number)
    noise = noise.float()
    for row in (torch.zeros(number, 5), torch.full((number, 5), 1234.567)):
        for student, teacher in ((row, noise), (noise, row), (row, row)):
            value, gradient = value_and_gradient(loss, student, teacher, target)
            assert value.isfinite()
            assert gradient.isfinite().all()
            assert gradient.abs().max() < 1e4


@EVERY
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_finite_where_student_and_teacher_agree(loss, scale):
    _, logits, target = sample(16, 10, scale=scale)
    value, gradient = value_and_gradient(loss, logits, logits, target)
    assert value.isfinite()
    assert gradient.isfinite().all()


@each_of(ZERO_WHERE_EQUAL)
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_zero_where_student_and_teacher_agree(loss, scale):
    _, logits, target = sample(16, 10, scale=scale)
    value, gradient = value_and_gradient(loss, logits, logits, target)
    assert value.item() == pytest.approx(0, abs=1e-9)
    assert gradient.abs().max() < 1e-6


@EVERY
def test_the_order_of_the_batch_does_not_matter(loss):
    student, teacher, target = sample(8)
    order = torch.randperm(8)
    value, gradient = value_and_gradient(loss, student, teacher, target)
    again, moved = value_and_gradient(loss, student[order], teacher[order], target[order])
    torch.testing.assert_close(again, value)
    torch.testing.assert_close(moved, gradient[order])


@EVERY
def test_a_constant_added_to_the_logits_changes_nothing(loss):
    student, teacher, target = sample()
    expected = loss(student, teacher, target)
    torch.testing.assert_close(loss(student + 100, teacher - 50, target), expected)


@PER_IMAGE
def test_the_mean_is_that_of_the_losses_of_the_images(loss):
    """And each of these is the loss of a batch of one image."""
    student, teacher, target = sample()
    each = loss(student, teacher, target, reduction="none")
    assert each.shape == (6,)
    torch.testing.assert_close(each.mean(), loss(student, teacher, target))

    rows = [(student[i : i + 1], teacher[i : i + 1], target[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(each, torch.stack([loss(*row) for row in rows]))
    with pytest.raises(UserError, match="reduction is 'sum'"):
        loss(student, teacher, target, reduction="sum")


@EVERY
def test_half_precisions_are_near_float64(loss):
    student, teacher, target = sample(32, 10)
    for dtype, tolerance in ((torch.float16, 1e-5), (torch.bfloat16, 1e-5)):
        low = student.to(dtype), teacher.to(dtype)
        exact = loss(low[0].double(), low[1].double(), target)
        assert loss(*low, target).item() == pytest.approx(exact.item(), rel=tolerance)


# Equations.

EQUATIONS = {
    "KD": (LOSSES["KD"], lambda s, t, y: kd_term(s, t, y, 4.0)),
    "DKD": (LOSSES["DKD"], lambda s, t, y: dkd_term(s, t, y, 4.0)),
    "NKD": (LOSSES["NKD"], lambda s, t, y: reference_nkd.nkd(s, t, y, 1.5, 1.0)),
    "NKD_T3": (
        with_target(nkd_loss, 3.5, 3.0),
        lambda s, t, y: reference_nkd.nkd(s, t, y, 3.5, 3.0),
    ),
    "TTM": (LOSSES["TTM"], lambda s, t, y: ttm.ttm(s, t, 0.1)),
    "WTTM": (LOSSES["WTTM"], lambda s, t, y: ttm.wttm(s, t, 0.2)),
    "CTKD": (
        without_target(ctkd_loss, learned_temperature(torch.ones(1).double(), 1.0, 20.0)),
        lambda s, t, y: ctkd.ctkd(s, t, 1.0, 1.0, 20.0),
    ),
    "NORMKD": (LOSSES["NORMKD"], lambda s, t, y: normkd.normkd(s, t, 2.0)),
    "NORMKD_dkd": (
        LOSSES["NORMKD_dkd"],
        lambda s, t, y: normkd.normdkd(s, t, y, 4.0, 5.0, 2.0),
    ),
    "RLD": (LOSSES["RLD"], lambda s, t, y: rld.rld(s, t, y, 1.0, 8.0, 4.0, 1.0)),
    "RLD_same_T": (
        with_target(rld_loss, 2.0, 4.0, 4.0, 4.0),
        lambda s, t, y: rld.rld(s, t, y, 2.0, 4.0, 4.0, 4.0),
    ),
}
"""Name -> (function as in LOSSES, the equation for one image in plain numbers)."""


@pytest.mark.parametrize(("loss", "equation"), EQUATIONS.values(), ids=EQUATIONS)
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_equation(loss, equation, classes):
    student, teacher, target = sample(8, classes)
    each = [
        equation(s, t, y)
        for s, t, y in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True)
    ]
    assert loss(student, teacher, target).item() == pytest.approx(sum(each) / 8, rel=1e-9)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_equation_of_uskd(classes):
    student, weak, target = sample(8, classes)
    shares = [{y: 1.0} for y in target.tolist()]
    expected = uskd.uskd(student.tolist(), weak.tolist(), shares, 0.7, 0.3, 0.2)
    loss = uskd_loss(student, weak, target, 0.7, 0.3, 0.2)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_the_equation_of_uskd_with_mixed_images():
    """Half of the images are mixed; the others have one label."""
    student, weak, first = sample(8, 7)
    second = (first + 2) % 7
    shares = [
        {y: 0.7, z: 0.3} if i % 2 else {y: 1.0}
        for i, (y, z) in enumerate(zip(first.tolist(), second.tolist(), strict=True))
    ]
    target = torch.zeros(8, 7, dtype=torch.float64)
    for i, share in enumerate(shares):
        for y, part in share.items():
            target[i, y] = part

    # The column of second labels has a mean over all images: those without one count by the
    # class that `topk` finds, which the reference is told.
    _, label = target.topk(2, dim=1)
    told = [{y: target[i, y].item() for y in row} for i, row in enumerate(label.tolist())]
    expected = uskd.uskd(student.tolist(), weak.tolist(), told, 0.7, 0.3, 0.2)
    assert uskd_loss(student, weak, target, 0.7, 0.3, 0.2).item() == pytest.approx(expected)
