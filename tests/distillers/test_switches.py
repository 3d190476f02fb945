"""The switches of DISTILLER: LSKD, EAKD, SHUFFLE_TEACHER; and weights of the student alone."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from edkd.distillers import Distiller, check_switches, construct, find_method
from edkd.distillers._switches import (
    entropy_weights,
    others_of_class,
    standardize,
    taken_from,
)
from edkd.engine.memo.stand_in import CachedFeatures
from edkd.errors import UserError
from edkd.registry import METHODS
from edkd.types import LazyFeatures, Output
from tests.distillers.reference import switches
from tests.runs import assert_refused
from tests.small import TinyNet, batch, config, info, make_distiller

LSKD = ("DISTILLER.LSKD", "True")
EAKD = ("DISTILLER.EAKD", "True")
SHUFFLE = ("DISTILLER.SHUFFLE_TEACHER", "True")
TERMS = {"KD": (switches.kd_term, 0.9), "DKD": (switches.dkd_term, 1 / 20)}
"""The term of a method at temperature 4, and its weight in the first epoch."""


def double_batch():
    about = batch()
    return replace(about, image=3 * about.image.double())


def step(distiller, about=None):
    """The terms of the loss of a step in float64, and the logits of both networks."""
    distiller.double().train()
    about = about or double_batch()
    _, losses = distiller.training_step(about)
    with torch.no_grad():
        student = distiller.student(about.image)[0].tolist()
        teacher = distiller.run_teachers(about)
    return losses, student, teacher, about.target.tolist()


# The equations.


@pytest.mark.parametrize("method", TERMS)
@pytest.mark.parametrize("opts", [(), LSKD, EAKD, LSKD + EAKD], ids=" ".join)
def test_the_equation(method, opts):
    losses, student, teacher, target = step(make_distiller(method, *opts))
    term, weight = TERMS[method]
    expected = weight * switches.loss(
        term,
        student,
        teacher.logits.tolist(),
        target,
        4.0,
        "LSKD" in str(opts),
        "EAKD" in str(opts),
    )
    assert losses["loss_kd"].item() == pytest.approx(expected, rel=1e-9)


def test_the_temperature_of_the_entropies():
    opts = (*EAKD, "DISTILLER.EAKD_TEMPERATURE", "2")
    losses, student, teacher, target = step(make_distiller("KD", *opts))
    rows = student, teacher.logits.tolist(), target
    expected = 0.9 * switches.loss(switches.kd_term, *rows, 4.0, False, True, 2.0)
    assert losses["loss_kd"].item() == pytest.approx(expected, rel=1e-9)


def test_standardized_rows():
    logits = 5 * torch.randn(6, 7, dtype=torch.float64) + 3
    expected = [switches.z_score(row) for row in logits.tolist()]
    torch.testing.assert_close(standardize(logits), torch.tensor(expected, dtype=torch.float64))
    assert torch.autograd.gradcheck(standardize, logits.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_constant_row_has_a_small_gradient(dtype):
    """That of a head of zeros was multiplied by 1e7, so that one step ruined the student."""
    for value in (0.0, 1234.5):
        logits = torch.full((3, 10), value, dtype=dtype, requires_grad=True)
        standard = standardize(logits)
        assert not standard.any()
        (gradient,) = torch.autograd.grad((standard * torch.arange(10)).sum(), logits)
        assert gradient.abs().max() <= 10


def test_weights_are_between_0_and_log_c():
    logits = 2e4 * torch.rand(32, 10) - 1e4
    equal = torch.zeros(32, 10)
    for student in (logits, equal, equal.half()):
        for teacher in (logits, equal):
            weights = entropy_weights(student.requires_grad_(), teacher, 3.0)
            assert weights.isfinite().all()
            assert weights.min() >= 0
            assert weights.max() <= 2.3026
            assert not weights.requires_grad


def test_two_classes_keep_only_the_sign_of_standardized_logits():
    logits = torch.tensor([[3.0, 1.0], [-5.0, 5.0]])
    expected = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) / 2**0.5
    torch.testing.assert_close(standardize(logits), expected)


def test_the_task_loss_and_the_features_stay_as_they_are():
    class Reads(Distiller):
        has_loss_per_image = True

        def losses(self, student, teacher, batch):
            seen.append((student, teacher))
            return {"loss_kd": student.logits.square().sum(1)}

    seen = []
    plain = make_distiller("KD").train()
    _, expected = plain.training_step(batch())
    for opts in (LSKD, EAKD, SHUFFLE):
        _, losses = make_distiller("KD", *opts).train().training_step(batch())
        assert losses["loss_ce"].item() == expected["loss_ce"].item()

    METHODS.add("TEST_READS", Reads)
    distiller = make_distiller("TEST_READS", *LSKD, *EAKD).train()
    distiller.training_step(batch())
    ((student, teacher),) = seen
    assert student.features["pooled_feat"].shape == (8, 6)
    assert teacher.features["pooled_feat"].shape == (8, 12)
    torch.testing.assert_close(student.logits.std(1), torch.ones(8))
    torch.testing.assert_close(teacher.logits.std(1), torch.ones(8))


# Combinations and several teachers.


def test_a_combination_with_switches():
    losses, student, teacher, target = step(make_distiller("KD+DKD", *LSKD, *EAKD))
    rows = student, teacher.logits.tolist(), target
    for method, (term, weight) in TERMS.items():
        expected = weight * switches.loss(term, *rows, 4.0, True, True)
        assert losses[f"loss_kd_{method}"].item() == pytest.approx(expected, rel=1e-9)


def test_a_term_without_a_loss_per_image_stays_as_it_is():
    class Hint(Distiller):
        teacher_needs = ("pooled_feat",)

        def losses(self, student, teacher, batch):
            return {"loss_kd": student.features["pooled_feat"].square().mean()}

    METHODS.add("TEST_HINT", Hint)
    losses, student, teacher, target = step(make_distiller("KD+TEST_HINT", *EAKD))
    alone, *_ = step(make_distiller("TEST_HINT"))
    assert losses["loss_kd_TEST_HINT"].item() == pytest.approx(alone["loss_kd"].item())
    rows = student, teacher.logits.tolist(), target
    expected = 0.9 * switches.loss(switches.kd_term, *rows, 4.0, False, True)
    assert losses["loss_kd_KD"].item() == pytest.approx(expected, rel=1e-9)


def with_two_teachers(method, *opts):
    names = ("DISTILLER.TEACHER", "[TinyNet,TinyNet]", "DISTILLER.TEACHER_WEIGHTS", "[1.0,3.0]")
    cfg = config("DISTILLER.TYPE", method, *names, *opts)
    torch.manual_seed(0)
    teachers = nn.ModuleList([TinyNet(), TinyNet(channels=12)])
    return construct(find_method(method), TinyNet(), teachers, cfg, info())


@pytest.mark.parametrize("method", TERMS)
def test_several_teachers(method):
    """Their mean prediction is standardised, and its entropy counts."""
    distiller = with_two_teachers(method, *LSKD, *EAKD)
    check_switches(distiller, method)
    losses, student, teacher, target = step(distiller)
    term, weight = TERMS[method]
    expected = switches.loss(term, student, teacher.logits.tolist(), target, 4.0, True, True)
    assert losses["loss_kd"].item() == pytest.approx(weight * expected, rel=1e-9)


# A teacher shuffled within classes.


def test_images_of_a_class_change_places():
    for seed in range(20):
        torch.manual_seed(seed)
        target = torch.randint(12, (32,))
        source = others_of_class(target)
        assert torch.equal(source.sort().values, torch.arange(32))
        assert torch.equal(target[source], target)

        counts = target.bincount(minlength=12)[target]
        stays = source == torch.arange(32)
        assert torch.equal(stays, counts == 1)


def test_every_other_image_of_the_class_is_drawn():
    torch.manual_seed(0)
    target = torch.tensor([5, 1, 5, 5, 2, 5])
    seen = {others_of_class(target)[0].item() for _ in range(100)}
    assert seen == {2, 3, 5}


def test_outputs_move_together():
    features = {"feats": [torch.arange(3)[:, None], torch.arange(3)], "pooled_feat": torch.eye(3)}
    output = Output(torch.eye(3), LazyFeatures(lambda: features))
    source = torch.tensor([2, 0, 1])
    for moved in (
        taken_from(output, source),
        taken_from({"weak": output}, source)["weak"],
        taken_from([output], source)[0],
    ):
        assert torch.equal(moved.logits, torch.eye(3)[source])
        assert torch.equal(moved.features["pooled_feat"], torch.eye(3)[source])
        assert [feat.flatten().tolist() for feat in moved.features["feats"]] == [[2, 0, 1]] * 2


def test_moved_features_that_are_cached_need_no_teacher():
    features = CachedFeatures({"pooled_feat": torch.eye(3)}, lambda: pytest.fail("the teacher ran"))
    source = torch.tensor([2, 0, 1])
    moved = taken_from(Output(torch.eye(3), features), source)
    assert torch.equal(moved.features["pooled_feat"], torch.eye(3)[source])


@pytest.mark.parametrize("name", ["KD", "KD+DKD", "two teachers"])
def test_the_loss_with_a_shuffled_teacher(name):
    """That of the teacher's logits of the other images."""
    distiller = with_two_teachers("KD", *SHUFFLE) if " " in name else make_distiller(name, *SHUFFLE)
    check_switches(distiller, name)
    about = double_batch()
    torch.manual_seed(7)
    losses, student, teacher, target = step(distiller, about)

    torch.manual_seed(7)
    source = others_of_class(about.target)
    rows = student, teacher.logits[source].tolist(), target
    expected = 0.9 * switches.loss(switches.kd_term, *rows, 4.0, False, False)
    term = "loss_kd_KD" if "+" in name else "loss_kd"
    assert losses[term].item() == pytest.approx(expected, rel=1e-9)


