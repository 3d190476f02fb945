"""NormKD (Chi et al., 2023), image by image, with KD and with DKD."""

from tests.distillers.reference._plain import dkd, kl, softmax, std


def normkd(z_s, z_t, factor):
    t_s = factor * std(z_s)
    t_t = factor * std(z_t)
    return t_t**2 * kl(softmax(z_t, t_t), softmax(z_s, t_s))


def normdkd(z_s, z_t, y, alpha, beta, factor):
    t_s = factor * std(z_s)
    t_t = factor * std(z_t)
    scaled_s = [z / t_s for z in z_s]
    scaled_t = [z / t_t for z in z_t]
    return t_t**2 * dkd(scaled_s, scaled_t, y, alpha, beta, 1.0)
