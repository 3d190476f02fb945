"""Students that learn from one another: the losses, who learns from whom, what a batch costs."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edkd.distillers import construct, dml_loss, find_method, method_names
from edkd.distillers.dml import mutual_loss
from edkd.distillers.kdcl import collaborative_logits
from tests.small import TinyNet, batch, config, info, make_distiller

COHORTS = [name for name in method_names() if find_method(name).is_cohort]


def make(name, *opts):
    return make_distiller(name, f"{name}.NUM_STUDENTS", 3, *opts).train()


def random_logits(students=3, scale=1.0):
    generator = torch.Generator().manual_seed(2)
    logits = scale * torch.randn(students, 6, 5, generator=generator).double()
    return logits, torch.randint(5, (6,), generator=generator)


def test_the_loss_by_the_formula():
    """The sum over students of CE_i + 1 / (S - 1) sum_j KL(p_j || p_i), with probabilities."""
    logits, target = random_logits()
    p = logits.softmax(2)
    expected = F.cross_entropy(logits.flatten(0, 1), target.repeat(3)) * 3
    for i in range(3):
        for j in {0, 1, 2} - {i}:
            expected += (p[j] * (p[j] / p[i]).log()).sum(1).mean() / 2
    torch.testing.assert_close(dml_loss(logits, target), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits(dtype):
    logits, _ = random_logits(scale=1.0)
    logits = (1e4 * logits.sign()).to(dtype).requires_grad_()
    loss = mutual_loss(logits[0], [logits[1], logits[2]], 4.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert loss > 1
    assert gradient.isfinite().all()
    assert not gradient[1:].any()


def test_students_that_agree_have_nothing_to_learn():
    logits = random_logits(1)[0].expand(2, -1, -1).clone().requires_grad_()
    loss = mutual_loss(logits[0], [logits[1]])
    assert loss.item() == 0
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-12
    assert torch.autograd.gradcheck(
        lambda z: mutual_loss(z, [random_logits()[0][1]], 3.0),
        random_logits()[0][0].requires_grad_(),
    )


@pytest.mark.parametrize("name", COHORTS)
def test_all_students_learn_and_no_other_ones_loss_reaches_them(name):
    distiller = make(name)
    logits, losses = distiller.training_step(batch())
    assert logits.shape == (3, 8, 4)
    assert not logits.requires_grad
    own = [loss for key, loss in losses.items() if key.endswith("_student2")]
    assert len(own) == 2
    sum(own).backward(retain_graph=True)
    assert all(p.grad is not None for p in distiller.student[1].parameters())
    others = [p for i in (0, 2) for p in distiller.student[i].parameters()]
    assert not any(p.grad is not None and p.grad.any() for p in others)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in distiller.get_learnable_parameters())
    assert set(distiller.get_learnable_parameters()) == set(distiller.parameters())
    assert distiller.get_extra_parameters() == sum(p.numel() for p in distiller.parameters()) - sum(
        p.numel() for p in distiller.student.parameters()
    )


@pytest.mark.parametrize("name", COHORTS)
def test_each_student_runs_once(name):
    distiller, calls = make(name), Counter()
    for i, student in enumerate(distiller.student):
        student.register_forward_hook(lambda *args, i=i: calls.update([i]))
    distiller.training_step(batch())
    assert calls == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("name", COHORTS)
def test_evaluation_gives_the_logits_of_each(name):
    distiller, image = make(name).eval(), batch().image
    with torch.no_grad():
        expected = torch.stack([student(image)[0] for student in distiller.student])
        assert torch.equal(distiller(image=image), expected)
    assert list(distiller.students()) == ["student1", "student2", "student3"]


def test_alternating_is_algorithm_1():
    """By hand, with an optimizer for each: student i learns from peers after their own update."""
    distiller, by_hand, about = (
        make("DML", "DML.UPDATE", "alternating"),
        make("DML").student,
        batch(),
    )
    assert distiller.turns == 3
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.05, momentum=0.9)
    own = [torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9) for student in by_hand]
    image, target = about.image, about.target
    for _ in range(2):
        for turn in range(3):
            _, losses = distiller.training_step(about, turn)
            assert list(losses) == [f"loss_ce_student{turn + 1}", f"loss_kd_student{turn + 1}"]
            sum(losses.values()).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        said = [student(image)[0] for student in by_hand]
        for i, student in enumerate(by_hand):
            peers = [logits.detach() for j, logits in enumerate(said) if j != i]
            divergence = (
                sum(
                    F.kl_div(said[i].log_softmax(1), peer.softmax(1), reduction="batchmean")
                    for peer in peers
                )
                / 2
            )
            (F.cross_entropy(said[i], target) + divergence).backward()
            own[i].step()
            own[i].zero_grad()
            with torch.no_grad():
                said[i] = student(image)[0] if i < 2 else said[i]
    for ours, theirs in zip(distiller.student.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_collaborative_logits():
    logits, target = random_logits(3, 2.0)
    rows = torch.arange(6)

    def loss(z):
        return F.cross_entropy(z, target, reduction="none")

    own = torch.stack([loss(z) for z in logits])
    torch.testing.assert_close(loss(collaborative_logits(logits, target, "naive")), own.amin(0))
    minlogit = collaborative_logits(logits, target, "minlogit")
    assert not minlogit[rows, target].any()
    torch.testing.assert_close(
        minlogit, (logits - logits[:, rows, target][:, :, None]).min(0).values
    )
    assert (loss(minlogit) <= own.amin(0) + 1e-12).all()


@pytest.mark.parametrize("scale", [1.0, 2.0, 8.0])
def test_the_linear_ensemble_is_about_the_best_of_its_kind(scale):
    """Against all weights on a grid."""
    logits, target = random_logits(3, scale)

    def loss(z):
        return F.cross_entropy(z, target)

    reached = loss(collaborative_logits(logits, target, "linear"))
    grid = torch.cartesian_prod(*2 * [torch.linspace(0, 1, 41).double()])
    sums = [
        loss(a * logits[0] + b * logits[1] + (1 - a - b) * logits[2])
        for a, b in grid.tolist()
        if a + b <= 1
    ]
    assert reached <= 1.01 * min(sums)


def test_the_peers_of_okddip_have_targets_of_their_own():
    """With projections of zero the attention is even, and each target is the mean."""
    distiller, about = make("OKDDip"), batch()
    for linear in [*distiller.queries, *distiller.keys]:
        nn.init.zeros_(linear.weight)
    logits, losses = distiller.training_step(about)
    mean = (logits[:2].double() / 3).softmax(2).mean(0)
    for i, row in enumerate(logits.double(), 1):
        expected = 9 * F.kl_div((row / 3).log_softmax(1), mean, reduction="batchmean")
        assert losses[f"loss_kd_student{i}"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_gate_of_one_learns_from_the_labels_alone():
    distiller = make("ONE")
    _, losses = distiller.training_step(batch())
    sum(loss for key, loss in losses.items() if "kd" in key).backward(retain_graph=True)
    assert distiller.gate.weight.grad is None
    losses["loss_ce_ensemble"].backward()
    assert distiller.gate.weight.grad.any()


@pytest.mark.parametrize("method", ["ONE", "OKDDip"])
def test_a_classifier_may_be_a_convolution(method):
    """As in a network that averages its class maps; its pooled features are (N,D,1,1)."""

    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)
            self.head = nn.Conv2d(6, 4, 1)

        def forward(self, image):
            feat = self.conv(image).relu()
            pooled = F.adaptive_avg_pool2d(feat, 1)
            features = {"feats": [feat], "preact_feats": [], "pooled_feat": pooled}
            return self.head(pooled).flatten(1), features

    cfg = config("DISTILLER.TYPE", method)
    students = nn.ModuleList(Maps() for _ in range(3))
    distiller = construct(find_method(method), students, None, cfg, info()).train()
    logits, losses = distiller.training_step(batch())
    assert logits.shape == (3, 8, 4)
    sum(losses.values()).backward()


def test_networks_of_any_kind_can_be_mixed():
    cfg = config("DISTILLER.TYPE", "DML")
    students = nn.ModuleList([TinyNet(), TinyNet(channels=9)])
    distiller = construct(find_method("DML"), students, None, cfg, info()).train()
    _, losses = distiller.training_step(batch())
    assert len(losses) == 4
