"""Deep mutual learning.

Y. Zhang, T. Xiang, T. M. Hospedales, H. Lu, "Deep Mutual Learning", CVPR 2018, arXiv:1706.00384.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edkd.distillers._cohort import COHORT_KEYS, Cohort
from edkd.distillers._math import cross_entropy, log_softmax, soft_divergence
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output


def mutual_loss(
    logits_student: Tensor, logits_peers: Sequence[Tensor], temperature: float = 1.0
) -> Tensor:
    """T^2 / (S - 1) * sum_j mean_n KL(p_j || p_i) of a student i and its S - 1 peers j.

    Args:
        logits_student: (N,C); computed in float32 or better, finite for logits up to +-1e4.
        logits_peers: S - 1 tensors (N,C); no gradient flows into them.
        temperature: T > 0; 1 in the paper.

    Returns:
        A scalar >= 0; 0 where all predictions agree.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> mutual_loss(logits, [logits, logits]).item()
        0.0
    """
    log_p = [log_softmax(logits.detach(), temperature) for logits in logits_peers]
    divergences = [soft_divergence(p, logits_student, temperature) for p in log_p]
    return torch.stack(divergences).mean()


def dml_loss(logits_students: Sequence[Tensor], target: Tensor, temperature: float = 1.0) -> Tensor:
    """sum_i CE(student i, target) + mutual_loss(student i, its peers), of S >= 2 students.

    Args:
        logits_students: S tensors (N,C), or one (S,N,C).
        target: (N,), class numbers.
        temperature: T > 0.

    Returns:
        A scalar >= 0.

    Example:
        >>> import torch
        >>> logits = torch.zeros(2, 1, 4)
        >>> round(dml_loss(logits, torch.tensor([0])).item(), 4)  # 2 * log(4)
        2.7726
    """
    logits = list(logits_students)
    mutual = [
        mutual_loss(row, logits[:i] + logits[i + 1 :], temperature) for i, row in enumerate(logits)
    ]
    return torch.stack([cross_entropy(row, target) for row in logits] + mutual).sum()


@METHODS.register("DML")
class DML(Cohort):
    """For each student: CE_WEIGHT * CE(student, target) + KD_WEIGHT * mutual_loss(student, peers).

    With UPDATE `simultaneous`, all students learn from predictions made before the step, with one
    forward pass each. With `alternating` (algorithm 1), one student after another learns from
    predictions that its peers make after their own update in the same step. All but the last
    student run forward twice for it, so the statistics of their batch norms move twice.
    """

    defaults = dict(
        **COHORT_KEYS,
        CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
        KD_WEIGHT=Key(1.0, "weight of the divergence from the peers", low=0.0),
        T=Key(1.0, "softens the predictions", low=1e-3),
        UPDATE=Key(
            "simultaneous",
            "all students at the same time, or one after another",
            choices=("simultaneous", "alternating"),
        ),
    )

    def set_up(self, student: Any, teacher: None, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        self.alternates = self.hp.UPDATE == "alternating"
        self.turns = len(student) if self.alternates else 1
        self.outputs: list[Output] = []  # of the present batch, between turns

    def losses(self, students: list[Output], teacher: None, batch: Batch) -> dict[str, Tensor]:
        """See `Cohort`."""
        logits = [student.logits for student in students]
        losses = {}
        for i in self.learners():
            peers = logits[:i] + logits[i + 1 :]
            loss_kd = mutual_loss(logits[i], peers, self.hp.T)
            losses[f"loss_kd_student{i + 1}"] = self.hp.KD_WEIGHT * loss_kd
        return losses

    def learners(self) -> Sequence[int]:
        """All students, or the one whose turn it is."""
        return [self.turn] if self.alternates else super().learners()

    def run_students(self, batch: Batch) -> list[Output]:
        """In a later turn, only the student that was updated in the turn before runs again."""
        if self.turn == 0:
            outputs = super().run_students(batch)
        else:
            outputs = self.outputs
            updated = self.turn - 1
            with torch.no_grad():
                outputs[updated] = Output(*self.student[updated](batch.image))

        self.outputs = outputs if self.alternates else []
        return outputs
