"""NormKD: a temperature for each image and network, from the spread of its logits.

Z. Chi, T. Zheng, H. Li, Z. Yang, B. Wu, B. Lin, D. Cai, "NormKD: Normalized Logits for Knowledge
Distillation", 2023, arXiv:2308.00520.
"""

from typing import Any

from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._math import (
    at_least_float32,
    decoupled_kl,
    kl_divergence,
    log_softmax,
    reduced,
    warmup_factor,
)
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output

BASES = ("kd", "dkd")

MIN_STD = 1e-2
"""Rows of logits with less spread, as those of a head of zeros, are divided by this one."""


def own_temperature(logits: Tensor, factor: float) -> Tensor:
    """T_i = k * max(std_c z_i, 0.01), with the unbiased standard deviation.

    Args:
        logits: z (N,C), C >= 2; computed in float32 or better.
        factor: k > 0.

    Returns:
        (N,1).
    """
    std = at_least_float32(logits).std(1, keepdim=True)
    return factor * std.clamp(min=MIN_STD)


def normkd_loss(
    logits_student: Tensor, logits_teacher: Tensor, factor: float, reduction: str = "mean"
) -> Tensor:
    """mean_i T_t,i^2 * KL(softmax(z_t,i / T_t,i) || softmax(z_s,i / T_s,i)).

    T is the `own_temperature` of each row. Gradients flow through that of the student.

    Differs from the published code: a row of logits with a standard deviation below 0.01, such as
    a constant one, is divided by 0.01 k; there the loss is NaN.

    Args:
        logits_student: (N,C), C >= 2; computed in float32 or better, finite for logits up to +-1e4.
        logits_teacher: (N,C).
        factor: k > 0.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar >= 0, or (N,); 0 where the logits agree but for their scale.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> normkd_loss(logits, logits, factor=2.0).item()
        0.0
    """
    temperature_t = own_temperature(logits_teacher, factor)
    log_p_s = log_softmax(logits_student, own_temperature(logits_student, factor))
    log_p_t = log_softmax(logits_teacher, temperature_t)
    return reduced(temperature_t[:, 0] ** 2 * kl_divergence(log_p_t, log_p_s), reduction)


def normdkd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    factor: float,
    reduction: str = "mean",
) -> Tensor:
    """mean_i T_t,i^2 * (alpha * TCKD_i + beta * NCKD_i): DKD at the temperatures of `normkd_loss`.

    Args:
        logits_student: (N,C), C >= 2.
        logits_teacher: (N,C).
        target: (N,), class numbers.
        alpha: weight of TCKD, see `dkd_loss`, >= 0.
        beta: weight of NCKD, >= 0.
        factor: k > 0.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar >= 0, or (N,); 0 where the logits agree but for their scale.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> normdkd_loss(logits, logits, torch.tensor([0]), 4.0, 5.0, factor=2.0).item()
        0.0
    """
    temperature_t = own_temperature(logits_teacher, factor)
    z_s = at_least_float32(logits_student) / own_temperature(logits_student, factor)
    z_t = at_least_float32(logits_teacher) / temperature_t
    tckd, nckd, _ = decoupled_kl(z_s, z_t, target, 1.0)
    return reduced(temperature_t[:, 0] ** 2 * (alpha * tckd + beta * nckd), reduction)


@METHODS.register("NORMKD")
class NORMKD(Distiller):
    """LOSS.CE_WEIGHT * CE(student, target) + the distillation term.

    BASE kd: LOSS.KD_WEIGHT * normkd_loss(student, teacher). BASE dkd, for which LOSS.CE_WEIGHT 1
    and LOSS.KD_WEIGHT 1 are published: LOSS.KD_WEIGHT * min(epoch / WARMUP, 1) * normdkd_loss.
    """

    has_loss_per_image = True
    defaults = dict(
        TEMPERATURE_NORM=Key(2.0, "temperature of logits with a standard deviation of 1", low=1e-3),
        BASE=Key("kd", "loss of KD or of DKD", choices=BASES),
        ALPHA=Key(1.0, "dkd: weight of the target-class term", low=0.0),
        BETA=Key(8.0, "dkd: weight of the non-target-class term", low=0.0),
        WARMUP=Key(20, "dkd: the distillation term grows over these epochs", unit="epochs", low=0),
        LOSS=dict(
            CE_WEIGHT=Key(0.1, "weight of the cross-entropy with the labels", low=0.0),
            KD_WEIGHT=Key(0.9, "weight of the distillation term", low=0.0),
        ),
    )

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        self.is_decoupled = self.hp.BASE == "dkd"
        if self.is_decoupled and (cfg.SOLVER.MIXUP or cfg.SOLVER.CUTMIX):
            raise UserError(
                "NORMKD.BASE dkd needs the class of each image, but SOLVER.MIXUP and SOLVER.CUTMIX "
                "mix classes; set them to 0, or NORMKD.BASE to kd"
            )

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        hp = self.hp
        logits = student.logits, teacher.logits
        if not self.is_decoupled:
            loss_kd = normkd_loss(*logits, hp.TEMPERATURE_NORM, self.reduction)
            return {"loss_kd": hp.LOSS.KD_WEIGHT * loss_kd}

        loss_dkd = normdkd_loss(
            *logits, batch.target, hp.ALPHA, hp.BETA, hp.TEMPERATURE_NORM, self.reduction
        )
        factor = hp.LOSS.KD_WEIGHT * warmup_factor(batch.epoch, hp.WARMUP)
        return {"loss_kd": factor * loss_dkd}
