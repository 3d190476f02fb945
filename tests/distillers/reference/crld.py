"""CRLD in plain loops over images and pairs of views."""

from tests.distillers.reference._plain import softmax
from tests.distillers.reference.mlkd import divergence


def crld(student, teacher, weights, thresholds, temperature):
    """The losses within and across views; logits are lists by the name of the view."""
    number = len(student["weak"])
    within = 0.0
    across = 0.0
    for i in range(number):
        if max(softmax(teacher["weak"][i], 1.0)) >= thresholds[0]:
            for view in ("weak", "strong"):
                within += divergence(teacher[view][i], student[view][i], temperature)
        if max(softmax(teacher["strong"][i], 1.0)) >= thresholds[1]:
            across += divergence(teacher["weak"][i], student["strong"][i], temperature)
            across += divergence(teacher["strong"][i], student["weak"][i], temperature)
    return weights[0] * within / number, weights[1] * across / number
