"""Deep mutual learning.

Y. Zhang, T. Xiang, T. M. Hospedales, H. Lu, "Deep Mutual Learning", CVPR 2018, arXiv:1706.00384.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers._base import register
from edkd.distillers._cohort import COHORT, Cohort, cross_entropy, soft_divergence, soft_log_probabilities


def mutual_loss(logits_student: Tensor, logits_peers: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """T^2 / (S - 1) * sum_j mean_n KL(p_j || p_i), of a student i and its S - 1 peers j.

    Args:
        logits_student: (N,C); computed in float32 or better, finite for logits up to +-1e4.
        logits_peers: S - 1 tensors (N,C); no gradient flows into them.
        temperature: T > 0; the paper has 1.

    Returns:
        A scalar >= 0, 0 where all agree.
    """
    log_p = [soft_log_probabilities(logits.detach(), temperature) for logits in logits_peers]
    return torch.stack([soft_divergence(p, logits_student, temperature) for p in log_p]).mean()


def dml_loss(logits_students: Sequence[Tensor], target: Tensor, temperature: float = 1.0) -> Tensor:
    """sum_i CE(student i, target) + mutual_loss(student i, the others), of S >= 2 students.

    Args:
        logits_students: S tensors (N,C), or one (S,N,C).
        target: (N,), class numbers.
        temperature: T > 0.
    """
    logits = list(logits_students)
    mutual = [mutual_loss(row, logits[:i] + logits[i + 1 :], temperature) for i, row in enumerate(logits)]
    return torch.stack([cross_entropy(row, target) for row in logits] + mutual).sum()


@register("DML")
class DML(Cohort):
    """Of each student: CE_WEIGHT * CE(student, target) + KD_WEIGHT * mutual_loss(student, its peers).

    UPDATE `simultaneous`: all learn from predictions made before the step, with one forward pass each. `alternating`
    (algorithm 1): one after another, each learns from predictions that its peers make after their own update of the
    same step; all but the last pass forward twice for it, so their batch norms' statistics move twice.
    """

    defaults = dict(
        **COHORT,
        CE_WEIGHT=1.0,  # of the cross-entropy with the labels
        KD_WEIGHT=1.0,  # of the divergence from the peers
        T=1.0,  # softens the predictions, > 0
        UPDATE="simultaneous",  # simultaneous | alternating
    )
    choices = dict(UPDATE=("simultaneous", "alternating"))

    def __init__(self, student: nn.ModuleList, teacher: None, cfg: Any) -> None:
        super().__init__(student, teacher)
        self.ce_weight, self.kd_weight, self.temperature = cfg.DML.CE_WEIGHT, cfg.DML.KD_WEIGHT, cfg.DML.T
        self.turns = len(student) if cfg.DML.UPDATE == "alternating" else 1
        self.logits: list[Tensor] = []  # what the students said last, while they take turns

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Distiller.forward_train`; the logits are (S,N,C), the terms loss_ce_student1, loss_kd_student1, ..."""
        turn = kwargs.get("turn", 0)
        if turn == 0:
            logits = [student(image)[0] for student in self.student]
        else:
            logits = self.logits
            with torch.no_grad():
                logits[turn - 1] = self.student[turn - 1](image)[0]
        self.logits = logits if turn + 1 < self.turns else []
        learners = range(len(logits)) if self.turns == 1 else [turn]
        losses = {}
        for i in learners:
            losses_kd = mutual_loss(logits[i], logits[:i] + logits[i + 1 :], self.temperature)
            losses[f"loss_ce_student{i + 1}"] = self.ce_weight * cross_entropy(logits[i], target)
            losses[f"loss_kd_student{i + 1}"] = self.kd_weight * losses_kd
        return torch.stack(logits).detach(), losses
