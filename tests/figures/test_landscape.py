"""The loss landscape: its directions, its centre, and that no network is changed."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edkd.engine.finished import open_run
from edkd.engine.outputs import chosen_batches, collect
from edkd.figures.drawing import Options
from edkd.figures.landscape import direction, landscape, loss_of, move
from edkd.figures.subjects import Subject
from tests.small import StagedNet


def silent(line):
    pass


@pytest.fixture
def subject(digits_runs):
    run = open_run(digits_runs["alone"], device="cpu")
    return Subject("alone", run.student, run.data, run.device)


def test_each_filter_has_the_norm_of_the_weights():
    torch.manual_seed(0)
    network = StagedNet()
    found = direction(network, seed=3)
    weights = dict(network.named_parameters())
    assert set(found) == {name for name, weight in weights.items() if weight.dim() > 1}
    for name, change in found.items():
        norms = [each.flatten(1).norm(dim=1) for each in (change, weights[name])]
        torch.testing.assert_close(norms[0], norms[1].detach())
        assert not torch.allclose(change, weights[name])


def test_equal_seeds_give_equal_noise():
    network = StagedNet()
    one, same, other = (direction(network, seed) for seed in (1, 1, 2))
    assert torch.equal(one["fc.weight"], same["fc.weight"])
    assert not torch.equal(one["fc.weight"], other["fc.weight"])


def test_a_move_adds_multiples_of_the_directions():
    network = StagedNet()
    centre = {name: value.clone().detach() for name, value in network.named_parameters()}
    changes = [direction(network, seed) for seed in (1, 2)]
    for places in ((2.0, 0.0), (0.5, -1.0)):
        move(network, centre, changes, places)
        expected = centre["fc.weight"] + sum(
            place * change["fc.weight"] for place, change in zip(places, changes, strict=True)
        )
        torch.testing.assert_close(network.fc.weight, expected)
        assert torch.equal(network.fc.bias, centre["fc.bias"])


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_centre_is_the_loss_of_the_trained_weights(subject, dimensions):
    options = Options(images=48, dimensions=dimensions)
    before = {name: value.clone() for name, value in subject.network.state_dict().items()}
    found = landscape(subject, np.linspace(-1, 1, 3), options, silent)

    outputs = collect(subject.network, subject.data, limit=48)
    expected = F.cross_entropy(outputs.logits, outputs.target).item()
    assert found.centre == pytest.approx(expected, rel=1e-5)
    assert found.loss.shape == (3,) * dimensions
    after = subject.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())

    # Elsewhere, the loss is that of the moved weights: rows are the second direction.
    network = copy.deepcopy(subject.network)
    centre = {name: value.clone().detach() for name, value in network.named_parameters()}
    changes = [direction(network, seed) for seed in range(dimensions)]
    places = (1.0, -1.0)[:dimensions]
    move(network, centre, changes, places)
    batches = list(chosen_batches(subject.data.test, 48))
    index = (2,) if dimensions == 1 else (0, 2)
    assert found.loss[index] == pytest.approx(loss_of(network, batches), rel=1e-4)


def test_of_the_command(draw, table, picture, digits_runs):
    runs = [digits_runs["kd1"], digits_runs["alone"]]
    words = ["--images", "16", "--points", "5", "--radius", "0.5", "--data"]
    done = draw("landscape", *runs, *words, "--dimensions", "1", "--split", "train")
    rows = table("landscape")
    assert [float(row["a"]) for row in rows[:5]] == [-0.5, -0.25, 0, 0.25, 0.5]
    assert len(rows) == 10
    assert "training images" in done.out
    assert "landscape of kd: 5 points, about " in done.out
    assert f"alone: loss at the centre {float(rows[7]['loss']):.4f}" in done.out
    assert picture("landscape")[1] > 20