def test_a_method_that_reads_features_can_be_shuffled():
    class Hint(Distiller):
        teacher_needs = ("pooled_feat",)

        def losses(self, student, teacher, batch):
            mean = teacher.features["pooled_feat"].mean(1)
            return {"loss_kd": (student.logits.sum(1) * mean).mean()}

    METHODS.add("TEST_HINT", Hint)
    distiller = make_distiller("TEST_HINT", *SHUFFLE)
    check_switches(distiller, "TEST_HINT")
    shuffled, *_ = step(distiller)
    plain, *_ = step(make_distiller("TEST_HINT"))
    assert shuffled["loss_kd"].item() != plain["loss_kd"].item()


# What is refused.


class NoLogits(Distiller):
    """Reads features alone, as AT."""

    teacher_needs = ("feats",)

    def losses(self, student, teacher, batch):
        raise AssertionError


class NotPerImage(Distiller):
    def losses(self, student, teacher, batch):
        raise AssertionError


class Published(Distiller):
    def forward_train(self, image, target, **kwargs):
        raise AssertionError


@pytest.mark.parametrize(
    ("method", "opts", "message"),
    [
        (NoLogits, LSKD, "LSKD cannot .* compares no logits with a teacher's"),
        (NoLogits, EAKD, "EAKD cannot .* compares no logits"),
        (NotPerImage, EAKD, "EAKD cannot .* has no loss for each image"),
        (Published, LSKD, "LSKD cannot .* runs the networks itself"),
        (Published, SHUFFLE, "SHUFFLE_TEACHER cannot .* runs the networks itself"),
        ("DML", LSKD, "LSKD cannot .* DML, which"),
        ("DML", SHUFFLE, "SHUFFLE_TEACHER cannot .* DML, which has no teacher"),
        ("USKD", EAKD, "EAKD cannot .* USKD, which compares no logits"),
        ("NONE", SHUFFLE, "SHUFFLE_TEACHER cannot .* NONE, which has no teacher"),
    ],
)
def test_what_cannot_work_is_refused(method, opts, message):
    name = method
    if not isinstance(method, str):
        name = "TEST_METHOD"
        METHODS.add(name, method)
    with pytest.raises(UserError, match=f"DISTILLER.{message}.*; set it to False"):
        check_switches(make_distiller(name, *opts), name)


