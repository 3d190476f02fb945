"""DIST, equations 8 to 10, with plain loops; eps is added to the product of two norms."""

import math

from tests.distillers.reference._plain import softmax


def dist(student, teacher, beta, gamma, temperature):
    """The loss of lists of rows of logits."""
    p_s = [softmax(row, temperature) for row in student]
    p_t = [softmax(row, temperature) for row in teacher]
    images, classes = len(p_s), len(p_s[0])

    inter = sum(1 - pearson(p_s[i], p_t[i]) for i in range(images)) / images
    intra = 0.0
    for c in range(classes):
        column_s = [p_s[i][c] for i in range(images)]
        column_t = [p_t[i][c] for i in range(images)]
        intra += (1 - pearson(column_s, column_t)) / classes
    return beta * temperature**2 * inter + gamma * temperature**2 * intra


def pearson(u, v):
    mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
    covariance = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True))
    norm_u = math.sqrt(sum((a - mean_u) ** 2 for a in u))
    norm_v = math.sqrt(sum((b - mean_v) ** 2 for b in v))
    return covariance / (norm_u * norm_v + 1e-8)
