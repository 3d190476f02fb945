"""LumiNet: predictions from logits that are standardised per class over the batch.

M. I. Hossain, M. M. L. Elahi, S. Ramasinghe, A. Cheraghian, F. Rahman, N. Mohammed, S. Rahman,
"LumiNet: Perception-Driven Knowledge Distillation via Statistical Logit Calibration", TMLR 2025,
arXiv:2310.03669.
"""

from torch import Tensor

from edkd.distillers._base import Distiller
from edkd.distillers._math import (
    at_least_float32,
    kl_divergence,
    log_softmax,
    reduced,
    warmup_factor,
)
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output

EPSILON = 1e-5
"""Added to the variance of a class, as published."""


def perception(logits: Tensor) -> Tensor:
    """u_ic = (z_ic - mean_i z_ic) / sqrt(var_i z_ic + 1e-5), with the biased variance.

    Args:
        logits: (N,C); computed in float32 or better.

    Returns:
        (N,C); 0 for a class that is constant over the batch, as in a batch of one image.
    """
    z = at_least_float32(logits)
    centred = z - z.mean(0, keepdim=True)
    variance = centred.square().mean(0, keepdim=True)
    return centred / (variance + EPSILON).sqrt()


def luminet_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    alpha: float,
    temperature: float,
    reduction: str = "mean",
) -> Tensor:
    """alpha^2 * mean_i KL(softmax(u_t_i / T) || softmax(u_s_i / T)) with u = perception(logits).

    The statistics are those of the batch, so the loss depends on its size. A batch of one image
    has the loss 0.

    Args:
        logits_student: (N,C); computed in float32 or better, finite for logits up to +-1e4.
        logits_teacher: (N,C).
        alpha: scale, >= 0; its square is the weight.
        temperature: T > 0.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar >= 0, or (N,); 0 where both predictions agree.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]])
        >>> luminet_loss(logits, 3 * logits + 1, alpha=33.0, temperature=4.0).item() < 1e-4
        True
    """
    log_p_s = log_softmax(perception(logits_student), temperature)
    log_p_t = log_softmax(perception(logits_teacher), temperature)
    return alpha**2 * reduced(kl_divergence(log_p_t, log_p_s), reduction)


@METHODS.register("LUMINET")
class LUMINET(Distiller):
    """CE_WEIGHT * CE(student, target) + min(epoch / WARMUP, 1) * luminet_loss(student, teacher).

    The published files give CE_WEIGHT, ALPHA and T below SOLVER; here they belong to the method.
    """

    gathers_batch = True
    has_loss_per_image = True
    defaults = dict(
        CE_WEIGHT=Key(2.0, "weight of the cross-entropy with the labels", low=0.0),
        ALPHA=Key(
            33.0,
            "its square is the weight of the divergence",
            source="the published file for resnet32x4 -> resnet8x4; the default of its code is 31",
            low=0.0,
        ),
        T=Key(4.0, "softens both predictions", low=1e-3),
        WARMUP=Key(20, "the distillation term grows over these epochs", unit="epochs", low=0),
    )

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        hp = self.hp
        loss_luminet = luminet_loss(student.logits, teacher.logits, hp.ALPHA, hp.T, self.reduction)
        return {"loss_kd": warmup_factor(batch.epoch, hp.WARMUP) * loss_luminet}
