"""Streamlined knowledge distillation: predictions, and the directions of logits in a batch.

H.-J. Jeong, H.-J. Lee, S.-H. Choi, "Streamlined Knowledge Distillation", CVPR 2026.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from edkd.distillers._base import Distiller
from edkd.distillers._math import at_least_float32, full_precision, reduced
from edkd.distillers.kd import kd_loss
from edkd.errors import UserError
from edkd.hints import not_one_of
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output

FORMS = ("paper", "reference")

EPSILON = 1e-12
"""Below the square root, whose slope at 0 is infinite."""

SHORTEST = 1e-3
"""Rows of logits below this length are divided by it, so that the slope at 0 stays small."""


def skd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    temperature: float,
    tikhonov: float,
    form: str = "reference",
    reduction: str = "mean",
) -> Tensor:
    """INS + DIR, the terms of predictions and of directions.

    INS = T^2 * mean_i KL(p_t_i || p_s_i) with p = softmax(logits / T).
    DIR = mean_i sqrt(D_i^T (cov(D) + lambda I)^-1 D_i), the Mahalanobis length of the rows of
    D = G_s - G_t. G (N,N) is the Gram matrix of the rows of logits, each divided by its length; the
    covariance is that of the rows of D over the batch. It costs O(N^3) time and O(N^2) memory.

    Differs from the published code: a small number below the root, and a shortest length, keep
    gradients finite where student and teacher agree and for logits of 0. That code also multiplies
    both terms by the mean of a mask of the images, or classes, that are not above the median: a
    constant, 1/2 for even batches, which is left to the weights.

    Args:
        logits_student: (N,C); computed in float32 or better, finite for logits up to +-1e4.
        logits_teacher: (N,C).
        temperature: T > 0.
        tikhonov: lambda > 0.
        form: "reference" (the published code): as above, and G is divided by C. "paper": INS has
            no factor T^2, and G is not divided.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar >= 0, or (N,); 0 where both networks agree.

    Raises:
        UserError: another value of `form`.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]])
        >>> skd_loss(logits, logits, temperature=4.0, tikhonov=0.1).item()
        0.0
    """
    if form not in FORMS:
        raise UserError(f"skd_loss: {not_one_of('form', form, FORMS)}")

    instance = kd_loss(logits_student, logits_teacher, temperature, reduction="none")
    scale = 1.0 / logits_student.shape[1]
    if form == "paper":
        instance = instance / temperature**2
        scale = 1.0

    lengths = _lengths(scale * _gram_difference(logits_student, logits_teacher), tikhonov)
    return reduced(instance + lengths, reduction)


def _gram_difference(logits_student: Tensor, logits_teacher: Tensor) -> Tensor:
    """G_s - G_t (N,N)."""
    with full_precision(logits_student):
        z_s = F.normalize(at_least_float32(logits_student), eps=SHORTEST)
        z_t = F.normalize(at_least_float32(logits_teacher), eps=SHORTEST)
        return z_s @ z_s.T - z_t @ z_t.T


def _lengths(difference: Tensor, tikhonov: float) -> Tensor:
    """The Mahalanobis length of each row of the symmetric D (N,N), (N,)."""
    number = len(difference)
    identity = torch.eye(number, dtype=difference.dtype, device=difference.device)

    with full_precision(difference):
        centred = difference - difference.mean(0, keepdim=True)
        covariance = centred.T @ centred / max(number - 1, 1)

        # With S = L L^T, D_i^T S^-1 D_i is the squared length of L^-1 D_i.
        root, _ = torch.linalg.cholesky_ex(covariance + tikhonov * identity)
        whitened = torch.linalg.solve_triangular(root, difference.T, upper=False)

    # sqrt(q + eps) - sqrt(eps), without cancellation.
    squares = whitened.square().sum(0)
    return squares / ((squares + EPSILON).sqrt() + EPSILON**0.5)


@METHODS.register("SKD")
class SKD(Distiller):
    """CE_WEIGHT * CE(student, target) + KD_WEIGHT * skd_loss(student, teacher)."""

    gathers_batch = True
    has_loss_per_image = True
    defaults = dict(
        CE_WEIGHT=Key(0.1, "weight of the cross-entropy with the labels", low=0.0),
        KD_WEIGHT=Key(
            0.45,
            "weight of both terms",
            low=0.0,
            source="the published 0.9, times the published code's mask, 1/2",
        ),
        T=Key(4.0, "softens both predictions", low=1e-3),
        TIKHONOV=Key(0.1, "lambda, added to the diagonal of the covariance", low=1e-4),
        FORM=Key("reference", "scales of the published code or of the paper", choices=FORMS),
    )

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        hp = self.hp
        loss_skd = skd_loss(
            student.logits, teacher.logits, hp.T, hp.TIKHONOV, hp.FORM, self.reduction
        )
        return {"loss_kd": hp.KD_WEIGHT * loss_skd}
