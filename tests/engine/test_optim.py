"""The learning rate, the optimizers, the figures."""

import math

import pytest
import torch
from torch import nn

from edkd.engine.device import amp_dtype, pick_device
from edkd.engine.evaluate import evaluate
from edkd.engine.load_cfg import load_cfg
from edkd.engine.meter import Meter
from edkd.engine.optim import learning_rate, make_optimizer
from edkd.errors import UserError

CPU = torch.device("cpu")


def rates(*opts, at):
    """The rates after so many epochs, of 100 steps each."""
    cfg = load_cfg(opts=["SOLVER.EPOCHS", "12", "SOLVER.LR", "1", *opts])
    return [round(learning_rate(cfg, round(100 * epochs), 100), 6) for epochs in at]


def test_step_schedule_falls_after_its_stages():
    """As published: with stages 7, 9 the rate of epoch 7 is whole, that of epoch 8 a tenth."""
    stages = ["SOLVER.LR_DECAY_STAGES", "[7,9]"]
    assert rates(*stages, at=[0, 6, 6.99, 7, 8.5, 9, 11.9]) == [1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert rates(*stages, "SOLVER.LR_DECAY_RATE", "0.5", at=[8]) == [0.5]


def test_cosine_schedule_and_warmup():
    assert rates("SOLVER.SCHEDULE", "cosine", at=[0, 6, 12]) == [1, 0.5, 0]
    warm = ["SOLVER.SCHEDULE", "cosine", "SOLVER.WARMUP_EPOCHS", "2"]
    assert rates(*warm, at=[0, 0.5, 1.99, 2, 7, 12]) == [0.005, 0.255, 1, 1, 0.5, 0]
    assert rates("SOLVER.WARMUP_EPOCHS", "2", "SOLVER.LR_DECAY_STAGES", "[1]", at=[0.49, 1.49, 5]) == [0.25, 0.075, 0.1]


@pytest.mark.parametrize(
    ("opts", "reference"),
    [
        ([], lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4)),
        (["SOLVER.NESTEROV", "True"], lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=1e-4, nesterov=True)),
        (["SOLVER.MOMENTUM", "0.5"], lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, weight_decay=1e-4)),
        (["SOLVER.TYPE", "Adam"], lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=1e-4)),
        (
            ["SOLVER.TYPE", "AdamW", "SOLVER.BETAS", "[0.8,0.9]"],
            lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.9), weight_decay=1e-4),
        ),
    ],
)
def test_optimizers_step_as_torchs_own(opts, reference):
    cfg = load_cfg(opts=["SOLVER.LR", "0.1", *opts])
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizers = [make_optimizer(ours.parameters(), cfg), reference(theirs.parameters())]
    for _ in range(3):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


class Batches:
    """A loader of given logits: the image is the answer."""

    def __init__(self, logits, target, size):
        self.logits, self.target, self.size, self.num_images = logits, target, size, len(target)

    def epoch(self, epoch=0):
        from edkd.dataset import Batch

        for logits, target in zip(self.logits.split(self.size), self.target.split(self.size), strict=True):
            yield Batch(logits, target, target)


def test_evaluate_by_hand():
    torch.manual_seed(0)
    logits, target = torch.randn(23, 10), torch.randint(10, (23,))
    result = evaluate(lambda image: image, Batches(logits, target, 5))
    rank = (logits > logits.gather(1, target[:, None])).sum(1)
    assert result["top1"] == pytest.approx(100 * (rank < 1).double().mean().item())
    assert result["top5"] == pytest.approx(100 * (rank < 5).double().mean().item())
    assert result["loss"] == pytest.approx(nn.functional.cross_entropy(logits, target).item(), rel=1e-5)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_collapsed_network_is_not_taken_for_a_perfect_one(value):
    logits, target = torch.full((100, 10), value), torch.arange(100) % 10
    result = evaluate(lambda image: image, Batches(logits, target, 10))
    assert result["top1"] <= 20


def test_top5_of_two_classes_is_100():
    result = evaluate(lambda image: image, Batches(torch.randn(8, 2), torch.randint(2, (8,)), 3))
    assert result["top5"] == 100


def test_the_meter_weighs_batches_by_their_size():
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0)}, torch.eye(3), torch.tensor([0, 1, 2]))
    meter.add({"loss": torch.tensor(5.0)}, torch.eye(3)[:1], torch.tensor([2]))
    assert meter.read() == {"loss": pytest.approx(2.0), "top1": pytest.approx(75.0)}


def test_devices_and_precisions(monkeypatch):
    assert pick_device("cpu") == CPU
    with pytest.raises(UserError, match="--device cdua"):
        pick_device("cdua")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device cuda:0: no such device here"):
            pick_device("cuda:0")
    assert amp_dtype("off", CPU) is None
    assert amp_dtype("bf16", CPU) == torch.bfloat16
    for native, expected in [(True, torch.bfloat16), (False, None)]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert amp_dtype("auto", CPU) == expected
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        amp_dtype("fp16", CPU)
