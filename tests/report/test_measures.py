"""Measures of predictions, against direct computations in float64."""

import math

import numpy as np
import pytest
import torch

from edkd.report import measures
from edkd.report.measures import (
    agreement,
    confident_errors,
    confusion,
    equal_size_bins,
    equal_width_bins,
    probabilities,
)


@pytest.fixture
def predictions():
    """Logits (200,5) of a student and a teacher, and targets."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 200, 5, generator=generator) * 2
    return student, teacher, torch.randint(5, (200,), generator=generator)


def direct_softmax(logits):
    logits = logits.numpy().astype(np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def direct_error(confidence, correct, bins=15):
    """Equation 3 of Guo et al. 2017."""
    total = 0.0
    for number in range(1, bins + 1):
        inside = (confidence > (number - 1) / bins) & (confidence <= number / bins)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            total += inside.sum() / len(confidence) * gap
    return total


def test_calibration_error(predictions):
    student, _, target = predictions
    direct = direct_softmax(student)
    right = direct.argmax(1) == target.numpy()
    confidence, predicted = probabilities(student).max(1)

    bins = equal_width_bins(confidence, predicted == target)
    assert bins.error == pytest.approx(direct_error(direct.max(1), right), abs=1e-12)
    assert sum(bins.counts) == 200
    assert bins.edges[0] == 0
    assert bins.edges[-1] == 1


def test_a_confidence_of_an_edge_belongs_to_the_bin_below():
    confidence = torch.tensor([0.5, 1.0, 0.25], dtype=torch.float64)
    bins = equal_width_bins(confidence, torch.tensor([True, True, False]), bins=4)
    assert bins.counts == [1, 1, 0, 1]


def test_a_perfect_network_has_no_calibration_error():
    confidence = torch.ones(8, dtype=torch.float64)
    correct = torch.ones(8, dtype=torch.bool)
    assert equal_width_bins(confidence, correct).error == 0
    assert equal_size_bins(confidence, correct).error == 0


def test_the_adaptive_error_has_bins_of_equal_size(predictions):
    student, _, target = predictions
    confidence, predicted = probabilities(student).max(1)
    bins = equal_size_bins(confidence, predicted == target)
    assert {13, 14} == set(bins.counts)
    assert bins.confidence == sorted(bins.confidence)

    # Directly.
    order = np.argsort(confidence.numpy(), kind="stable")
    right = (predicted == target).numpy()
    total = 0.0
    for part in np.array_split(order, 15):
        gap = abs(confidence.numpy()[part].mean() - right[part].mean())
        total += len(part) / 200 * gap
    assert bins.error == pytest.approx(total, abs=1e-12)


def test_rows_of_the_confusion_matrix_are_true_classes(predictions):
    student, _, target = predictions
    counts = confusion(student.argmax(1), target, 5)
    assert counts.sum(1).tolist() == torch.bincount(target, minlength=5).tolist()
    assert counts[2, 3] == ((target == 2) & (student.argmax(1) == 3)).sum()


def test_agreement(predictions):
    student, teacher, target = predictions
    found = agreement(student, teacher, target)
    p, q = direct_softmax(teacher), direct_softmax(student)
    of_student, of_teacher, true = q.argmax(1), p.argmax(1), target.numpy()

    assert found.divergence == pytest.approx((p * np.log(p / q)).sum(1).mean(), abs=1e-12)
    assert found.same == (of_student == of_teacher).mean()
    assert found.right_where_teacher_right == (of_student == true)[of_teacher == true].mean()
    assert found.right_where_teacher_wrong == (of_student == true)[of_teacher != true].mean()
    cases = [found.both_right, found.only_teacher, found.only_student, found.both_wrong]
    assert math.fsum(cases) == pytest.approx(1)


def test_parts_add_up(predictions, monkeypatch):
    student, teacher, target = predictions
    whole = agreement(student, teacher, target)
    monkeypatch.setattr(measures, "_PART", 64)
    assert agreement(student, teacher, target) == pytest.approx(whole, abs=1e-12)


def test_a_student_agrees_with_itself(predictions):
    student, _, _ = predictions
    found = agreement(student, student, student.argmax(1))
    assert (found.same, found.divergence, found.both_right) == (1, 0, 1)
    assert found.right_where_teacher_wrong is None


def test_extreme_logits_have_finite_measures():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    found = agreement(logits, -logits, torch.tensor([0, 1]))
    assert found.divergence == 2e4
    confidence, _ = probabilities(logits).max(1)
    assert confidence.tolist() == [1, 1]


def test_confident_errors_are_sorted(predictions):
    student, _, target = predictions
    errors = confident_errors(probabilities(student), target, 7)
    direct = direct_softmax(student)
    assert len(errors) == 7
    assert [e.confidence for e in errors] == sorted((e.confidence for e in errors), reverse=True)
    for error in errors:
        assert error.predicted == direct[error.position].argmax() != target[error.position]
        assert error.confidence == pytest.approx(direct[error.position].max())
