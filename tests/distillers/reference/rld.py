"""RLD (Sun et al., ICCV 2025), image by image."""

from tests.distillers.reference._plain import binary, kl, softmax


def rld(z_s, z_t, y, alpha, beta, temperature, alpha_temperature):
    highest = z_t.index(max(z_t))
    p_t = softmax(z_t, alpha_temperature)[highest]
    p_s = softmax(z_s, alpha_temperature)[y]
    confidence = alpha_temperature**2 * kl(binary(p_t), binary(p_s))

    below = [c for c in range(len(z_t)) if z_t[c] < z_t[y]]
    if not below:
        return alpha * confidence
    q_t = softmax([z_t[c] for c in below], temperature)
    q_s = softmax([z_s[c] for c in below], temperature)
    return alpha * confidence + beta * temperature**2 * kl(q_t, q_s)
