"""Methods with two views: MLKD and CRLD, and the two parts of a distillation loss."""

import pytest
import torch

from edkd.distillers import Split, kd_loss
from edkd.distillers._math import decoupled_kl
from edkd.distillers._switches import entropy_weights, standardize
from edkd.distillers.crld import confidences, crld_loss
from edkd.distillers.mlkd import low_confidence, mlkd_loss
from edkd.errors import UserError
from edkd.types import Batch
from tests.distillers.reference.crld import crld
from tests.distillers.reference.mlkd import mlkd
from tests.small import batch, make_distiller

TEMPERATURES = [4.0, 3.0, 5.0, 2.0, 6.0]
FORMS = ["paper", "reference"]
NAMES = [*FORMS, "crld"]
VIEWS = ("weak", "strong")
EVERY = pytest.mark.parametrize("name", NAMES)


def logits(number, classes, seed, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    shape = (number, classes)
    return {
        view: scale * torch.randn(shape, generator=generator, dtype=torch.float64) for view in VIEWS
    }


def terms(name, student, teacher, temperature=4.0):
    if name == "crld":
        confidence = confidences(teacher)
        return crld_loss(student, teacher, confidence, (2.0, 0.5), (0.6, 0.2), temperature)
    temperatures = [temperature, *TEMPERATURES[1:]]
    return mlkd_loss(student, teacher, low_confidence(teacher["weak"]), temperatures, name)


def total(name, student, teacher, temperature=4.0):
    return torch.stack(terms(name, student, teacher, temperature)).sum()


@EVERY
@pytest.mark.parametrize(("number", "classes"), [(6, 5), (7, 4), (5, 2), (1, 3)])
def test_the_losses_equal_plain_loops(name, number, classes):
    student = logits(number, classes, 0)
    teacher = logits(number, classes, 1)
    rows = [{view: both[view].tolist() for view in VIEWS} for both in (student, teacher)]
    if name == "crld":
        expected = crld(*rows, (2.0, 0.5), (0.6, 0.2), 4.0)
    else:
        expected = mlkd(*rows, TEMPERATURES, name)
    found = [loss.item() for loss in terms(name, student, teacher)]
    assert found == pytest.approx(list(expected), rel=1e-9)


@EVERY
def test_gradcheck(name):
    student = logits(5, 4, 0)
    teacher = logits(5, 4, 1)

    def loss(weak, strong):
        return total(name, {"weak": weak, "strong": strong}, teacher)

    inputs = [student[view].requires_grad_() for view in VIEWS]
    assert torch.autograd.gradcheck(loss, inputs)


@EVERY
def test_zero_where_student_and_teacher_agree(name):
    """CRLD compares views with one another, so that both are the same here."""
    both = logits(8, 6, 0)
    both["strong"] = both["weak"]
    student = {view: both[view].clone().requires_grad_() for view in VIEWS}
    loss = total(name, student, both)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-15)
    assert all(student[view].grad.abs().max() < 1e-12 for view in VIEWS)


@EVERY
def test_the_order_of_the_images_is_of_no_effect(name):
    student = logits(8, 6, 0)
    teacher = logits(8, 6, 1)
    order = torch.randperm(8)
    moved = [{view: both[view][order] for view in VIEWS} for both in (student, teacher)]
    torch.testing.assert_close(total(name, *moved), total(name, student, teacher))


@EVERY
@pytest.mark.parametrize("classes", [2, 50])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_up_to_1e4(name, classes, dtype):
    teacher = logits(16, classes, 1, scale=2e3)
    constant = {view: torch.zeros_like(teacher[view]) for view in VIEWS}
    for other in (teacher, constant):
        theirs = {view: other[view].clamp(-1e4, 1e4).to(dtype) for view in VIEWS}
        student = {view: -teacher[view].clamp(-1e4, 1e4).to(dtype) for view in VIEWS}
        student = {view: student[view].requires_grad_() for view in VIEWS}
        loss = total(name, student, theirs, 1.0)
        loss.backward()
        assert loss.isfinite()
        assert loss.dtype == torch.float32
        assert all(student[view].grad.isfinite().all() for view in VIEWS)


def test_the_masks_are_those_of_the_median():
    teacher = torch.tensor([[0.0, 5.0], [0.0, 1.0], [0.0, 3.0], [0.0, 2.0]])
    images, classes = low_confidence(teacher)
    assert images.tolist() == [False, True, False, True]
    assert classes.tolist() == [True, False]
    assert low_confidence(teacher[:3])[0].tolist() == [False, True, True]


def test_an_unknown_form_is_refused():
    both = logits(4, 3, 0)
    with pytest.raises(UserError, match=r"form is 'Paper'.*did you mean 'paper'"):
        mlkd_loss(both, both, low_confidence(both["weak"]), [4.0], "Paper")


# The switches.


