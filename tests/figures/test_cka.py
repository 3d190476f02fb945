"""Linear CKA: its invariances, and a direct computation in float64."""

import numpy as np
import pytest
import torch

from edkd.figures.cka import Estimate, cka, gram


@pytest.fixture
def x():
    return torch.randn(80, 12, generator=torch.Generator().manual_seed(0))


def centred(gram):
    """A Gram matrix that is centred without bias: Székely and Rizzo, 2014."""
    n = len(gram)
    rows = gram.sum(1, keepdims=True) / (n - 2)
    total = gram.sum() / ((n - 1) * (n - 2))
    result = gram - rows - rows.T + total
    np.fill_diagonal(result, 0)
    return result


def reference(batches):
    """CKA of pairs (x, y), by U-centred matrices in float64; sums before the division."""
    sums = np.zeros(3)
    for x, y in batches:
        grams = [each.double().numpy() @ each.double().numpy().T for each in (x, y)]
        for each in grams:
            np.fill_diagonal(each, 0)
        k, m = (centred(each) for each in grams)
        n = len(k)
        sums += [(one * other).sum() / (n * (n - 3)) for one, other in ((k, m), (k, k), (m, m))]
    return sums[0] / np.sqrt(sums[1] * sums[2])


def test_equal_representations(x):
    assert cka(x, x) == pytest.approx(1)


def test_rotations_scales_and_shifts_change_nothing(x):
    rotation = torch.linalg.qr(torch.randn(12, 12))[0]
    y = torch.randn(80, 5) + x[:, :5]
    assert cka(x, x @ rotation) == pytest.approx(1, abs=1e-6)
    assert cka(x, 1e3 * x) == pytest.approx(1, abs=1e-6)
    assert cka(x @ rotation * 7 + 100, y) == pytest.approx(cka(x, y), abs=1e-5)


def test_a_general_linear_map_changes_it(x):
    assert cka(x, x * torch.logspace(0, 2, 12)) < 0.6


def test_unrelated_representations(x):
    values = [cka(x, torch.randn(80, 12)) for _ in range(20)]
    assert abs(sum(values) / 20) < 0.05


def test_the_float64_reference(x):
    y = x[:, :7] ** 2 + 0.3 * torch.randn(80, 7)
    assert cka(x, y) == pytest.approx(reference([(x, y)]), rel=1e-5)


def test_batches_are_averaged_before_the_division(x):
    y = x[:, :7] + torch.randn(80, 7)
    batches = list(zip(x.split(20), y.split(20), strict=True))
    estimate = Estimate()
    for one, other in batches:
        estimate.add([gram(one), gram(other)], [gram(other)])
    values = estimate.cka()
    assert values.shape == (2, 1)
    assert values[0, 0].item() == pytest.approx(reference(batches), rel=1e-5)
    assert values[1, 0].item() == pytest.approx(1)


def test_of_the_command(draw, table, digits_runs):
    """A network and itself: 1 on the diagonal, and symmetric."""
    draw("cka", digits_runs["alone"], "--between", "students", "--images", "64", "--data")
    rows = {(row["stage"], row["other_stage"]): float(row["cka"]) for row in table("cka")}
    stages = list(dict.fromkeys(stage for stage, _ in rows))
    assert stages == ["stage 0", "stage 1", "stage 2", "stage 3", "pooled", "logits"]
    for one in stages:
        assert rows[one, one] == pytest.approx(1, abs=1e-6)
        for other in stages:
            assert rows[one, other] == pytest.approx(rows[other, one], abs=1e-6)
            assert rows[one, other] <= 1 + 1e-6
