"""DIST, LumiNet, SKD, WKD and SDD: their losses against plain loops, and their limits."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from edkd.distillers import find_method
from edkd.distillers._cells import cell_logits, check_cells
from edkd.distillers._class_samples import ClassSamples
from edkd.distillers._math import cosine_decay
from edkd.distillers._pooled_map import last_map
from edkd.distillers.dist import dist_loss
from edkd.distillers.dkd import dkd_loss
from edkd.distillers.kd import kd_loss
from edkd.distillers.luminet import luminet_loss
from edkd.distillers.sdd import sdd_loss
from edkd.distillers.skd import skd_loss
from edkd.distillers.wkd import Sinkhorn, class_relations, cost_matrix, target_loss, wkd_loss
from edkd.errors import UserError
from edkd.models import as_network, get_model
from tests.distillers.reference import dist, luminet, sdd, skd, wkd
from tests.small import StagedNet, TinyNet, batch, config, info, make_distiller

CLASSES = 7


def costs(classes=CLASSES):
    """A symmetric matrix with zeros on the diagonal."""
    generator = torch.Generator().manual_seed(5)
    cost = torch.rand(classes, classes, generator=generator, dtype=torch.float64)
    return ((cost + cost.T) / 2).fill_diagonal_(0.0)


def as_cells(logits, factors=(1.0, -0.5, 2.0, 0.3, -1.0)):
    """Five cells made of logits (N,C): scaled, and shifted by a class each."""
    return torch.stack([factor * logits.roll(k, 1) for k, factor in enumerate(factors)], 1)


def kd_base(student, teacher, target):
    return kd_loss(student, teacher, 4.0, "none")


def dkd_base(student, teacher, target):
    return dkd_loss(student, teacher, target, 1.0, 8.0, 4.0, "none")


def of_cells(base):
    def loss(s, t, y, reduction="mean"):
        return sdd_loss(as_cells(s), as_cells(t), t, y, base, 2.0, reduction)

    return loss


def cells_by_loops(base):
    def loss(s, t, y):
        student, teacher = (as_cells(torch.tensor(z, dtype=torch.float64)).tolist() for z in (s, t))
        return sdd.sdd(student, teacher, t, y, base, 2.0)

    return loss


LOSSES = {
    "dist": lambda s, t, y: dist_loss(s, t, 1.5, 0.5, 4.0),
    "luminet": lambda s, t, y, *r: luminet_loss(s, t, 33.0, 4.0, *r),
    "skd": lambda s, t, y, *r: skd_loss(s, t, 4.0, 0.1, "reference", *r),
    "skd_paper": lambda s, t, y, *r: skd_loss(s, t, 4.0, 0.1, "paper", *r),
    "wkd": lambda s, t, y, *r: wkd_loss(s, t, y, costs(s.shape[1]), 2.0, Sinkhorn(), *r),
    "wkd_target": lambda s, t, y, *r: target_loss(s, t, y, *r),
    "sdd_kd": of_cells(kd_base),
    "sdd_dkd": of_cells(dkd_base),
}

BY_LOOPS = {
    "dist": lambda s, t, y: dist.dist(s, t, 1.5, 0.5, 4.0),
    "luminet": lambda s, t, y: luminet.luminet(s, t, 33.0, 4.0),
    "skd": lambda s, t, y: skd.skd(s, t, 4.0, 0.1, "reference"),
    "skd_paper": lambda s, t, y: skd.skd(s, t, 4.0, 0.1, "paper"),
    "wkd": lambda s, t, y: wkd.wkd(s, t, y, costs().tolist(), 2.0, 0.05, 10),
    "wkd_target": wkd.target_term,
    "sdd_kd": cells_by_loops(lambda s, t, y: sdd.kd(s, t, y, 4.0)),
    "sdd_dkd": cells_by_loops(lambda s, t, y: sdd.dkd(s, t, y, 1.0, 8.0, 4.0)),
}

EVERY = pytest.mark.parametrize("name", LOSSES)
METHODS = ("DIST", "LUMINET", "SKD", "WKD", "SDD")
PER_IMAGE = [name for name in LOSSES if name != "dist"]


def inputs(number=6, classes=CLASSES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(number, classes, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(number, classes, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(classes, (number,), generator=generator)


def with_gradient(name, student, teacher, target):
    student = student.clone().requires_grad_()
    loss = LOSSES[name](student, teacher, target)
    return loss, torch.autograd.grad(loss, student)[0]


@EVERY
def test_equals_plain_loops(name):
    for seed in range(3):
        student, teacher, target = inputs(seed=seed)
        expected = BY_LOOPS[name](student.tolist(), teacher.tolist(), target.tolist())
        loss = LOSSES[name](student, teacher, target)
        # SKD has 1e-12 below its root, which the paper has not.
        tolerance = 2e-6 if name.startswith("skd") else 1e-9
        assert loss.item() == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("name", PER_IMAGE)
def test_the_loss_of_each_image(name):
    student, teacher, target = inputs()
    each = LOSSES[name](student, teacher, target, "none")
    assert each.shape == (6,)
    torch.testing.assert_close(each.mean(), LOSSES[name](student, teacher, target))


@EVERY
def test_gradcheck(name):
    student, teacher, target = inputs(number=4, classes=5)
    function = LOSSES[name]
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: function(z, teacher, target), student)


@EVERY
def test_the_order_of_the_images_does_not_matter(name):
    student, teacher, target = inputs()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    loss, gradient = with_gradient(name, student, teacher, target)
    other, shuffled = with_gradient(name, student[order], teacher[order], target[order])
    torch.testing.assert_close(other, loss)
    torch.testing.assert_close(shuffled, gradient[order])


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("classes", [2, 20])
def test_finite_up_to_1e4(name, dtype, classes):
    torch.manual_seed(0)
    logits = 2e4 * torch.rand(16, classes) - 1e4
    target = torch.randint(classes, (16,))
    extreme = torch.full((16, classes), -1e4).scatter(1, target[:, None], 1e4)
    constant = torch.full((16, classes), 3.0)
    pairs = [(logits, -logits), (extreme, -extreme), (-extreme, extreme), (logits, logits)]
    pairs += [(constant, logits), (logits, constant), (0 * logits, extreme), (constant, constant)]
    for student, teacher in pairs:
        loss, gradient = with_gradient(name, student.to(dtype), teacher.to(dtype), target)
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert gradient.isfinite().all()


@EVERY
def test_a_batch_of_one_image(name):
    student, teacher, target = inputs(number=1)
    loss, gradient = with_gradient(name, student, teacher, target)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    if name == "luminet":
        assert loss == 0


@pytest.mark.parametrize("name", [name for name in LOSSES if not name.startswith("wkd")])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_zero_where_student_and_teacher_agree(name, scale):
    """But for WKD: its transport plan is spread, and its target term a cross-entropy."""
    logits, _, target = inputs()
    loss, gradient = with_gradient(name, scale * logits, scale * logits, target)
    if name == "dist" and scale > 1:
        return  # predictions of 0 and 1 are constant for some class
    tolerance = 1e-3 if name == "dist" else 1e-9  # the eps of the published code
    assert loss.item() == pytest.approx(0.0, abs=tolerance)
    assert gradient.abs().max() < tolerance


@pytest.mark.parametrize("name", ["skd", "wkd"])
def test_matrix_products_are_not_rounded_under_autocast(name):
    student, teacher, target = (z.float() if z.is_floating_point() else z for z in inputs())
    expected = LOSSES[name](student, teacher, target)
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOSSES[name](student, teacher, target)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)


# DIST, LumiNet and SKD.


def test_dist_ignores_the_scale_of_a_student():
    """A correlation does not see how far predictions are from their mean."""
    logits, teacher, _ = inputs()
    p = (logits / 4).softmax(1)
    flatter = (0.5 * p + 0.5 * p.mean(1, keepdim=True)).log() * 4
    losses = [dist_loss(z, teacher, 1.0, 0.0, 4.0).item() for z in (logits, flatter)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_skd_refuses_an_unknown_form():
    logits = torch.randn(3, 4)
    with pytest.raises(UserError, match=r"form is 'papr'.*did you mean 'paper'"):
        skd_loss(logits, logits, 4.0, 0.1, form="papr")


@pytest.mark.parametrize("method", ["DIST", "LUMINET", "SKD"])
def test_statistics_of_a_batch_are_declared(method):
    assert find_method(method).gathers_batch


# WKD.


def test_the_decay_of_a_weight():
    epochs = [1, 150, 195, 240, 241]
    expected = [1.0, 1.0, 0.5, 0.0, 0.0]
    assert [cosine_decay(e, 150, 240) for e in epochs] == pytest.approx(expected)
    assert [cosine_decay(torch.tensor(e), 150, 240).item() for e in epochs] == pytest.approx(
        expected, abs=1e-6
    )
    assert cosine_decay(3, 150, 10) == 1.0


def test_costs_equal_those_by_loops():
    torch.manual_seed(1)
    samples = torch.randn(3, 6, 4, dtype=torch.float64) + torch.randn(3, 1, 4).double()
    relations = class_relations(samples, torch.full((3,), 6))
    for i in range(3):
        for j in range(3):
            expected = wkd.cka(samples[i].tolist(), samples[j].tolist())
            assert relations[i, j].item() == pytest.approx(expected, abs=1e-9)

    cost = cost_matrix(relations, 2.0)
    assert cost[0, 1].item() == pytest.approx(1 - math.exp(-2 * (1 - relations[0, 1].item())))
    torch.testing.assert_close(cost_matrix(relations, 0.0), 1 - relations)
    assert cost.diagonal().abs().max() < 1e-12


def test_classes_with_few_samples_are_far_from_all():
    samples = torch.randn(4, 5, 3)
    relations = class_relations(samples, torch.tensor([5, 3, 1, 0]))
    assert relations.isfinite().all()
    assert 0 < relations[0, 1] <= 1
    assert torch.equal(relations[2:, :2], torch.zeros(2, 2))
    assert torch.equal(relations.diagonal(), torch.ones(4))
    samples[1, 3:] = 100.0  # what is beyond the number of samples is ignored
    torch.testing.assert_close(class_relations(samples, torch.tensor([5, 3, 1, 0])), relations)


def test_samples_are_kept_in_their_order_up_to_a_limit():
    samples = ClassSamples(num_classes=3, size=2)
    samples.add(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1, 0, 1]))
    samples.add(torch.tensor([[4.0], [5.0]]), torch.tensor([1, 0]))
    assert samples.number.tolist() == [2, 2, 0]
    assert samples.features.squeeze(2).tolist() == [[2.0, 5.0], [1.0, 3.0], [0.0, 0.0]]


@pytest.mark.parametrize("source", ["pooled", "logits"])
def test_wkd_collects_the_costs_of_its_teacher(source):
    seen = [batch(16, seed=seed) for seed in range(4)]
    distiller = find_method("WKD")(
        TinyNet(),
        TinyNet(12),
        config("WKD.COST_MATRIX", source, "WKD.COST_MATRIX_SAMPLES", 8),
        info(),
    )
    before = distiller.cost.clone()
    assert torch.equal(before, 1 - torch.eye(4))
    for each in seen:
        distiller.collect(distiller.run_teachers(each), each)
    distiller.end_collection()

    target = torch.cat([each.target for each in seen])
    outputs = [distiller.teacher(each.image) for each in seen]
    pooled = torch.cat([features["pooled_feat"] for _, features in outputs])
    logits = torch.cat([logits for logits, _ in outputs])
    found = pooled if source == "pooled" else logits
    own = [found[target == c][:8].tolist() for c in range(4)]
    expected = 1 - math.exp(-(1 - wkd.cka(own[0], own[2])))
    assert distiller.cost[0, 2].item() == pytest.approx(expected, rel=1e-4)

    # A resumed run has the costs, and no samples.
    assert "cost" in distiller.trained_state()
    assert distiller.samples is None


class Largest(TorchDispatchMode):
    """Records the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor):
                self.numel = max(self.numel, each.numel())
        return result