@pytest.mark.parametrize("name", ["MLKD", "CRLD"])
def test_standardised_logits_are_compared_and_the_confidences_stay(name):
    distiller = make_distiller(name, "DISTILLER.LSKD", "True").double()
    about = doubled(batch())
    _, found = distiller.training_step(about)
    student = {view: distiller.run_student(about)[view].logits for view in VIEWS}
    teacher = {view: distiller.run_teachers(about)[view].logits for view in VIEWS}
    standard = [{view: standardize(each[view]) for view in VIEWS} for each in (student, teacher)]
    if name == "CRLD":
        confidence = confidences(teacher)
        expected = crld_loss(*standard, confidence, (2.0, 0.5), (0.9, 0.2), 4.0)
    else:
        masks = low_confidence(teacher["weak"])
        expected = [mlkd_loss(*standard, masks, TEMPERATURES)[0]]
        expected += mlkd_loss(student, teacher, masks, TEMPERATURES)[1:]
        expected = [0.9 * loss for loss in expected]
    assert distilled(found) == pytest.approx(sum(expected).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["MLKD", "CRLD"])
def test_each_image_has_a_weight(name):
    distiller = make_distiller(name, "DISTILLER.EAKD", "True").double()
    about = doubled(batch())
    _, found = distiller.training_step(about)
    student = distiller.run_student(about)
    teacher = distiller.run_teachers(about)
    each = distiller.losses(student, teacher, about)
    weights = entropy_weights(student["weak"].logits, teacher["weak"].logits, 3.0)
    expected = sum((weights * loss).mean() if loss.dim() else loss for loss in each.values())
    assert distilled(found) == pytest.approx(expected.item(), rel=1e-6)
    assert any(loss.dim() for loss in each.values())


def distilled(losses):
    return sum(loss.item() for name, loss in losses.items() if name.startswith("loss_kd"))


def doubled(about):
    views = {name: view._replace(image=view.image.double()) for name, view in about.views.items()}
    return Batch(about.image.double(), about.target, about.index, about.epoch, views)


def test_both_in_one_run():
    distiller = make_distiller("MLKD+CRLD", "DISTILLER.LSKD", "True")
    _, losses = distiller.training_step(batch())
    alone = [
        make_distiller(name, "DISTILLER.LSKD", "True").training_step(batch())[1]
        for name in ("MLKD", "CRLD")
    ]
    assert distilled(losses) == pytest.approx(sum(map(distilled, alone)), rel=1e-5)


# The distillation loss in two parts.


def test_the_parts_of_kd_add_up():
    student = logits(8, 6, 0)["weak"]
    teacher = logits(8, 6, 1)["weak"]
    about = Batch(student, torch.arange(8) % 6)
    target, other = Split().kd(student, teacher, 4.0, about)
    torch.testing.assert_close(target + other, kd_loss(student, teacher, 4.0, "none"))

    tckd, nckd, _ = decoupled_kl(student, teacher, about.target, 4.0)
    parts = Split(as_dkd=True, alpha=0.5, beta=2.0, warmup=4).kd(student, teacher, 4.0, about)
    torch.testing.assert_close(parts[0], 16 * 0.25 * 0.5 * tckd)
    torch.testing.assert_close(parts[1], 16 * 0.25 * 2.0 * nckd)


@pytest.mark.parametrize("name", ["KD", "DKD", "EDKD", "MLKD", "CRLD"])
@pytest.mark.parametrize("eakd", ["True", "False"])
def test_the_parts_of_each_method_add_up(name, eakd):
    distiller = make_distiller(name, "DISTILLER.EAKD", eakd)
    _, whole = distiller.training_step(batch())
    distiller = make_distiller(name, "DISTILLER.EAKD", eakd)
    distiller.split = Split()
    _, parts = distiller.training_step(batch())
    assert {"loss_kd_target", "loss_kd_other"} <= set(parts)
    assert distilled(parts) == pytest.approx(distilled(whole), rel=5e-5)  # in float32


def test_the_likeliest_other_classes_are_kept():
    teacher = torch.tensor([[9.0, 1.0, 3.0, 2.0], [0.0, 1.0, 1.0, 5.0]])
    about = Batch(teacher, torch.tensor([0, 1]))
    kept = Split(top_k=2).kept(teacher, about)
    assert kept.tolist() == [[False, False, True, True], [False, False, True, True]]
    assert Split().kept(teacher, about) is None

    student = torch.tensor([[9.0, 7.0, 3.0, 0.5]])
    one = Batch(student, torch.tensor([0]))
    _, other = Split(as_dkd=True, beta=1.0, warmup=0, top_k=2).kd(student, teacher[:1], 1.0, one)
    restricted = kd_loss(student[:, 2:], teacher[:1, 2:], 1.0)
    torch.testing.assert_close(other[0], restricted)


def test_the_number_of_classes_grows_in_three_phases():
    split = Split(top_k=50, epochs=30)
    epochs = (0, 1, 5, 10, 15, 20, 25, 30)
    numbers = [float(split.number_kept(epoch, 100)) for epoch in epochs]
    assert numbers == [5, 10, 28, 50, 50, 50, 74, 99]
    assert float(split.number_kept(torch.tensor(25.0), 100)) == 74
    assert Split(top_k=50).number_kept(1, 100) == 50
    assert float(Split(top_k=1, epochs=30).number_kept(1, 100)) == 1
