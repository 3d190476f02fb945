"""NKD (Yang et al., ICCV 2023), image by image."""

import math

from tests.distillers.reference._plain import softmax, without


def nkd(z_s, z_t, y, gamma, temperature):
    target = -softmax(z_t)[y] * math.log(softmax(z_s)[y])
    q_s = softmax(without(z_s, y), temperature)
    q_t = softmax(without(z_t, y), temperature)
    others = -sum(t * math.log(s) for t, s in zip(q_t, q_s, strict=True))
    return target + gamma * temperature**2 * others