def test_the_costs_are_not_copied_for_each_image():
    student, teacher, target = inputs(number=30, classes=40)
    cost = costs(40)
    student.requires_grad_()
    with Largest() as largest:
        wkd_loss(student, teacher, target, cost, 4.0).backward()
    assert largest.numel == 40 * 40


# SDD.


def test_cells_equal_plain_loops():
    torch.manual_seed(0)
    classifier = torch.nn.Linear(3, 4).double()
    feature = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    for grid in (1, 2, 4, 8):
        found = cell_logits(feature, classifier, grid)
        weight, bias = classifier.weight.tolist(), classifier.bias.tolist()
        for image in range(2):
            expected = sdd.cells(feature[image].tolist(), weight, bias, grid)
            torch.testing.assert_close(found[image], torch.tensor(expected).double())


CIFAR = ["resnet8x4", "ResNet18", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"]


@pytest.mark.parametrize(
    ("family", "name", "size"),
    [*(("cifar", name, 32) for name in CIFAR), ("imagenet", "MobileNetV1", 64)],
)
def test_the_mean_of_the_last_map_is_what_is_pooled(family, name, size):
    torch.manual_seed(0)
    network = get_model(family, name, 10).eval()
    classifier = [m for m in network.modules() if isinstance(m, torch.nn.Linear)][-1]
    check_cells(network, classifier, (3, size, size), "SDD")
    with torch.no_grad():
        logits, features = network(torch.randn(2, 3, size, size))
    torch.testing.assert_close(last_map(features).mean((2, 3)), features["pooled_feat"])
    whole = cell_logits(last_map(features), classifier, 1)
    torch.testing.assert_close(whole[:, 0], logits, rtol=1e-4, atol=1e-5)


class MaxPooled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 3)
        self.fc = torch.nn.Linear(5, 4)

    def forward(self, x):
        return self.fc(self.conv(x).amax((2, 3)))


