"""Figures: accuracies and losses of a set, running means, devices and precisions."""

import math

import pytest
import torch
import torch.nn.functional as F

from edkd.engine.device import amp_dtype, pick_device
from edkd.engine.evaluate import evaluate
from edkd.engine.meter import Meter
from edkd.errors import UserError
from edkd.types import Batch
from tests.small import CPU


class Batches:
    """A loader of given logits: the image is the answer."""

    def __init__(self, logits, target, size):
        self.logits = logits
        self.target = target
        self.size = size
        self.num_images = len(target)

    def epoch(self, epoch=0):
        pairs = zip(self.logits.split(self.size), self.target.split(self.size), strict=True)
        for logits, target in pairs:
            yield Batch(logits, target)


def same(image):
    return image


def test_figures_by_hand():
    torch.manual_seed(0)
    logits = torch.randn(23, 10)
    target = torch.randint(10, (23,))
    result = evaluate(same, Batches(logits, target, 5))
    rank = (logits > logits.gather(1, target[:, None])).sum(1)
    assert result["top1"] == pytest.approx(100 * (rank < 1).double().mean().item())
    assert result["top5"] == pytest.approx(100 * (rank < 5).double().mean().item())
    assert result["loss"] == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-5)


def test_the_ensemble_is_the_mean_of_the_probabilities():
    logits = torch.randn(3, 50, 10)
    target = torch.randint(10, (50,))
    figures = evaluate(lambda image: logits, Batches(logits[0], target, 50))
    mean = logits.softmax(2).mean(0)
    top1 = (mean.argmax(1) == target).float().mean().item()
    assert figures["ensemble_loss"] == pytest.approx(
        F.nll_loss(mean.log(), target).item(), rel=1e-5
    )
    assert figures["ensemble_top1"] == pytest.approx(100 * top1)
    own = F.cross_entropy(logits[1], target).item()
    assert figures["student2_loss"] == pytest.approx(own, rel=1e-5)
    of_each = [figures[f"student{number}_loss"] for number in (1, 2, 3)]
    assert figures["loss"] == pytest.approx(sum(of_each) / 3)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_collapsed_network_is_not_reported_as_perfect(value):
    logits = torch.full((100, 10), value)
    result = evaluate(same, Batches(logits, torch.arange(100) % 10, 10))
    assert result["top1"] <= 20


def test_top5_of_two_classes_is_100():
    result = evaluate(same, Batches(torch.randn(8, 2), torch.randint(2, (8,)), 3))
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
