"""Cross-view consistency regularisation for knowledge distillation.

W. Zhang, D. Liu, W. Cai, C. Ma, "Cross-View Consistency Regularisation for Knowledge Distillation",
ACM MM 2024.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from edkd.distillers._base import Distiller, Views
from edkd.distillers._math import kl_divergence, log_softmax, reduced
from edkd.distillers._split import split_terms
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch

Logits = Mapping[str, Tensor]
"""Logits (N,C) by the name of the view, "weak" and "strong"."""

WITHIN = (("weak", "weak"), ("strong", "strong"))
ACROSS = (("strong", "weak"), ("weak", "strong"))
"""Views of the student and of the teacher that are compared."""


def crld_loss(
    logits_student: Logits,
    logits_teacher: Logits,
    confidence: Logits,
    weights: tuple[float, float],
    thresholds: tuple[float, float],
    temperature: float,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """The losses within views and across views, weighted, with KD(s, t) = T^2 * KL(p_t || p_s).

    within = mean_i w_1 * 1[c_weak,i >= tau_1] * (KD(s_weak, t_weak) + KD(s_strong, t_strong))
    across = mean_i w_2 * 1[c_strong,i >= tau_2] * (KD(s_strong, t_weak) + KD(s_weak, t_strong))

    Args:
        logits_student: (N,C) for each view; computed in float32 or better, finite for logits up to
            +-1e4.
        logits_teacher: the same.
        confidence: (N,) for each view, see `confidences`.
        weights: w_1 and w_2, >= 0.
        thresholds: tau_1 and tau_2.
        temperature: T > 0.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        Two scalars >= 0, or (N,); 0 where the student agrees with the teacher; `across` only if
        the teacher also predicts the same for both views.

    Example:
        >>> import torch
        >>> logits = {name: torch.tensor([[2.0, 0.0, -1.0]]) for name in ("weak", "strong")}
        >>> within, across = crld_loss(
        ...     logits, logits, confidences(logits), (2.0, 0.5), (0.9, 0.2), temperature=4.0
        ... )
        >>> (within.item(), across.item())
        (0.0, 0.0)
    """

    def kd(view_student: str, view_teacher: str) -> Tensor:
        log_p_s = log_softmax(logits_student[view_student], temperature)
        log_p_t = log_softmax(logits_teacher[view_teacher], temperature)
        return temperature**2 * kl_divergence(log_p_t, log_p_s)

    factors = crld_factors(confidence, weights, thresholds)
    within = factors[0] * torch.stack([kd(*pair) for pair in WITHIN]).sum(0)
    across = factors[1] * torch.stack([kd(*pair) for pair in ACROSS]).sum(0)
    return reduced(within, reduction), reduced(across, reduction)


def crld_factors(
    confidence: Logits, weights: tuple[float, float], thresholds: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """w_1 * 1[c_weak >= tau_1] and w_2 * 1[c_strong >= tau_2], (N,) each; see `crld_loss`.

    The weak view decides for both comparisons within views, as in the published code.
    """
    within = confidence["weak"] >= thresholds[0]
    across = confidence["strong"] >= thresholds[1]
    return weights[0] * within, weights[1] * across


def confidences(logits_teacher: Logits) -> dict[str, Tensor]:
    """The largest probability of each image at temperature 1, (N,), for each view."""
    return {name: log_softmax(logits).amax(1).exp() for name, logits in logits_teacher.items()}


@METHODS.register("CRLD")
class CRLD(Distiller):
    """CE_WEIGHT * (CE(weak, target) + CE(strong, target)) + both parts of `crld_loss`."""

    views = ("weak", "strong")
    has_loss_per_image = True
    standardizes_itself = True  # the confidences are those of the teacher as it is
    can_split = True
    defaults = dict(
        CE_WEIGHT=Key(1.0, "weight of the cross-entropies of both views", low=0.0),
        WV_WEIGHT=Key(2.0, "weight of the comparisons within views", low=0.0),
        CV_WEIGHT=Key(0.5, "weight of the comparisons across views", low=0.0),
        TEMPERATURE=Key(4.0, "softens both predictions", low=1e-3),
        TAU_W=Key(
            0.9,
            "the teacher's lowest confidence in the weak view, for comparisons within views",
            low=0.0,
            high=1.0,
            includes_high=True,
        ),
        TAU_S=Key(
            0.2,
            "the teacher's lowest confidence in the strong view, for comparisons across views",
            low=0.0,
            high=1.0,
            includes_high=True,
        ),
    )

    def losses(self, student: Views, teacher: Views, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        hp = self.hp
        weights = (hp.WV_WEIGHT, hp.CV_WEIGHT)
        thresholds = (hp.TAU_W, hp.TAU_S)
        confidence = confidences({name: teacher[name].logits for name in self.views})
        logits_s = {name: self.standardized(student[name].logits) for name in self.views}
        logits_t = {name: self.standardized(teacher[name].logits) for name in self.views}

        if self.split:
            factors = crld_factors(confidence, weights, thresholds)
            return self._split_losses(logits_s, logits_t, factors, batch)

        within, across = crld_loss(
            logits_s, logits_t, confidence, weights, thresholds, hp.TEMPERATURE, self.reduction
        )
        return {"loss_kd_within": within, "loss_kd_across": across}

    def _split_losses(
        self, logits_s: Logits, logits_t: Logits, factors: tuple[Tensor, Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """The same comparisons, each in two parts."""
        assert self.split is not None
        target: list[Tensor] = []
        other: list[Tensor] = []
        for factor, pairs in zip(factors, (WITHIN, ACROSS), strict=True):
            for view_s, view_t in pairs:
                parts = self.split.kd(
                    logits_s[view_s], logits_t[view_t], self.hp.TEMPERATURE, batch
                )
                target.append(factor * parts[0])
                other.append(factor * parts[1])

        both = (torch.stack(target).sum(0), torch.stack(other).sum(0))
        return split_terms(both, 1.0, self.reduction)
