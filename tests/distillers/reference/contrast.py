"""CRD, SRRL, ND, SIMKD and RSD, written from the papers with plain loops over numbers."""

import math
from collections.abc import Sequence

Row = Sequence[float]


def dot(a: Row, b: Row) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def norm(a: Row) -> float:
    return math.sqrt(dot(a, a))


def crd(
    anchors: Sequence[Row],
    bank: Sequence[Row],
    positives: Sequence[int],
    negatives: Sequence[Sequence[int]],
    temperature: float,
) -> float:
    """One side of the contrastive loss in the first step, which sets Z."""
    images = len(bank)
    number = len(negatives[0])
    pairs = [[positive, *others] for positive, others in zip(positives, negatives, strict=True)]
    scores = [
        [math.exp(dot(anchor, bank[j]) / temperature) for j in row]
        for anchor, row in zip(anchors, pairs, strict=True)
    ]
    everything = [score for row in scores for score in row]
    z = sum(everything) / len(everything) * images

    noise = number / images
    loss = 0.0
    for positive, *others in scores:
        p = positive / z
        loss -= math.log(p / (p + noise + 1e-7))
        for other in others:
            q = other / z
            loss -= math.log(noise / (q + noise + 1e-7))
    return loss / len(anchors)


def updated(row: Row, feature: Row, momentum: float) -> list[float]:
    """A row of a memory bank after a step."""
    mixed = [momentum * m + (1 - momentum) * f for m, f in zip(row, feature, strict=True)]
    return [value / norm(mixed) for value in mixed]


def srrl(student: Sequence[Row], teacher: Sequence[Row]) -> float:
    loss = 0.0
    for s, t in zip(student, teacher, strict=True):
        loss += sum((x - y) ** 2 for x, y in zip(s, t, strict=True)) / len(s)
    return loss / len(student)


def nd(student: Sequence[Row], teacher: Sequence[Row], centers: Sequence[Row]) -> float:
    loss = 0.0
    for s, t, c in zip(student, teacher, centers, strict=True):
        loss += 1 - dot(s, c) / norm(c) / max(norm(s), norm(t))
    return loss / len(student)


def rsd(student: Sequence[Row], teacher: Sequence[Row], kappa: float) -> float:
    s = [standardized([row[d] for row in student]) for d in range(len(student[0]))]
    t = [standardized([row[d] for row in teacher]) for d in range(len(teacher[0]))]
    loss = 0.0
    for d, column_t in enumerate(t):
        for e, column_s in enumerate(s):
            p = dot(column_t, column_s) / len(student)
            loss += (p - 1) ** 2 if d == e else kappa * p**2
    return loss


def standardized(column: Row) -> list[float]:
    mean = sum(column) / len(column)
    std = math.sqrt(sum((x - mean) ** 2 for x in column) / len(column))
    return [(x - mean) / (std + 1e-5) for x in column]


def simkd(student: Sequence[Row], teacher: Sequence[Row]) -> float:
    """Of maps whose numbers are in rows, each pooled to one number of a student's cell."""
    differences = [
        (x - y) ** 2
        for s, t in zip(student, teacher, strict=True)
        for x, y in zip(s, t, strict=True)
    ]
    return sum(differences) / len(differences)
