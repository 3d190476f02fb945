"""Predictions of one image in plain numbers, for the references."""

import math


def softmax(logits, temperature=1.0):
    """Probabilities of a row of logits."""
    highest = max(logits)
    powers = [math.exp((z - highest) / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def kl(p, q):
    """KL(p || q) of two distributions."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def binary(p):
    """The distribution of an event of this probability."""
    return [p, 1 - p]


def without(row, place):
    """A row without one of its entries."""
    return [value for number, value in enumerate(row) if number != place]


def std(row):
    """The unbiased standard deviation."""
    mean = sum(row) / len(row)
    return math.sqrt(sum((value - mean) ** 2 for value in row) / (len(row) - 1))


def entropy(p):
    """In nats."""
    return -sum(a * math.log(a) for a in p)


def dkd(z_s, z_t, y, alpha, beta, temperature):
    """alpha * TCKD + beta * NCKD of one image, without the factor T^2 (DKD, equation 7)."""
    p_s = softmax(z_s, temperature)
    p_t = softmax(z_t, temperature)
    q_s = softmax(without(z_s, y), temperature)
    q_t = softmax(without(z_t, y), temperature)
    return alpha * kl(binary(p_t[y]), binary(p_s[y])) + beta * kl(q_t, q_s)
