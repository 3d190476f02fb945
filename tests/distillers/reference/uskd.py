"""USKD (Yang et al., ICCV 2023), image by image; each image has one label or two."""

import math

from tests.distillers.reference._plain import softmax


def uskd(rows, weak_rows, shares, alpha, beta, mu):
    """The loss of a batch.

    Args:
        rows: logits of the student.
        weak_rows: logits of the weak head.
        shares: for each image, {class: share} of its labels, the larger share first.
    """
    number = len(rows)
    squares = [
        [softmax(row)[y] ** 2 for y in share] for row, share in zip(rows, shares, strict=True)
    ]
    columns = max(map(len, squares))
    means = [sum(row[k] for row in squares) / number for k in range(columns)]

    total = 0.0
    for row, weak, share, square in zip(rows, weak_rows, shares, squares, strict=True):
        p = softmax(row)
        for k, (y, part) in enumerate(share.items()):
            if part > 0:
                total -= alpha * (square[k] + part - means[k]) * math.log(p[y])
        total += beta * others(row, weak, [y for y, part in share.items() if part > 0])
        total += mu * smoothed(weak, share)
    return total / number


def others(row, weak, labels):
    """The cross-entropy over the other classes from 1 / rank."""
    p, w = softmax(row), softmax(weak)
    p_rest = 1 - sum(p[y] for y in labels)
    w_rest = 1 - sum(w[y] for y in labels)
    score = [w[c] / w_rest + p[c] / p_rest for c in range(len(p))]
    ranking = sorted(range(len(p)), key=lambda c: -score[c])

    zipf = {c: 1 / (1 + ranking.index(c)) for c in range(len(p)) if c not in labels}
    return -sum(z / sum(zipf.values()) * math.log(p[c] / p_rest) for c, z in zipf.items())


def smoothed(weak, share):
    """The cross-entropy of the weak head with labels smoothed by 0.1."""
    w = softmax(weak)
    return -sum((0.9 * share.get(c, 0.0) + 0.1 / len(w)) * math.log(w[c]) for c in range(len(w)))
