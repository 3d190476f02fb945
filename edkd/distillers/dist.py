"""Knowledge distillation from a stronger teacher: correlations instead of divergences.

T. Huang, S. You, F. Wang, C. Qian, C. Xu, "Knowledge Distillation from A Stronger Teacher",
NeurIPS 2022, arXiv:2205.10536.
"""

from torch import Tensor

from edkd.distillers._base import Distiller
from edkd.distillers._math import log_softmax
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output

EPSILON = 1e-8
"""Added to the product of two norms, as in the published code."""

CONSTANT = 1e-7
"""Norm of a row that differs from a constant one by rounding alone."""


def dist_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    beta: float,
    gamma: float,
    temperature: float,
) -> Tensor:
    """T^2 * (beta * mean_i(1 - rho(p_s_i, p_t_i)) + gamma * mean_c(1 - rho(p_s^c, p_t^c))).

    p = softmax(logits / T), and rho is Pearson's correlation. The first term compares the rows of
    p, the predictions for an image; the second one its columns, the predictions for a class over
    the batch (equations 8 to 10). The weight of both is a factor of the class.

    A constant row or column has no correlation and counts as rho = 0. So does each column of a
    batch of one image, whose second term is the constant gamma * T^2.

    Differs from the published code: a row or column that is constant but for rounding has no
    gradient. There it has one of up to 1e8, as for a new network, whose logits are 0.

    Args:
        logits_student: (N,C); computed in float32 or better, finite for logits up to +-1e4.
        logits_teacher: (N,C).
        beta: weight of the rows, >= 0.
        gamma: weight of the columns, >= 0.
        temperature: T > 0.

    Returns:
        A scalar >= 0; 0 where both predictions agree and nothing is constant, but for `EPSILON`.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 4.0, 3.0]])
        >>> loss = dist_loss(logits, logits, beta=1.0, gamma=1.0, temperature=1.0)
        >>> round(loss.item(), 4)
        0.0
    """
    p_s = log_softmax(logits_student, temperature).exp()
    p_t = log_softmax(logits_teacher, temperature).exp()

    between_classes = 1 - _correlation(p_s, p_t).mean()
    between_images = 1 - _correlation(p_s.T, p_t.T).mean()
    return temperature**2 * (beta * between_classes + gamma * between_images)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each row of a with that of b, (N,)."""
    a = _centred(a)
    b = _centred(b)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + EPSILON)


def _centred(rows: Tensor) -> Tensor:
    """Rows minus their means; 0, without a gradient, where only rounding is left."""
    centred = rows - rows.mean(1, keepdim=True)
    is_constant = centred.detach().norm(dim=1, keepdim=True) < CONSTANT
    return centred.masked_fill(is_constant, 0.0)


@METHODS.register("DIST")
class DIST(Distiller):
    """CE_WEIGHT * CE(student, target) + KD_WEIGHT * dist_loss(student, teacher)."""

    gathers_batch = True
    defaults = dict(
        CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
        KD_WEIGHT=Key(2.0, "weight of both correlations together", low=0.0),
        BETA=Key(1.0, "weight of the correlation between classes, of each image", low=0.0),
        GAMMA=Key(1.0, "weight of the correlation between images, of each class", low=0.0),
        T=Key(4.0, "softens both predictions; 1 on ImageNet", low=1e-3),
    )

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        hp = self.hp
        loss_dist = dist_loss(student.logits, teacher.logits, hp.BETA, hp.GAMMA, hp.T)
        return {"loss_kd": hp.KD_WEIGHT * loss_dist}
