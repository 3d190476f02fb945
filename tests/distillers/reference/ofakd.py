"""The losses of OFA-KD (arXiv:2310.19444) and of DeiT (arXiv:2012.12877), in plain loops."""

import math

from tests.distillers.reference._plain import softmax


def ofakd(student, teacher, target, eps, temperature):
    """Lists of rows; the mean over the rows."""
    total = 0.0
    for z_s, z_t, y in zip(student, teacher, target, strict=True):
        p_s = softmax(z_s, temperature)
        p_t = softmax(z_t, temperature)
        for c in range(len(z_s)):
            hot = 1.0 if c == y else 0.0
            total -= ((p_t[c] + hot) ** eps - hot) * math.log(p_s[c])
    return total / len(target)


def deit_hard(student, teacher):
    total = 0.0
    for z_d, z_t in zip(student, teacher, strict=True):
        total -= math.log(softmax(z_d, 1.0)[z_t.index(max(z_t))])
    return total / len(student)


def deit_soft(student, teacher, temperature):
    total = 0.0
    for z_d, z_t in zip(student, teacher, strict=True):
        for p, q in zip(softmax(z_t, temperature), softmax(z_d, temperature), strict=True):
            total += temperature**2 * p * math.log(p / q)
    return total / len(student)
