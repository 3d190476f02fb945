"""CRD, SRRL, ND, SIMKD and RSD: float64 references, gradients, large numbers, states."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edkd.distillers import construct, find_method
from edkd.distillers._math import at_least_float32
from edkd.distillers._memory_bank import MemoryBank, Negatives
from edkd.distillers.crd import crd_loss
from edkd.distillers.nd import nd_loss
from edkd.distillers.rsd import rsd_loss
from edkd.distillers.simkd import simkd_loss
from edkd.distillers.srrl import srrl_loss
from edkd.errors import UserError
from edkd.models import get_model
from edkd.types import DataInfo, Output
from tests.distillers.reference import contrast as reference
from tests.small import CLASSES, TinyNet, batch, config, info, make_distiller

METHODS = ["CRD", "SRRL", "ND", "SIMKD", "RSD"]

torch.manual_seed(0)
DIRECTION = F.normalize(torch.randn(6, 5, dtype=torch.float64))


def pair_loss(name, student, teacher):
    """A loss of two features (6,5)."""
    if name == "crd":
        anchor, others = (F.normalize(at_least_float32(f), eps=1e-4) for f in (student, teacher))
        return crd_loss(anchor @ others.T, 3.0, 20, 0.07)
    if name == "srrl":
        return srrl_loss(student, teacher)
    if name == "nd":
        return nd_loss(student, teacher, DIRECTION.to(student.dtype))
    if name == "simkd":
        return simkd_loss(student[:, :, None, None], teacher[:, :, None, None])
    return rsd_loss(student, teacher, 0.01)


EVERY = pytest.mark.parametrize("name", [name.lower() for name in METHODS])


@EVERY
def test_gradcheck(name):
    student = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda feature: pair_loss(name, feature, teacher), student)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_for_large_and_constant_features(name, dtype):
    large = 2e4 * torch.rand(6, 5) - 1e4
    pairs = [(large, -large), (large, large.clone()), (torch.zeros(6, 5), large)]
    pairs += [(torch.ones(6, 5), torch.ones(6, 5)), (torch.zeros(6, 5), torch.zeros(6, 5))]
    for student, teacher in pairs:
        student = student.to(dtype).requires_grad_()
        loss = pair_loss(name, student, teacher.to(dtype))
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite()
        assert loss.dtype in (torch.float32, torch.float64)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["srrl", "simkd"])
def test_zero_where_both_agree(name):
    feature = torch.randn(6, 5)
    assert pair_loss(name, feature, feature).item() == 0


@pytest.mark.parametrize("name", ["srrl", "nd", "simkd", "rsd"])
def test_the_order_of_a_batch_does_not_matter(name):
    student = torch.randn(6, 5, dtype=torch.float64)
    teacher = torch.randn(6, 5, dtype=torch.float64)
    order = torch.randperm(6) if name != "nd" else torch.arange(6)
    expected = pair_loss(name, student, teacher).item()
    assert pair_loss(name, student[order], teacher[order]).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["srrl", "nd", "rsd"])
def test_references(name):
    student = torch.randn(6, 5, dtype=torch.float64)
    teacher = torch.randn(6, 5, dtype=torch.float64)
    further = {"srrl": [], "nd": [DIRECTION.tolist()], "rsd": [0.01]}[name]
    expected = getattr(reference, name)(student.tolist(), teacher.tolist(), *further)
    assert pair_loss(name, student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_reference_of_simkd():
    student = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    teacher = torch.randn(3, 4, 4, 4, dtype=torch.float64)
    pooled = [
        [
            sum(teacher[n, d, 2 * y + i, 2 * x + j].item() for i in (0, 1) for j in (0, 1)) / 4
            for d in range(4)
            for y in (0, 1)
            for x in (0, 1)
        ]
        for n in range(3)
    ]
    expected = reference.simkd(student.flatten(1).tolist(), pooled)
    assert simkd_loss(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_a_batch_of_one_has_no_correlation():
    with pytest.raises(UserError, match="it has one; use two or more"):
        rsd_loss(torch.ones(1, 3), torch.ones(1, 3), 0.01)


# CRD: a whole step, its memory, and the choice of negatives.


def crd(*opts, data=None):
    """CRD of tiny networks in float64."""
    if data is None:
        return make_distiller("CRD", "CRD.NCE.K", 8, *opts).double().train()
    cfg = config("DISTILLER.TYPE", "CRD", *opts)
    return construct(find_method("CRD"), TinyNet(), TinyNet(12), cfg, data)


def as_float64(about):
    return dataclasses.replace(about, image=about.image.double())


@pytest.mark.parametrize("mode", ["exact", "relax", "all"])
def test_a_step_of_crd_equals_the_reference(mode):
    distiller = crd("CRD.MODE", mode)
    about = as_float64(batch())
    student = distiller.run_student(about)
    teacher = distiller.run_teachers(about)
    banks = (distiller.bank_student.rows.clone(), distiller.bank_teacher.rows.clone())

    torch.manual_seed(3)
    loss = distiller.losses(student, teacher, about)["loss_kd"].item()
    torch.manual_seed(3)
    compared = distiller._compared(about.index).tolist()
    positives = [row[0] for row in compared]
    negatives = [row[1:] for row in compared]

    feature_s = F.normalize(distiller.embed_student(student.features["pooled_feat"]))
    feature_t = F.normalize(distiller.embed_teacher(teacher.features["pooled_feat"]))
    sides = [(feature_s, banks[1]), (feature_t, banks[0])]
    expected = sum(
        reference.crd(feature.tolist(), bank.tolist(), positives, negatives, 0.07)
        for feature, bank in sides
    )
    assert loss == pytest.approx(0.8 * expected, rel=1e-9)

    # The banks follow the features; other rows stay.
    for bank, before, feature in [
        (distiller.bank_student, banks[0], feature_s),
        (distiller.bank_teacher, banks[1], feature_t),
    ]:
        rows = [
            reference.updated(before[i].tolist(), each.tolist(), 0.5)
            for i, each in zip(about.index, feature, strict=True)
        ]
        torch.testing.assert_close(bank.rows[about.index], torch.tensor(rows).double())
        assert torch.equal(bank.rows[8:], before[8:])


def test_the_constant_of_crd_is_that_of_the_first_step():
    distiller = crd()
    distiller.training_step(as_float64(batch()))
    first = distiller.log_normalizers.clone()
    assert first.isfinite().all()
    distiller.training_step(as_float64(batch(seed=2)))
    assert torch.equal(distiller.log_normalizers, first)


def test_the_momentum_of_the_bank_acts_on_the_next_step():
    losses = []
    for momentum in (0.5, 0.9):
        distiller = crd("CRD.NCE.MOMENTUM", momentum)
        torch.manual_seed(0)
        for _ in range(2):
            _, terms = distiller.training_step(as_float64(batch()))
        losses.append(terms["loss_kd"].item())
    assert losses[0] != losses[1]


def test_a_resumed_run_has_the_banks():
    distiller = crd()
    distiller.training_step(as_float64(batch()))
    other = crd()
    other.load_state_dict(other.state_dict() | distiller.trained_state())
    for one in (distiller, other):
        torch.manual_seed(5)
        _, terms = one.training_step(as_float64(batch(seed=2)))
        one.seen = terms["loss_kd"].item()
    assert distiller.seen == other.seen


def test_negatives_are_uniform_over_the_images_of_other_classes():
    """The classes are of unequal size and in no order."""
    targets = torch.tensor([2, 0, 0, 1, 2, 0, 0, 2, 0, 0, 0])
    negatives = Negatives(targets)
    index = torch.arange(len(targets))
    torch.manual_seed(0)
    drawn = negatives.of_other_classes(index, 40000)
    for image in range(len(targets)):
        counts = drawn[image].bincount(minlength=len(targets))
        other = targets != targets[image]
        assert counts[~other].sum() == 0
        assert (counts[other] / 40000 * other.sum() - 1).abs().max() < 0.05
    same = torch.stack([negatives.of_same_class(index) for _ in range(200)])
    assert (targets[same] == targets).all()
    assert len(set(same[:, 1].tolist())) == 7


@pytest.mark.parametrize("gathered", [2**25, 100])
def test_both_ways_to_compare_are_equal(monkeypatch, gathered):
    """Few of many rows are gathered in parts; many are taken from a product with all."""
    from edkd.distillers import _memory_bank

    bank = MemoryBank(50, 6, 0.5).double()
    anchor = F.normalize(torch.randn(7, 6, dtype=torch.float64)).requires_grad_()
    index = torch.randint(50, (7, 20))
    found = []
    for ratio in (4, 0):
        monkeypatch.setattr(_memory_bank, "DENSE_RATIO", ratio)
        monkeypatch.setattr(_memory_bank, "GATHERED_AT_ONCE", gathered)
        before = bank.rows.clone()
        similarities = bank.similarities(anchor, index)
        bank.update(torch.arange(50), torch.randn(50, 6, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(similarities.sin().sum(), anchor)
        bank.rows.copy_(before)
        found.append((similarities, gradient))
    torch.testing.assert_close(found[0], found[1])


def test_crd_without_the_classes_of_all_images():
    unknown = dataclasses.replace(info(), targets=None)
    with pytest.raises(UserError, match="CRD.MODE exact needs the classes .* set CRD.MODE to all"):
        crd(data=unknown)
    crd("CRD.MODE", "all", data=unknown)
    one_class = dataclasses.replace(info(), targets=torch.zeros(40, dtype=torch.long))
    with pytest.raises(UserError, match="of one class"):
        crd(data=one_class)


def test_the_published_widths_of_crd_may_be_given():
    make_distiller("CRD", "CRD.FEAT.STUDENT_DIM", 6, "CRD.FEAT.TEACHER_DIM", 12)
    for key, width in (("STUDENT_DIM", 6), ("TEACHER_DIM", 12)):
        message = f"CRD.FEAT.{key} is 256, but the pooled feature of the .* has {width}"
        with pytest.raises(UserError, match=message):
            make_distiller("CRD", f"CRD.FEAT.{key}", 256)


# SRRL and ND.


def test_srrl_compares_the_mean_of_the_connected_map():
    distiller = make_distiller("SRRL").double().eval()
    about = as_float64(batch())
    student, teacher = distiller.run_student(about), distiller.run_teachers(about)
    convolution, norm, _ = distiller.connector
    mapped = torch.einsum(
        "ndhw,ed->nehw", student.features["feats"][-1], convolution.weight[:, :, 0, 0]
    )
    mapped = (mapped / (1 + norm.eps) ** 0.5).relu()
    h = mapped.mean((2, 3))
    logits = h @ distiller.teacher.fc.weight.T + distiller.teacher.fc.bias

    terms = distiller.losses(student, teacher, about)
    expected = reference.srrl(h.tolist(), teacher.features["pooled_feat"].tolist())
    assert terms["loss_kd_feat"].item() == pytest.approx(expected, rel=1e-9)
    expected = reference.srrl(logits.tolist(), teacher.logits.tolist())
    assert terms["loss_kd_logit"].item() == pytest.approx(expected, rel=1e-9)


def test_the_directions_of_nd_are_those_of_the_class_means():
    distiller = make_distiller("ND")
    features, targets = [], []
    for seed in range(4):
        about = batch(seed=seed)
        features += distiller.run_teachers(about).features["pooled_feat"].tolist()
        targets += about.target.tolist()

    for number in range(CLASSES):
        own = [f for f, target in zip(features, targets, strict=True) if target == number]
        mean = [sum(column) / len(own) for column in zip(*own, strict=True)]
        expected = torch.tensor(mean) / reference.norm(mean)
        torch.testing.assert_close(distiller.directions[number], expected)
    assert "directions" in distiller.trained_state()


@pytest.mark.parametrize(("kind", "weights"), [("KD+ND", "[1.0,2.0]"), ("DKD+ND", "[1.0,0.5]")])
def test_nd_is_added_to_another_method(kind, weights):
    distiller = make_distiller(kind, "COMBINED.WEIGHTS", weights).train()
    _, terms = distiller.training_step(batch())
    assert {"loss_ce", f"loss_kd_{kind.split('+')[0]}", "loss_kd_ND"} == set(terms)
    sum(terms.values()).backward()


def test_equal_widths_are_compared_as_they_are():
    cfg = config("DISTILLER.TYPE", "ND")
    distiller = construct(find_method("ND"), TinyNet(), TinyNet(), cfg, info())
    assert isinstance(distiller.connector, nn.Identity)
    assert distiller.get_extra_parameters() == 0


# Networks of different families, with random weights.

PAIRS = [
    ("CRD", "vgg13", "MobileNetV2"),
    ("SRRL", "vgg13", "MobileNetV2"),
    ("ND", "wrn_40_2", "ShuffleV1"),
    ("SIMKD", "wrn_40_2", "ShuffleV1"),
    ("RSD", "resnet8x4", "vgg8"),
    ("SIMKD", "resnet8x4", "vgg8"),
]


@pytest.mark.parametrize(("name", "teacher", "student"), PAIRS)
def test_different_families_fit(name, teacher, student):
    data = DataInfo(10, 40, torch.arange(40) % 10, (3, 32, 32))
    cfg = config("DISTILLER.TYPE", name)
    networks = [get_model("cifar", each, 10) for each in (student, teacher)]
    distiller = construct(find_method(name), *networks, cfg, data).train()
    with torch.no_grad():
        about = dataclasses.replace(batch(2), image=torch.randn(2, 3, 32, 32))
        logits, terms = distiller.training_step(about)
    assert logits.shape == (2, 10)
    assert all(loss.isfinite() for loss in terms.values())


class Pooled(nn.Module):
    """A network without feature maps, as a vision transformer."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Linear(3 * 8 * 8, width)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x):
        pooled = self.body(x.flatten(1))
        return self.fc(pooled), {"feats": [], "preact_feats": [], "pooled_feat": pooled}


@pytest.mark.parametrize("name", METHODS)
def test_networks_without_feature_maps(name):
    cfg = config("DISTILLER.TYPE", name)
    pairs = [(TinyNet(6), Pooled(12))]
    if name != "SIMKD":  # it reads the student's map
        pairs.append((Pooled(6), TinyNet(12)))
    for student, teacher in pairs:
        distiller = construct(find_method(name), student, teacher, cfg, info()).train()
        _, terms = distiller.training_step(batch())
        sum(terms.values()).backward()
        assert isinstance(distiller.run_student(batch()), Output)
