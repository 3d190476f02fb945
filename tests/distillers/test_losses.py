"""The losses: golden values in float64, gradcheck, large numbers."""

import pytest
import torch

from edkd.distillers import dkd_loss, dml_loss, edkd_loss, kd_loss
from tests.golden.values import loss_cases

LOSSES = {"kd": kd_loss, "dkd": dkd_loss, "edkd": edkd_loss}


def by_name(name, student, teacher, target, temperature=4.0):
    if name == "kd":
        return kd_loss(student, teacher, temperature)
    if name == "dkd":
        return dkd_loss(student, teacher, target, 1.0, 8.0, temperature)
    return edkd_loss(student, teacher, target, 1.0, 8.0, temperature, form=name)


EVERY = pytest.mark.parametrize("name", ["kd", "dkd", "paper", "reference"])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("name", "cases"), [("kd", 3), ("dkd", 4), ("edkd", 4)])
def test_golden(name, cases, dtype, tolerance):
    found = loss_cases(name)
    assert len(found) == cases
    for case in found:
        inputs = {key: as_type(value, dtype) for key, value in case.inputs.items()}
        student = inputs["logits_student"].requires_grad_()
        parameters = dict(case.params)
        if parameters.pop("weighting", None) == "batch":
            parameters["form"] = "reference"

        loss = LOSSES[name](**inputs, **parameters)
        (gradient,) = torch.autograd.grad(loss, student)
        expected = case.grads[0].to(dtype)
        assert loss.item() == pytest.approx(case.value, rel=tolerance)
        assert (gradient - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_golden_of_mutual_learning(dtype, tolerance):
    found = loss_cases("dml")
    assert len(found) == 6
    for case in found:
        logits = [row.to(dtype).requires_grad_() for row in case.inputs["logits_students"]]
        loss = dml_loss(logits, case.inputs["target"])
        gradients = torch.autograd.grad(loss, logits)
        assert loss.item() == pytest.approx(case.value, rel=tolerance)
        for gradient, expected in zip(gradients, case.grads, strict=True):
            torch.testing.assert_close(gradient, expected.to(dtype), rtol=tolerance, atol=1e-9)


def as_type(value, dtype):
    return value.to(dtype) if value.is_floating_point() else value


@EVERY
def test_gradcheck(name):
    torch.manual_seed(0)
    student = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    teacher, target = 3 * torch.randn(5, 7, dtype=torch.float64), torch.randint(7, (5,))
    assert torch.autograd.gradcheck(lambda logits: by_name(name, logits, teacher, target), student)


@EVERY
@pytest.mark.parametrize("classes", [2, 100])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_up_to_1e4(name, classes, temperature, dtype):
    """A confidently wrong student, for which published implementations give inf or NaN."""
    torch.manual_seed(0)
    logits = 2e4 * torch.rand(64, classes) - 1e4
    target = torch.randint(classes, (64,))
    extreme = torch.full((64, classes), -1e4).scatter(1, target[:, None], 1e4)
    pairs = [(logits, -logits), (logits, logits.flip(0))]
    pairs += [(extreme, -extreme), (-extreme, extreme)]
    for teacher, student in pairs:
        student = student.to(dtype).requires_grad_()
        loss = by_name(name, student, teacher.to(dtype), target, temperature)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite()
        assert loss > 1
        assert loss.dtype in (torch.float32, torch.float64)
        assert gradient.isfinite().all()


@EVERY
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_zero_where_student_and_teacher_agree(name, scale):
    logits, target = scale * torch.randn(16, 10), torch.randint(10, (16,))
    student = logits.clone().requires_grad_()
    loss = by_name(name, student, logits, target)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == 0
    assert gradient.abs().max() < 1e-7


@EVERY
def test_adding_a_constant_to_the_logits_changes_nothing(name):
    student = torch.randn(8, 5).double()
    teacher = torch.randn(8, 5).double()
    target = torch.randint(5, (8,))
    expected = by_name(name, student, teacher, target)
    torch.testing.assert_close(by_name(name, student + 100, teacher - 50, target), expected)


def test_two_classes_have_no_others_to_compare():
    """With one other class NCKD is 0, so DKD with alpha 1 is KD, as KD = TCKD + (1 - p_t) NCKD."""
    student = torch.randn(8, 2).double()
    teacher = torch.randn(8, 2).double()
    target = torch.randint(2, (8,))
    loss = dkd_loss(student, teacher, target, 1.0, 8.0, 4.0)
    torch.testing.assert_close(loss, kd_loss(student, teacher, 4.0))


def test_edkd_paper_form_by_the_formula():
    """The definition, sample by sample, with probabilities."""
    torch.manual_seed(1)
    student = torch.randn(6, 5).double()
    teacher = 3 * torch.randn(6, 5).double()
    target = torch.randint(5, (6,))
    alpha, beta, temperature = 0.7, 3.0, 2.0
    total = 0.0
    for s, t, y in zip(student / temperature, teacher / temperature, target.tolist(), strict=True):
        p_s, p_t = s.softmax(0), t.softmax(0)
        tckd = p_t[y] * (p_t[y] / p_s[y]).log() + (1 - p_t[y]) * ((1 - p_t[y]) / (1 - p_s[y])).log()
        others = [c for c in range(5) if c != y]
        q_s, q_t = p_s[others] / (1 - p_s[y]), p_t[others] / (1 - p_t[y])
        nckd = (q_t * (q_t / q_s).log()).sum()
        total += alpha * tckd + beta * torch.exp(-(1 - p_t[y])) * nckd
    expected = temperature**2 * total / 6
    loss = edkd_loss(student, teacher, target, alpha, beta, temperature)
    torch.testing.assert_close(loss, expected)


def test_edkd_forms_and_weights_are_live():
    student, teacher, target = torch.randn(8, 5), 3 * torch.randn(8, 5), torch.randint(5, (8,))
    settings = [
        (1.0, 8.0, "paper"),
        (1.0, 8.0, "reference"),
        (2.0, 8.0, "paper"),
        (1.0, 4.0, "paper"),
    ]
    values = {
        edkd_loss(student, teacher, target, a, b, 4.0, form).item() for a, b, form in settings
    }
    assert len(values) == 4