def test_a_combination_with_several_teachers_is_refused():
    distiller = with_two_teachers("KD+DKD", *LSKD)
    with pytest.raises(UserError, match="merges the outputs of several teachers itself"):
        check_switches(distiller, "KD+DKD")


def test_not_per_image_with_standardised_logits():
    METHODS.add("TEST_METHOD", NotPerImage)
    check_switches(make_distiller("TEST_METHOD", *LSKD), "TEST_METHOD")


def test_the_command_refuses_in_one_line(train_tiny):
    done = train_tiny("a", "DISTILLER.TYPE", "NONE", *LSKD)
    assert_refused(done, "DISTILLER.LSKD cannot be used with DISTILLER.TYPE NONE")
    done = train_tiny("a", "DISTILLER.TYPE", "KD", *SHUFFLE, "SOLVER.MIXUP", "0.5")
    assert_refused(done, "SHUFFLE_TEACHER needs the class of each image")


# Whole runs.


@pytest.mark.parametrize(
    "opts",
    [
        ("KD", *LSKD, *EAKD),
        ("KD", *SHUFFLE),
        ("KD+DKD", *LSKD, *SHUFFLE),
        ("NONE", "NONE.CE_WEIGHT", "2"),
    ],
    ids=" ".join,
)
def test_a_run_that_is_resumed_is_the_same(assert_resumes, opts):
    assert_resumes("DISTILLER.TYPE", *opts)
