"""MLKD in plain loops over images, classes and temperatures."""

import math
from statistics import median

from tests.distillers.reference._plain import softmax


def divergence(teacher, student, temperature):
    p = softmax(teacher, temperature)
    q = softmax(student, temperature)
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def gram(rows):
    return [[sum(a * b for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]


def transposed(rows):
    return [list(column) for column in zip(*rows, strict=True)]


def gram_loss(teacher, student, factors):
    ours = gram(student)
    theirs = gram(teacher)
    total = 0.0
    for i in range(len(ours)):
        for j in range(len(ours)):
            total += factors[j] * (theirs[i][j] - ours[i][j]) ** 2
    return total / len(ours)


def mlkd(student, teacher, temperatures, form):
    """The losses of images, batch and classes; logits are lists by the name of the view."""
    probabilities = [softmax(row, 1.0) for row in teacher["weak"]]
    confidence = [max(row) for row in probabilities]
    of_class = [sum(column) for column in transposed(probabilities)]
    images = [float(value <= median(confidence)) for value in confidence]
    classes = [float(value <= median(of_class)) for value in of_class]
    if form == "reference":
        images = [sum(images) / len(images)] * len(images)
        classes = [sum(classes) / len(classes)] * len(classes)

    number = len(confidence)
    instance = 0.0
    batch = 0.0
    between_classes = 0.0
    for place, temperature in enumerate(temperatures):
        swapped = form == "reference" and place >= len(temperatures) - 2
        strong = "weak" if swapped else "strong"
        for i in range(number):
            weak = divergence(teacher["weak"][i], student["weak"][i], temperature)
            other = divergence(teacher[strong][i], student[strong][i], temperature)
            instance += (images[i] * weak + other) / number

        p_t = [softmax(row, temperature) for row in teacher["weak"]]
        p_s = [softmax(row, temperature) for row in student["weak"]]
        batch += gram_loss(p_t, p_s, images)
        between_classes += gram_loss(transposed(p_t), transposed(p_s), classes)
    return instance, batch, between_classes
