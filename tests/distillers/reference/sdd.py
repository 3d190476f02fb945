"""SDD with plain loops: cells by adaptive average pooling, KD or DKD of each."""

import math

from tests.distillers.reference._plain import softmax


def cells(feature, weight, bias, grid):
    """Logits of each cell of a map [D][H][W], row by row."""
    height, width = len(feature[0]), len(feature[0][0])
    found = []
    for i in range(grid):
        rows = range(i * height // grid, math.ceil((i + 1) * height / grid))
        for j in range(grid):
            columns = range(j * width // grid, math.ceil((j + 1) * width / grid))
            size = len(rows) * len(columns)
            mean = [sum(channel[h][w] for h in rows for w in columns) / size for channel in feature]
            pairs = zip(weight, bias, strict=True)
            found.append(
                [sum(a * b for a, b in zip(row, mean, strict=True)) + c for row, c in pairs]
            )
    return found


def sdd(student, teacher, whole, target, base, complementary):
    """The mean over images and cells; `student` and `teacher` are [N][K][C]."""
    total = 0.0
    for i, y in enumerate(target):
        for row_s, row_t in zip(student[i], teacher[i], strict=True):
            is_right = row_t.index(max(row_t)) == y
            is_whole_right = whole[i].index(max(whole[i])) == y
            weight = complementary if is_right != is_whole_right else 1.0
            total += weight * base(row_s, row_t, y) / len(student[i]) / len(target)
    return total


def kd(row_s, row_t, y, temperature):
    p_s, p_t = softmax(row_s, temperature), softmax(row_t, temperature)
    return temperature**2 * sum(b * math.log(b / a) for a, b in zip(p_s, p_t, strict=True))


def dkd(row_s, row_t, y, alpha, beta, temperature):
    p_s, p_t = softmax(row_s, temperature), softmax(row_t, temperature)
    s, t = p_s[y], p_t[y]
    tckd = t * math.log(t / s) + (1 - t) * math.log((1 - t) / (1 - s))
    nckd = 0.0
    for c in range(len(p_s)):
        if c != y:
            q_s, q_t = p_s[c] / (1 - s), p_t[c] / (1 - t)
            nckd += q_t * math.log(q_t / q_s)
    return temperature**2 * (alpha * tckd + beta * nckd)
