"""Update rules: DOT by its equations, and the seam for rules of one's own."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from edkd.engine.given_optimizers import GivenOptimizers
from edkd.engine.update import Update
from edkd.engine.updates import find_update
from edkd.engine.updates.dot import DOT
from edkd.errors import UserError
from edkd.registry import UPDATES
from tests.small import CPU, config, make_trainer


class TwoLosses(nn.Module):
    """Parameters that the task, the distillation, or both reach."""

    def __init__(self):
        super().__init__()
        self.both = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.task = nn.Parameter(torch.tensor([0.5]))
        self.distilled = nn.Parameter(torch.tensor([2.0]))
        self.unused = nn.Parameter(torch.tensor([3.0]))

    def losses(self):
        task = (self.both**2).sum() + 3 * self.task.sum()
        kd = (2 * self.both).sum() ** 2 + (self.distilled**2).sum()
        return {"loss_ce": task, "loss_kd_a": kd / 2, "loss_kd_b": kd / 2, "loss": task + kd}


def take_steps(update, model, number):
    for _ in range(number):
        losses = model.losses()
        update.backward(losses)
        update.step(losses)


def test_dot_by_its_equations():
    """Two buffers in float64, written out; parameters of one loss alone have the plain momentum."""
    cfg = config("SOLVER.TRAINER", "dot", "SOLVER.LR", "0.01", "SOLVER.WEIGHT_DECAY", "0.1")
    model = TwoLosses().double()
    twin = copy.deepcopy(model)
    update = DOT([{"params": list(model.parameters())}], cfg, CPU, None)
    update.set_learning_rate(0.01)
    take_steps(update, model, 4)

    buffers = {
        name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in twin.named_parameters()
    }
    momenta = {"both": (0.825, 0.975), "task": (0.9, None), "distilled": (None, 0.9)}
    for _ in range(4):
        losses = twin.losses()
        kd = losses["loss_kd_a"] + losses["loss_kd_b"]
        params = list(twin.parameters())
        of_task = torch.autograd.grad(
            losses["loss_ce"], params, retain_graph=True, allow_unused=True
        )
        of_kd = torch.autograd.grad(kd, params, allow_unused=True)
        with torch.no_grad():
            for (name, p), task, distilled in zip(
                twin.named_parameters(), of_task, of_kd, strict=True
            ):
                if name == "unused":
                    continue
                task_buffer, kd_buffer = buffers[name]
                decay = 0.1 * p
                if task is not None:
                    task_buffer.mul_(momenta[name][0]).add_(task + decay)
                if distilled is not None:
                    own = distilled if task is not None else distilled + decay
                    kd_buffer.mul_(momenta[name][1]).add_(own)
                p -= 0.01 * (task_buffer + kd_buffer)

    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[name], parameter, msg=name)
    assert model.unused.item() == 3.0


def test_dot_without_a_difference_is_sgd():
    opts = ["SOLVER.DOT.DELTA", "0", "SOLVER.LR", "0.01", "SOLVER.CLIP_GRAD_NORM", "2.0"]
    models = [TwoLosses().double(), TwoLosses().double()]
    for model, name in zip(models, ("dot", "base"), strict=True):
        cfg = config("SOLVER.TRAINER", name, *opts)
        update = find_update(name)([{"params": list(model.parameters())}], cfg, CPU, None)
        take_steps(update, model, 5)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_dot_continues_from_its_state():
    cfg = config("SOLVER.TRAINER", "dot", "SOLVER.LR", "0.01")
    whole = TwoLosses()
    take_steps(DOT([{"params": list(whole.parameters())}], cfg, CPU, None), whole, 6)

    first = TwoLosses()
    update = DOT([{"params": list(first.parameters())}], cfg, CPU, None)
    take_steps(update, first, 3)
    second = TwoLosses()
    second.load_state_dict(first.state_dict())
    resumed = DOT([{"params": list(second.parameters())}], cfg, CPU, None)
    resumed.load_state_dict(copy.deepcopy(update.state_dict()))
    take_steps(resumed, second, 3)
    pairs = zip(whole.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_dot_makes_no_update_after_a_nan():
    cfg = config("SOLVER.TRAINER", "dot", "SOLVER.LR", "0.01")
    model = TwoLosses()
    update = DOT([{"params": list(model.parameters())}], cfg, CPU, None)
    take_steps(update, model, 2)
    before = copy.deepcopy(model.state_dict())
    losses = {name: loss * torch.nan for name, loss in model.losses().items()}
    update.backward(losses)
    update.step(losses)
    take_steps(update, model, 1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert update.watch.read()[0] == 2


@pytest.mark.parametrize("method", ["KD", "DKD", "DML", "KD+DKD"])
def test_dot_trains_every_kind_of_method(tmp_path, method):
    trainer = make_trainer(method, tmp_path, "SOLVER.TRAINER", "dot")
    before = copy.deepcopy(trainer.distiller.student.state_dict())
    for inputs in trainer.data.train.inputs(1):
        trainer.train_step(1, *inputs)
    assert trainer.update.watch.read() is None
    after = trainer.distiller.student.state_dict()
    assert any(not torch.equal(value, before[key]) for key, value in after.items())


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.TYPE", "AdamW"], "dot needs SOLVER.TYPE SGD, not AdamW"),
        (["SOLVER.NESTEROV", "True"], "dot has no Nesterov momentum"),
        (["SOLVER.DOT.DELTA", "0.95"], "the momenta would be -0.05 and 1.85"),
        (["SOLVER.MOMENTUM", "0.95"], "the momenta would be 0.875 and 1.025"),
    ],
)
def test_what_dot_cannot_do_is_named(tmp_path, opts, message):
    with pytest.raises(UserError, match=message):
        make_trainer("KD", tmp_path, "SOLVER.TRAINER", "dot", *opts)


def test_dot_needs_both_kinds_of_terms(tmp_path):
    trainer = make_trainer("NONE", tmp_path, "SOLVER.TRAINER", "dot")
    with pytest.raises(UserError, match=r"dot needs a method with terms loss_ce\* and loss_kd\*"):
        trainer.train_step(1, *next(trainer.data.train.inputs(1)))


def test_published_names_of_trainers_are_known():
    assert find_update("crd") is Update
    assert find_update("CRD_DOT") is DOT
    with pytest.raises(UserError, match="unknown update rule 'dott', did you mean 'dot'"):
        find_update("dott")


class SharpnessAware(Update):
    """A rule that needs a second gradient, at other weights: SAM in its simplest form."""

    def step(self, losses, recompute=None, ends_step=True):
        gradients = [parameter.grad.clone() for parameter in self.parameters]
        norm = nn.utils.get_total_norm(gradients)
        shifts = [0.05 * gradient / norm for gradient in gradients]
        with torch.no_grad():
            torch._foreach_add_(self.parameters, shifts)
        self.optimizer.zero_grad()
        again = recompute()
        self.backward(again)
        with torch.no_grad():
            torch._foreach_sub_(self.parameters, shifts)
        super().step(again, recompute, ends_step)


class Accumulated(Update):
    """A rule that updates after every second batch."""

    def __init__(self, *args):
        super().__init__(*args)
        self.batches = 0

    def step(self, losses, recompute=None, ends_step=True):
        self.batches += 1
        if self.batches % 2 == 0:
            super().step(losses, recompute, ends_step)


@pytest.mark.parametrize("rule", [SharpnessAware, Accumulated])
def test_rules_of_ones_own_fit_the_seam(tmp_path, rule):
    name = f"test_{rule.__name__.lower()}"
    UPDATES.add(name, rule)
    try:
        trainer = make_trainer("KD", tmp_path, "SOLVER.TRAINER", name)
        weights = [trainer.distiller.student.fc.weight.clone()]
        for inputs in trainer.data.train.inputs(1):
            trainer.train_step(1, *inputs)
            weights.append(trainer.distiller.student.fc.weight.clone())
    finally:
        UPDATES.remove(name)
    changed = [not torch.equal(a, b) for a, b in pairwise(weights)]
    assert changed == ([True, True, True] if rule is SharpnessAware else [False, True, False])


def test_given_optimizers_keep_their_rates_and_kinds():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizers = [
        torch.optim.AdamW(first.parameters(), 0.01),
        torch.optim.SGD(second.parameters(), 0.5),
    ]
    groups = [{"params": [*first.parameters(), *second.parameters()]}]
    cfg = config("SOLVER.LR", "0.1")
    named = dict(enumerate(groups[0]["params"]))
    update = GivenOptimizers(optimizers, named, groups, cfg, CPU, None)
    update.set_learning_rate(0.01)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    assert rates == pytest.approx([0.001, 0.05])


def test_given_optimizers_must_hold_what_learns():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [{"params": list(first.parameters())}]
    cfg = config()

    def given(*parameters):
        optimizers = [torch.optim.SGD(each, 0.1) for each in parameters]
        return GivenOptimizers(optimizers, dict(first.named_parameters()), groups, cfg, CPU, None)

    with pytest.raises(UserError, match="parameters that are not the student's"):
        given([*first.parameters(), *second.parameters()])
    with pytest.raises(UserError, match="two optimizers hold the same parameter"):
        given(list(first.parameters()), [first.weight])


def test_given_optimizers_keep_their_rates_when_they_resume():
    layer = nn.Linear(2, 2)
    parameters = list(layer.parameters())
    groups = [{"params": parameters}]

    def given(rate):
        optimizer = torch.optim.SGD(parameters, rate)
        cfg = config("SOLVER.LR", "1")
        return GivenOptimizers([optimizer], dict(layer.named_parameters()), groups, cfg, CPU, None)

    first = given(0.1)
    first.set_learning_rate(0.01)
    second = given(0.2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.set_learning_rate(1.0)
    assert second.optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


def test_parameters_of_the_method_get_an_optimizer_beside_given_ones():
    student, project = nn.Linear(2, 2), nn.Linear(2, 2)
    student.bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([student.weight], 0.01)
    groups = [{"params": [*student.parameters(), *project.parameters()]}]
    of_student = dict(student.named_parameters())
    update = GivenOptimizers([optimizer], of_student, groups, config(), CPU, None)
    assert [type(each).__name__ for each in update.optimizers] == ["AdamW", "SGD"]
    held = update.optimizers[1].param_groups[0]["params"]
    assert {id(p) for p in held} == {id(p) for p in project.parameters()}


def test_dot_uses_the_decay_of_a_group_and_skips_frozen_parameters():
    model = TwoLosses()
    model.unused.requires_grad_(False)
    groups = [
        {"params": [model.both, model.unused], "lr_factor": 1.0},
        {"params": [model.task, model.distilled], "weight_decay": 0.0},
    ]
    update = DOT(groups, config("SOLVER.TRAINER", "dot", "SOLVER.WEIGHT_DECAY", "0.1"), CPU, None)
    assert update.decays == [0.1, 0.1, 0.0, 0.0]
    assert [group["momentum"] for group in update.optimizer.param_groups] == [0, 0]
    take_steps(update, model, 2)
    assert update.watch.read() is None


def test_a_rule_may_recompute_alternating_updates(tmp_path):
    UPDATES.add("test_sam", SharpnessAware)
    try:
        opts = ["SOLVER.TRAINER", "test_sam", "DML.UPDATE", "alternating"]
        trainer = make_trainer("DML", tmp_path, *opts)
        batch = trainer.data.train.batch(*next(trainer.data.train.inputs(1)))
        for turn in range(2):
            losses, _ = trainer.train_step.forward(batch, turn)
            assert trainer.train_step.recompute(batch, turn).keys() == losses.keys()
    finally:
        UPDATES.remove("test_sam")
