"""KDCL: students learn from an ensemble of their logits.

Q. Guo, X. Wang, Y. Wu, Z. Yu, D. Liang, X. Hu, P. Luo, "Online Knowledge Distillation via
Collaborative Learning", CVPR 2020.
"""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from edkd.distillers._cohort import COHORT_KEYS, Cohort, stack_logits
from edkd.distillers._math import (
    at_least_float32,
    check_class_numbers,
    log_softmax,
    soft_divergence,
)
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output

ENSEMBLES = ("naive", "linear", "minlogit")

ROUNDS = 40
"""Of exponentiated gradient, to within about 1 % of the least cross-entropy (`linear`)."""


def collaborative_logits(logits: Tensor, target: Tensor, ensemble: str) -> Tensor:
    """The logits from which S students learn (section 3), without gradient.

    Args:
        logits: (S,N,C); computed in float32 or better.
        target: (N,), class numbers.
        ensemble: `naive`: for each image, the logits of the student with the least cross-entropy.
            `linear`: the sum of all logits with weights, >= 0 and of sum 1, that nearly minimise
            the cross-entropy of the batch. `minlogit`: for each class the least logit, after
            each student's logit of the target is subtracted.

    Returns:
        (N,C).

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[3.0, 0.0]], [[1.0, 0.5]]])
        >>> collaborative_logits(logits, torch.tensor([0]), "minlogit").tolist()
        [[0.0, -3.0]]
    """
    check_class_numbers(target)
    logits = at_least_float32(logits.detach())
    if ensemble == "minlogit":
        return (logits - _of_target(logits, target)).amin(0)

    if ensemble == "naive":
        log_p = _of_target(F.log_softmax(logits, 2), target)
        best = log_p.argmax(0)[None].expand(1, *logits.shape[1:])
        return logits.gather(0, best)[0]

    return _weighted_sum(_best_weights(logits, target), logits)


def _of_target(values: Tensor, target: Tensor) -> Tensor:
    """The target's entry of each row, (S,N,1), from values (S,N,C)."""
    index = target.expand(values.shape[:2])[:, :, None]
    return values.gather(2, index)


def _best_weights(logits: Tensor, target: Tensor) -> Tensor:
    """Weights (S,) of the logits (S,N,C) that nearly minimise the mean cross-entropy.

    The loss is convex in the weights; its gradient is written out.
    """
    num_students, num_images, num_classes = logits.shape
    one_hot = F.one_hot(target, num_classes)
    scores = logits.new_zeros(num_students)

    for i in range(1, ROUNDS + 1):
        error = _weighted_sum(scores.softmax(0), logits).softmax(1) - one_hot
        gradient = (logits * error).sum((1, 2)) / num_images
        step = 2 / math.sqrt(i)
        scores = scores - step * gradient / gradient.abs().amax().clamp(min=1e-12)

    return scores.softmax(0)


def _weighted_sum(weights: Tensor, logits: Tensor) -> Tensor:
    """(N,C), from weights (S,) and logits (S,N,C).

    Unlike a matrix product, autocast never computes it in half precision.
    """
    return (weights[:, None, None] * logits).sum(0)


@METHODS.register("KDCL")
class KDCL(Cohort):
    """sum_i CE_WEIGHT * CE(z_i) + KD_WEIGHT * T^2 * KL(p_e || p_i).

    p_e is the softened prediction of `collaborative_logits`.

    Differs from the paper: all students get the same view of an image. KDCL-General, which
    estimates weights on held-out images during training, is not among the ensembles.
    """

    needs_class_numbers = True
    defaults = dict(
        **COHORT_KEYS,
        CE_WEIGHT=Key(1.0, "weight of the cross-entropies with the labels", low=0.0),
        KD_WEIGHT=Key(1.0, "weight of the divergences from the ensemble", low=0.0),
        T=Key(2.0, "softens the predictions", low=1e-3),
        ENSEMBLE=Key("minlogit", "how the ensemble is formed", choices=ENSEMBLES),
    )

    def set_up(self, student: Any, teacher: None, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        # Its weights are fitted to the whole batch.
        self.gathers_batch = self.hp.ENSEMBLE == "linear"

    def losses(self, students: list[Output], teacher: None, batch: Batch) -> dict[str, Tensor]:
        """See `Cohort`."""
        logits = collaborative_logits(stack_logits(students), batch.target, self.hp.ENSEMBLE)
        log_p = log_softmax(logits, self.hp.T)

        losses = {}
        for number, student in enumerate(students, 1):
            divergence = soft_divergence(log_p, student.logits, self.hp.T)
            losses[f"loss_kd_student{number}"] = self.hp.KD_WEIGHT * divergence
        return losses
