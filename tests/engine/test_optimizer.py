"""The optimizers step as torch's own do."""

import pytest
import torch
from torch import nn, optim

from edkd.engine.optimizer import (
    has_fused_update,
    is_fused,
    make_optimizer,
    set_learning_rate,
)
from edkd.engine.update import Update
from tests.small import CPU, config

SGD = dict(lr=0.1, momentum=0.9, weight_decay=1e-4)


@pytest.mark.parametrize(
    ("opts", "reference"),
    [
        ([], lambda p: optim.SGD(p, **SGD)),
        (["SOLVER.NESTEROV", "True"], lambda p: optim.SGD(p, **SGD, nesterov=True)),
        (["SOLVER.MOMENTUM", "0.5"], lambda p: optim.SGD(p, **SGD | {"momentum": 0.5})),
        (["SOLVER.TYPE", "Adam"], lambda p: optim.Adam(p, lr=0.1, weight_decay=1e-4)),
        (
            ["SOLVER.TYPE", "AdamW", "SOLVER.BETAS", "[0.8,0.9]"],
            lambda p: optim.AdamW(p, lr=0.1, betas=(0.8, 0.9), weight_decay=1e-4),
        ),
    ],
)
def test_steps_equal_torchs_own(opts, reference):
    cfg = config("SOLVER.LR", "0.1", *opts)
    ours = nn.Linear(4, 3)
    theirs = nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizers = [make_optimizer([{"params": list(ours.parameters())}], cfg)]
    optimizers.append(reference(theirs.parameters()))

    for _ in range(3):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_momentum_that_begins_with_zeros_is_torchs_momentum():
    plain = nn.Linear(3, 2)
    ours = nn.Linear(3, 2)
    ours.load_state_dict(plain.state_dict())
    cfg = config("SOLVER.NESTEROV", "True", "SOLVER.WEIGHT_DECAY", "0.01")
    options = dict(momentum=cfg.SOLVER.MOMENTUM, nesterov=True, weight_decay=0.01, fused=True)
    optimizers = [
        optim.SGD(plain.parameters(), cfg.SOLVER.LR, **options),
        make_optimizer([{"params": list(ours.parameters())}], cfg),
    ]
    for _ in range(3):
        image = torch.randn(4, 3)
        for network, optimizer in zip((plain, ours), optimizers, strict=True):
            optimizer.zero_grad()
            network(image).square().sum().backward()
            optimizer.step()
    pairs = zip(plain.parameters(), ours.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_groups_keep_their_factor_of_the_rate():
    first, second, third = (nn.Linear(2, 2) for _ in range(3))
    groups = [
        {"params": list(first.parameters()), "lr_factor": 1.0},
        {"params": list(second.parameters()), "lr_factor": 10.0},
        {"params": list(third.parameters()), "lr": 0.025},  # as published code states it
    ]
    optimizer = make_optimizer(groups, config("SOLVER.LR", "0.1"))
    set_learning_rate(optimizer, 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.1, 0.0025])


class WithoutFused(optim.Optimizer):
    """An optimizer whose constructor and defaults have no `fused`."""

    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr))

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data -= group["lr"] * parameter.grad


def test_an_optimizer_without_a_fused_option_trains_and_skips():
    """It was a KeyError of the optimizer's defaults."""

    class Plain(Update):
        def make_optimizer(self, groups):
            return WithoutFused([group["params"][0] for group in groups], lr=0.5)

    assert not has_fused_update(WithoutFused, CPU)
    weight = nn.Parameter(torch.ones(1))
    update = Plain([{"params": [weight]}], config(), CPU, None)
    assert not is_fused(update.optimizer)

    for factor, expected in [(1.0, 0.5), (float("nan"), 0.5), (1.0, 0.5)]:
        loss = (weight * factor).sum()
        losses = {"loss_ce": loss, "loss": loss}
        update.backward(losses)
        update.step(losses)
        assert weight.item() == expected
    assert update.watch.read()[0] == 1
    update.load_state_dict(update.state_dict())
