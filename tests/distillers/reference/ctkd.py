"""CTKD (Li et al., AAAI 2023), image by image, with its temperature and curriculum."""

import math

from tests.distillers.reference._plain import kl, softmax


def temperature(theta, start, span):
    return start + span / (1 + math.exp(-theta))


def ctkd(z_s, z_t, theta, start, span):
    tau = temperature(theta, start, span)
    return tau**2 * kl(softmax(z_t, tau), softmax(z_s, tau))


def factor(epoch, loops):
    """Of the gradient of theta: a cosine from 0 to -1."""
    done = min(epoch, loops)
    return (math.cos(done * math.pi / loops) + 1) / 2 - 1
