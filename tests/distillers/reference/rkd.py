"""Relational distillation (arXiv:1904.05068), image by image; with squared distances or without."""

import math


def rkd(student, teacher, distance_weight, angle_weight, squared):
    """The features of a batch are lists of lists."""
    number = range(len(student))
    distances_student = distances(student, squared)
    distances_teacher = distances(teacher, squared)
    by_distance = [
        huber(distances_student[i][j] - distances_teacher[i][j]) for i in number for j in number
    ]

    by_angle = []
    for i in number:
        for j in number:
            for k in number:
                by_angle.append(huber(angle(student, i, j, k) - angle(teacher, i, j, k)))

    loss_distance = sum(by_distance) / len(by_distance)
    loss_angle = sum(by_angle) / len(by_angle)
    return distance_weight * loss_distance + angle_weight * loss_angle


def distances(features, squared):
    """Of all pairs, divided by the mean over the pairs of two different images."""
    number = range(len(features))
    found = [[0.0 for _ in number] for _ in number]
    for i in number:
        for j in number:
            square = sum((x - y) ** 2 for x, y in zip(features[i], features[j], strict=True))
            found[i][j] = square if squared else math.sqrt(square)
    mean = sum(found[i][j] for i in number for j in number if i != j) / (
        len(number) * (len(number) - 1)
    )
    return [[value / mean for value in row] for row in found]


def angle(features, i, j, k):
    """The cosine of the angle at i between j and k; 0 where it has none."""
    if i in (j, k):
        return 0.0
    first = [x - y for x, y in zip(features[j], features[i], strict=True)]
    second = [x - y for x, y in zip(features[k], features[i], strict=True)]
    product = sum(x * y for x, y in zip(first, second, strict=True))
    return product / math.hypot(*first) / math.hypot(*second)


def huber(difference):
    """With delta 1."""
    if abs(difference) <= 1:
        return difference**2 / 2
    return abs(difference) - 0.5
