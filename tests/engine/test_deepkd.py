"""DeepKD: three momentum buffers by their equations, and the methods that it trains."""

import copy

import pytest
import torch
from torch import nn

from edkd.engine.updates import find_update
from edkd.engine.updates.deepkd import DeepKD
from edkd.errors import UserError
from tests.small import CPU, config, make_trainer

MOMENTA = (0.975, 0.825, 0.95)
OPTS = ["SOLVER.TRAINER", "deepkd", "SOLVER.LR", "0.01", "SOLVER.DEEPKD.DELTA_NCG", "0.05"]


class ThreeLosses(nn.Module):
    """Parameters that all kinds of terms reach, or one of them."""

    def __init__(self):
        super().__init__()
        self.all = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.task = nn.Parameter(torch.tensor([0.5]))
        self.unused = nn.Parameter(torch.tensor([3.0]))

    def losses(self):
        terms = {
            "loss_ce": self.all.square().sum(),
            "loss_kd_batch": 3 * self.task.sum(),
            "loss_kd_target": self.all.sum() ** 2,
            "loss_kd_other": (self.all**4).sum(),
        }
        return terms | {"loss": sum(terms.values())}


def take_steps(update, model, number):
    for _ in range(number):
        losses = model.losses()
        update.backward(losses)
        update.step(losses)


def make(model, *opts):
    return DeepKD([{"params": list(model.parameters())}], config(*OPTS, *opts), CPU, None)


def test_the_equations():
    """Written out for the parameter that all terms reach; the other one has plain momentum."""
    model = ThreeLosses().double()
    update = make(model, "SOLVER.WEIGHT_DECAY", "0.1")
    update.set_learning_rate(0.01)
    take_steps(update, model, 4)

    x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    y = torch.tensor([0.5], dtype=torch.float64)
    buffers = [torch.zeros_like(x) for _ in MOMENTA]
    alone = torch.zeros_like(y)
    for _ in range(4):
        gradients = [2 * x + 0.1 * x, (2 * x.sum()).expand(2), 4 * x**3]
        for buffer, momentum, gradient in zip(buffers, MOMENTA, gradients, strict=True):
            buffer.mul_(momentum).add_(gradient)
        alone.mul_(0.9).add_(3 + 0.1 * y)
        x = x - 0.01 * sum(buffers)
        y = y - 0.01 * alone
    torch.testing.assert_close(model.all, x, check_dtype=False)
    torch.testing.assert_close(model.task, y)
    assert model.unused.item() == 3.0


def test_it_continues_from_its_state():
    whole = ThreeLosses()
    take_steps(make(whole), whole, 6)

    first = ThreeLosses()
    update = make(first)
    take_steps(update, first, 3)
    second = ThreeLosses()
    second.load_state_dict(first.state_dict())
    resumed = make(second)
    resumed.load_state_dict(copy.deepcopy(update.state_dict()))
    take_steps(resumed, second, 3)
    pairs = zip(whole.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("method", ["KD", "DKD", "EDKD", "MLKD", "CRLD"])
def test_it_trains_every_method_that_splits(tmp_path, method):
    trainer = make_trainer(method, tmp_path, *OPTS, "SOLVER.DEEPKD.TOPK", "2", cached=False)
    trainer.data.train.use_views(trainer.distiller.views)
    before = copy.deepcopy(trainer.distiller.student.state_dict())
    for inputs in trainer.data.train.inputs(1):
        losses, *_ = trainer.train_step(1, *inputs)
    assert {"loss_kd_target", "loss_kd_other"} <= set(losses)
    assert trainer.update.watch.read() is None
    after = trainer.distiller.student.state_dict()
    assert any(not torch.equal(value, before[key]) for key, value in after.items())


def test_equal_momenta_are_sgd(tmp_path):
    """The parts add up to the loss of KD, so that the weights are those of the base rule."""
    opts = ["SOLVER.LR", "0.01"]
    equal = [word for key in ("TOG", "TCG", "NCG") for word in (f"SOLVER.DEEPKD.DELTA_{key}", "0")]
    weights = []
    for rule, more in (("deepkd", equal), ("base", [])):
        trainer = make_trainer("KD", tmp_path / rule, "SOLVER.TRAINER", rule, *opts, *more)
        for inputs in trainer.data.train.inputs(1):
            trainer.train_step(1, *inputs)
        weights.append(list(trainer.distiller.student.parameters()))
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "opts", "message"),
    [
        ("DML", [], "deepkd needs a method whose loss has a part for the target class"),
        ("KD+DKD", [], "deepkd needs a method whose loss"),
        ("KD", ["SOLVER.MIXUP", "0.2"], "deepkd needs the class of each image, but SOLVER.MIXUP"),
        ("KD", ["SOLVER.TYPE", "AdamW"], "deepkd needs SOLVER.TYPE SGD, not AdamW"),
        ("KD", ["SOLVER.NESTEROV", "True"], "deepkd has no Nesterov momentum"),
        ("KD", ["SOLVER.DEEPKD.DELTA_TOG", "0.2"], r"momenta would be 1.1, 0.825 and 0.95"),
    ],
)
def test_what_it_cannot_do_is_named(tmp_path, method, opts, message):
    with pytest.raises(UserError, match=message):
        make_trainer(method, tmp_path, *OPTS, *opts)


@pytest.mark.parametrize(
    ("name", "rule"), [("deepkd_aug", "deepkd"), ("ours", "base"), ("crld", "base")]
)
def test_published_names(name, rule):
    assert find_update(name) is find_update(rule)
