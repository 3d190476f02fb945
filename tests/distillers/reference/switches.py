"""The equations of LSKD (Sun et al., CVPR 2024) and EA-KD (Su et al., ICCV 2025)."""

import math

from tests.distillers.reference._plain import dkd, entropy, kl, softmax, std


def z_score(row):
    """LSKD, algorithm 1."""
    mean = sum(row) / len(row)
    return [(z - mean) / (std(row) + 1e-7) for z in row]


def weight(z_s, z_t, temperature):
    """EA-KD: half the teacher's entropy, and half of it times the student's share of log C."""
    of_teacher = entropy(softmax(z_t, temperature))
    of_student = entropy(softmax(z_s, temperature))
    return (of_teacher + of_teacher * of_student / math.log(len(z_s))) / 2


def kd_term(z_s, z_t, y, temperature):
    return temperature**2 * kl(softmax(z_t, temperature), softmax(z_s, temperature))


def dkd_term(z_s, z_t, y, temperature, alpha=1.0, beta=8.0):
    return temperature**2 * dkd(z_s, z_t, y, alpha, beta, temperature)


def loss(term, rows_s, rows_t, target, temperature, lskd, eakd, entropy_temperature=3.0):
    """The mean over the images of a term of KD or DKD, with the switches."""
    total = 0.0
    for z_s, z_t, y in zip(rows_s, rows_t, target, strict=True):
        factor = weight(z_s, z_t, entropy_temperature) if eakd else 1.0
        if lskd:
            z_s, z_t = z_score(z_s), z_score(z_t)
        total += factor * term(z_s, z_t, y, temperature)
    return total / len(rows_s)
