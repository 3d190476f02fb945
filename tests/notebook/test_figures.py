"""The figures and the verdict of the notebooks."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from edkd.notebook import MLP, figures


def test_the_calibration_error_by_the_formula():
    """Two bins: 0.9 sure and always right; 0.6 sure and never right."""
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    found = figures.calibration(p.log(), torch.tensor([0, 0, 1, 0]))
    assert found.confidence == pytest.approx([0.6, 0.9])
    assert found.accuracy == [0.0, 1.0]
    assert found.ece == pytest.approx(0.5 * 0.6 + 0.5 * 0.1)


@pytest.mark.parametrize(
    ("distilled", "word"),
    [([92.0, 93.1, 94.0], "BETTER"), ([80.0, 81.1, 82.0], "WORSE"), ([90, 95, 91], "INCONCLUSIVE")],
)
def test_the_verdict_follows_the_paired_interval(distilled, word):
    text = figures.verdict([90.0, 91.0, 92.0], distilled)
    assert text.startswith(word)
    assert "91.00 ± 1.00 %" in text
    assert "3 seeds" in text


def test_each_figure_can_be_drawn(tmp_path):
    images, target = torch.rand(12, 1, 8, 8), torch.arange(12) % 3
    model = torch.nn.Sequential(torch.nn.Flatten(), MLP(64, 3, 8))
    logits, targets = figures.predictions_of(model, DataLoader(TensorDataset(images, target), 5))
    assert torch.equal(targets, target)
    assert model.training

    p = logits.softmax(1)
    drawn = [
        figures.soft_label_figure(images[:4], target[:4], {"T = 1": p[:4]}, "abc"),
        figures.sweep_figure("T", {1.0: [80.0, 81.0], 4.0: [82.0, 83.0]}, [79.0, 81.0]),
        figures.reliability_figure({"student alone": (logits, target)}),
        figures.comparison_figure({"student alone": [80.0, 81.0], "teacher": [95.0]}),
    ]
    for number, figure in enumerate(drawn):
        path = tmp_path / f"{number}.png"
        figure.savefig(path)
        assert 1000 < path.stat().st_size < 100_000
