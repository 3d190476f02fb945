"""WKD-L with plain loops: Sinkhorn on the classes but the target, CKA by HSIC."""

import math

from tests.distillers.reference._plain import softmax


def wkd(student, teacher, target, cost, temperature, regularization, iterations):
    """The mean transport cost of lists of rows of logits."""
    total = 0.0
    for row_s, row_t, y in zip(student, teacher, target, strict=True):
        others = [c for c in range(len(row_s)) if c != y]
        q_s = softmax([row_s[c] for c in others], temperature)
        q_t = softmax([row_t[c] for c in others], temperature)
        own = [[cost[j][k] for k in others] for j in others]
        total += transport(q_s, q_t, own, regularization, iterations) / len(student)
    return total


def transport(p, q, cost, regularization, iterations):
    size = len(p)
    kernel = [[math.exp(-c / regularization) for c in row] for row in cost]
    u = [1.0 / size] * size
    for _ in range(iterations):
        v = [q[k] / sum(kernel[j][k] * u[j] for j in range(size)) for k in range(size)]
        u = [p[j] / sum(kernel[j][k] * v[k] for k in range(size)) for j in range(size)]
    plan = [[u[j] * kernel[j][k] * v[k] for k in range(size)] for j in range(size)]
    return sum(plan[j][k] * cost[j][k] for j in range(size) for k in range(size))


def target_term(student, teacher, target):
    """-mean_i p_t_iy log p_s_iy."""
    total = 0.0
    for row_s, row_t, y in zip(student, teacher, target, strict=True):
        total -= softmax(row_t, 1.0)[y] * math.log(softmax(row_s, 1.0)[y]) / len(student)
    return total


def cka(x, y):
    """Linear CKA of two lists of as many features: tr(K H L H), normalised."""
    k, h = centred(inner(x)), centred(inner(y))
    return dot(k, h) / math.sqrt(dot(k, k) * dot(h, h))


def inner(x):
    return [[sum(a * b for a, b in zip(u, v, strict=True)) for v in x] for u in x]


def centred(k):
    size = len(k)
    rows = [sum(row) / size for row in k]
    columns = [sum(row[j] for row in k) / size for j in range(size)]
    mean = sum(rows) / size
    return [[k[i][j] - rows[i] - columns[j] + mean for j in range(size)] for i in range(size)]


def dot(k, h):
    return sum(a * b for u, v in zip(k, h, strict=True) for a, b in zip(u, v, strict=True))
