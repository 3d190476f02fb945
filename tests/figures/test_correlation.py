"""Correlations of logits, and how far those of student and teacher differ."""

import numpy as np
import pytest
import torch

from edkd.engine.finished import open_run
from edkd.engine.outputs import collect
from edkd.figures.correlation import correlation


def test_the_matrix_is_that_of_numpy():
    logits = torch.randn(60, 7) @ torch.randn(7, 7)
    expected = np.corrcoef(logits.double().numpy().T)
    np.testing.assert_allclose(correlation(logits).numpy(), expected, atol=1e-12)


def test_a_constant_logit_has_no_correlation():
    logits = torch.randn(10, 3)
    logits[:, 1] = 4.0
    matrix = correlation(logits)
    assert matrix[1].tolist() == [0, 1, 0]
    assert matrix.isfinite().all()


def test_of_the_command(draw, table, digits_runs):
    """The numbers are those of the networks; the teacher itself does not differ from itself."""
    runs = [digits_runs["kd1"], digits_runs["teacher"]]
    done = draw("correlation", *runs, "--data", "--images", "200")
    run = open_run(digits_runs["kd1"], device="cpu")
    matrices = [
        np.corrcoef(collect(network, run.data, limit=200).logits.double().numpy().T)
        for network in (run.student, run.teacher.network)
    ]
    expected = abs(matrices[0] - matrices[1])

    rows = table("correlation")
    of_kd = [float(row["difference"]) for row in rows if row["student"] == "kd"]
    np.testing.assert_allclose(of_kd, expected.flatten(), atol=1e-6)
    assert f"kd: mean absolute difference to teacher resnet20 {expected.sum() / 90:.4f}" in done.out

    of_teacher = [float(row["difference"]) for row in rows if row["student"] == "teacher"]
    assert max(of_teacher) == pytest.approx(0, abs=1e-6)