def test_a_classifier_of_something_else_is_refused():
    with pytest.raises(UserError, match=r"SDD applies the classifier of MaxPooled .* use another"):
        find_method("SDD")(as_network(MaxPooled()), StagedNet(), config(), info())
    with pytest.raises(UserError, match=r"SDD\.M is empty; give it numbers of cells"):
        make_distiller("SDD", "SDD.M", "[]")


@pytest.mark.parametrize("base", ["kd", "dkd"])
def test_one_cell_is_the_base_loss(base):
    distiller = make_distiller("SDD", "SDD.M", "[1]", "SDD.WARMUP", 0, "SDD.BASE", base).eval()
    about = batch()
    with torch.no_grad():
        student, teacher = distiller.run_student(about), distiller.run_teachers(about)
        (loss,) = distiller.losses(student, teacher, about).values()
    both = kd_base, dkd_base
    expected = both[base == "dkd"](student.logits, teacher.logits, about.target).mean()
    torch.testing.assert_close(loss, 0.9 * expected)


@pytest.mark.parametrize(("base", "key"), [("dkd", "ALPHA"), ("dkd", "BETA"), ("nkd", "GAMMA")])
def test_the_weights_of_a_base_are_live(base, key):
    losses = []
    for weight in (1.0, 3.0):
        distiller = make_distiller("SDD", "SDD.BASE", base, f"SDD.{key}", weight).train()
        losses.append(distiller.training_step(batch())[1]["loss_kd"].item())
    assert losses[0] < losses[1]


