"""KDCL: students learn from the best that can be made of what they say.

Q. Guo, X. Wang, Y. Wu, Z. Yu, D. Liang, X. Hu, P. Luo, "Online Knowledge Distillation via Collaborative Learning",
CVPR 2020.
"""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from edkd.distillers._base import register
from edkd.distillers._cohort import COHORT, Cohort, cohort_losses, soft_log_probabilities
from edkd.distillers._common import at_least_float32

ROUNDS = 40
"""Of exponentiated gradient, which brings the weights of `linear` to within about 1 % of the least cross-entropy."""


def collaborative_logits(logits: Tensor, target: Tensor, ensemble: str) -> Tensor:
    """The logits (N,C), in float32 or better and without gradient, from which S students learn (section 3).

    Args:
        logits: (S,N,C).
        target: (N,), class numbers.
        ensemble: `naive`: of each image, those of the student with the least cross-entropy. `linear`: their sum
            with the weights, >= 0 and of sum 1, that have about the least cross-entropy in the batch. `minlogit`: of
            each class the least logit, those of the target being taken off first.
    """
    logits = at_least_float32(logits.detach())
    size, number, classes = logits.shape
    if ensemble == "minlogit":
        return (logits - logits.gather(2, target.expand(size, number)[:, :, None])).amin(0)
    if ensemble == "naive":
        log_p = F.log_softmax(logits, 2).gather(2, target.expand(size, number)[:, :, None])
        best = log_p.argmax(0)[None].expand(1, number, classes)
        return logits.gather(0, best)[0]
    scores = logits.new_zeros(size)
    for i in range(1, ROUNDS + 1):  # the loss is convex in the weights; its gradient is written out
        error = weighted_sum(scores.softmax(0), logits).softmax(1) - F.one_hot(target, classes)
        gradient = (logits * error).sum((1, 2)) / number
        scores = scores - 2 / math.sqrt(i) * gradient / gradient.abs().amax().clamp(min=1e-12)
    return weighted_sum(scores.softmax(0), logits)


def weighted_sum(weights: Tensor, logits: Tensor) -> Tensor:
    """(N,C), of logits (S,N,C) with weights (S,); unlike a matrix product never in half precision."""
    return (weights[:, None, None] * logits).sum(0)


@register("KDCL")
class KDCL(Cohort):
    """sum_i CE_WEIGHT * CE(z_i) + KD_WEIGHT * T^2 * KL(p_e || p_i), p_e the softened `collaborative_logits`.

    Differs from the paper: all students see the same view of an image. Its KDCL-General, which estimates weights on
    held-out images during training, is not among the ensembles.
    """

    defaults = dict(
        **COHORT,
        CE_WEIGHT=1.0,  # of the cross-entropies with the labels
        KD_WEIGHT=1.0,  # of the divergences from the ensemble
        T=2.0,  # softens the predictions, > 0
        ENSEMBLE="minlogit",  # naive | linear | minlogit
    )
    choices = dict(ENSEMBLE=("naive", "linear", "minlogit"))

    def __init__(self, student: nn.ModuleList, teacher: None, cfg: Any) -> None:
        super().__init__(student, teacher)
        node = cfg.KDCL
        self.ce_weight, self.kd_weight, self.temperature = node.CE_WEIGHT, node.KD_WEIGHT, node.T
        self.ensemble = node.ENSEMBLE

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Distiller.forward_train`; the logits are (S,N,C), the terms loss_ce_student1, loss_kd_student1, ..."""
        logits, _ = self.forward_students(image)
        log_p = soft_log_probabilities(collaborative_logits(logits, target, self.ensemble), self.temperature)
        weights = self.ce_weight, self.kd_weight
        return logits.detach(), cohort_losses(logits, target, [log_p] * len(logits), weights, self.temperature)
