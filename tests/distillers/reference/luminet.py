"""LumiNet's loss with plain loops."""

import math

from tests.distillers.reference._plain import softmax


def luminet(student, teacher, alpha, temperature):
    """The loss of lists of rows of logits."""
    u_s, u_t = perception(student), perception(teacher)
    total = 0.0
    for row_s, row_t in zip(u_s, u_t, strict=True):
        p_s, p_t = softmax(row_s, temperature), softmax(row_t, temperature)
        total += sum(b * math.log(b / a) for a, b in zip(p_s, p_t, strict=True))
    return alpha**2 * total / len(student)


def perception(rows):
    images, classes = len(rows), len(rows[0])
    result = [[0.0] * classes for _ in rows]
    for c in range(classes):
        mean = sum(row[c] for row in rows) / images
        variance = sum((row[c] - mean) ** 2 for row in rows) / images
        for i in range(images):
            result[i][c] = (rows[i][c] - mean) / math.sqrt(variance + 1e-5)
    return result