def test_the_weight_of_complementary_cells_is_live():
    losses = []
    for weight in (1.0, 2.0):
        distiller = make_distiller("SDD", "SDD.COMPLEMENTARY", weight).train()
        with torch.no_grad():  # a teacher whose predictions differ between images and cells
            pooled = distiller.teacher(batch().image)[1]["pooled_feat"].mean(0)
            head = distiller.teacher.fc
            head.bias.copy_(-head.weight @ pooled)
        losses.append(distiller.training_step(batch())[1]["loss_kd"].item())
    assert losses[0] < losses[1]


def test_cells_are_standardised_if_logits_are():
    """Then the scale of the teacher's logits does not matter."""
    losses = []
    for scale in (1.0, 7.0):
        distiller = make_distiller("SDD", "DISTILLER.LSKD", "True", "SDD.M", "[2]").train()
        with torch.no_grad():
            distiller.teacher.fc.weight *= scale
            distiller.teacher.fc.bias *= scale
        losses.append(distiller.training_step(batch())[1]["loss_kd"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# All methods.


@pytest.mark.parametrize("method", METHODS)
def test_the_epoch_may_be_a_tensor(method):
    results = []
    for epoch in (3, torch.tensor(3.0)):
        distiller = make_distiller(method, "SOLVER.EPOCHS", 4).train()
        _, losses = distiller.training_step(batch(epoch=epoch))
        results.append(losses["loss_kd"].item())
    assert results[0] == pytest.approx(results[1], rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_entropy_weights_need_a_loss_for_each_image(method):
    distiller = make_distiller(method, "DISTILLER.EAKD", "True").train()
    assert distiller.has_loss_per_image == (method != "DIST")
    if method != "DIST":
        student, teacher = distiller.run_student(batch()), distiller.run_teachers(batch())
        (loss,) = distiller.losses(student, teacher, batch()).values()
        assert loss.shape == (8,)
        assert distiller.training_step(batch())[1]["loss_kd"].shape == ()
