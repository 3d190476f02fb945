"""TTM and WTTM (Zheng and Yang, ICLR 2024), image by image: the power transform of p_t."""

from tests.distillers.reference._plain import kl, softmax


def transformed(z_t, gamma):
    powers = [p**gamma for p in softmax(z_t)]
    return [power / sum(powers) for power in powers], sum(powers)


def ttm(z_s, z_t, gamma):
    q, _ = transformed(z_t, gamma)
    return kl(q, softmax(z_s))


def wttm(z_s, z_t, gamma):
    q, weight = transformed(z_t, gamma)
    return weight * kl(q, softmax(z_s))
