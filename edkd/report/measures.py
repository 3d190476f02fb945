"""Measures of predictions: calibration, confusion, agreement with the teacher; in float64."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

BINS = 15
"""Bins of the calibration error, as Guo et al. 2017 have."""

_PART = 4096
"""Images of a comparison, to limit its memory."""


class Bins(NamedTuple):
    """Images grouped by the confidence of their prediction; see `equal_width_bins`.

    Args:
        edges: of the bins, one more than there are bins.
        counts: number of images in each.
        confidence: mean in each; 0 where it is empty.
        accuracy: share of right predictions in each; 0 where it is empty.
    """

    edges: list[float]
    counts: list[int]
    confidence: list[float]
    accuracy: list[float]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean gap, weighted by the number of images."""
        total = sum(self.counts)
        gaps = [
            count * abs(confidence - accuracy)
            for count, confidence, accuracy in zip(
                self.counts, self.confidence, self.accuracy, strict=True
            )
        ]
        return math.fsum(gaps) / total


class Agreement(NamedTuple):
    """How the predictions of a student relate to those of its teacher.

    Shares are in [0, 1] of all images, but the last two: of the images where the teacher is right
    and where it is wrong; None where there are no such images.
    """

    same: float
    """The share of images with the same predicted class."""
    divergence: float
    """Mean over the images of KL(teacher || student) at temperature 1, in nats."""
    both_right: float
    only_teacher: float
    only_student: float
    both_wrong: float
    right_where_teacher_right: float | None
    right_where_teacher_wrong: float | None


class Error(NamedTuple):
    """A test image with a wrong prediction."""

    position: int
    """Place in the test set, from 0."""
    target: int
    predicted: int
    confidence: float
    """Probability of the predicted class."""


def probabilities(logits: Tensor) -> Tensor:
    """Softmax of logits (N,C), in float64."""
    return logits.double().softmax(1)


def confusion(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Counts (C,C): rows are true classes, columns predicted ones.

    Args:
        predicted: (N,), class numbers.
        target: (N,), class numbers.
    """
    places = target * num_classes + predicted
    return torch.bincount(places, minlength=num_classes**2).view(num_classes, num_classes)


def equal_width_bins(confidence: Tensor, correct: Tensor, bins: int = BINS) -> Bins:
    """Bins of equal width, ((m - 1) / M, m / M], for the calibration error of Guo et al. 2017.

    Args:
        confidence: (N,), probability of the predicted class, float64.
        correct: (N,), bool.
        bins: M.
    """
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    counts = torch.bincount(place, minlength=bins)
    sums = torch.bincount(place, confidence, minlength=bins)
    hits = torch.bincount(place, correct.double(), minlength=bins)

    size = counts.clamp(min=1)
    edges = [number / bins for number in range(bins + 1)]
    return Bins(edges, counts.tolist(), (sums / size).tolist(), (hits / size).tolist())


def equal_size_bins(confidence: Tensor, correct: Tensor, bins: int = BINS) -> Bins:
    """Bins with equal numbers of images, for the adaptive calibration error.

    Args:
        confidence: (N,), float64.
        correct: (N,), bool.
        bins: fewer where there are fewer images.
    """
    order = confidence.argsort()
    parts = [part for part in order.tensor_split(min(bins, len(order))) if len(part)]

    means = [confidence[part].mean().item() for part in parts]
    hits = [correct[part].double().mean().item() for part in parts]
    edges = [confidence[part[0]].item() for part in parts] + [confidence[order[-1]].item()]
    return Bins(edges, [len(part) for part in parts], means, hits)


def agreement(student: Tensor, teacher: Tensor, target: Tensor) -> Agreement:
    """Compare the predictions of a student and its teacher.

    Args:
        student: logits (N,C).
        teacher: logits (N,C), or log-probabilities.
        target: (N,), class numbers.
    """
    # In parts: several float64 tensors of 50,000 images and 1000 classes have 400 MB each.
    parts = zip(student.split(_PART), teacher.split(_PART), strict=True)
    divergence = math.fsum(_divergence(*part) for part in parts) / len(target)

    of_student = student.argmax(1)
    of_teacher = teacher.argmax(1)
    right = of_student == target
    teacher_right = of_teacher == target

    return Agreement(
        same=_share(of_student == of_teacher),
        divergence=divergence,
        both_right=_share(right & teacher_right),
        only_teacher=_share(~right & teacher_right),
        only_student=_share(right & ~teacher_right),
        both_wrong=_share(~right & ~teacher_right),
        right_where_teacher_right=_share_if_any(right[teacher_right]),
        right_where_teacher_wrong=_share_if_any(right[~teacher_right]),
    )


def _divergence(student: Tensor, teacher: Tensor) -> float:
    """The sum of KL(teacher || student) over images, from logits (N,C)."""
    log_student = student.double().log_softmax(1)
    log_teacher = teacher.double().log_softmax(1)
    return torch.nn.functional.kl_div(
        log_student, log_teacher, reduction="sum", log_target=True
    ).item()


def confident_errors(probability: Tensor, target: Tensor, number: int) -> list[Error]:
    """The wrong predictions of highest confidence, highest first.

    Args:
        probability: (N,C).
        target: (N,), class numbers.
        number: how many at most.
    """
    confidence, predicted = probability.max(1)
    wrong = (predicted != target).nonzero().flatten()
    order = confidence[wrong].argsort(descending=True, stable=True)

    found = []
    for place in wrong[order[:number]].tolist():
        error = Error(
            position=place,
            target=int(target[place]),
            predicted=int(predicted[place]),
            confidence=float(confidence[place]),
        )
        found.append(error)
    return found


def _share(flags: Tensor) -> float:
    return flags.double().mean().item()


def _share_if_any(flags: Tensor) -> float | None:
    return _share(flags) if len(flags) else None
