"""Neuron selectivity transfer (arXiv:1707.01219), the kernel of every pair of channels."""

import math

from tests.distillers.reference.at import pool


def nst(features_student, features_teacher):
    """The maps of a pair have heights and widths of which the smaller divides the larger."""
    total = 0.0
    for student, teacher in zip(features_student, features_teacher, strict=True):
        height = min(len(student[0][0]), len(teacher[0][0]))
        width = min(len(student[0][0][0]), len(teacher[0][0][0]))
        for image_student, image_teacher in zip(student, teacher, strict=True):
            a = [unit(pool(channel, height, width)) for channel in image_student]
            b = [unit(pool(channel, height, width)) for channel in image_teacher]
            distance = mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)
            total += distance / len(student)
    return total


def mean_kernel(first, second):
    """The mean of (x . y)^2 over all pairs."""
    values = []
    for x in first:
        for y in second:
            values.append(sum(p * q for p, q in zip(x, y, strict=True)) ** 2)
    return sum(values) / len(values)


def unit(vector):
    """A vector divided by its norm."""
    norm = math.sqrt(sum(value**2 for value in vector))
    return [value / norm for value in vector]
