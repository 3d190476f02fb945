"""Streamlined KD with plain loops, and the inverse of the covariance by Gaussian elimination."""

import math

from tests.distillers.reference._plain import softmax


def skd(student, teacher, temperature, tikhonov, form):
    """The loss of lists of rows of logits."""
    images, classes = len(student), len(student[0])
    instance = 0.0
    for row_s, row_t in zip(student, teacher, strict=True):
        p_s, p_t = softmax(row_s, temperature), softmax(row_t, temperature)
        instance += sum(b * math.log(b / a) for a, b in zip(p_s, p_t, strict=True)) / images

    g_s, g_t = gram(student), gram(teacher)
    d = [[g_s[i][j] - g_t[i][j] for j in range(images)] for i in range(images)]
    if form == "reference":
        instance *= temperature**2
        d = [[value / classes for value in row] for row in d]

    mean = [sum(row[j] for row in d) / images for j in range(images)]
    sigma = [[0.0] * images for _ in d]
    for j in range(images):
        for k in range(images):
            products = ((row[j] - mean[j]) * (row[k] - mean[k]) for row in d)
            sigma[j][k] = sum(products) / (images - 1) + (tikhonov if j == k else 0.0)

    direction = 0.0
    for row in d:
        solved = solve(sigma, row)
        direction += math.sqrt(sum(a * b for a, b in zip(row, solved, strict=True))) / images
    return instance + direction


def gram(rows):
    unit = [[z / math.sqrt(sum(a * a for a in row)) for z in row] for row in rows]
    return [[sum(a * b for a, b in zip(u, v, strict=True)) for v in unit] for u in unit]


def solve(matrix, right):
    """x with matrix x = right."""
    size = len(right)
    rows = [[*matrix[i], right[i]] for i in range(size)]
    for i in range(size):
        pivot = max(range(i, size), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for k in range(size):
            if k != i:
                factor = rows[k][i] / rows[i][i]
                rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    return [rows[i][size] / rows[i][i] for i in range(size)]
