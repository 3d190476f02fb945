"""What the methods share in which students learn from one another, without a teacher."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._common import at_least_float32, kl_divergence

COHORT = dict(
    STUDENTS=[],  # names of the architectures, any mix; empty: NUM_STUDENTS times DISTILLER.STUDENT
    NUM_STUDENTS=2,  # where STUDENTS is empty, >= 2
)


class Cohort(Distiller):
    """Students of any architectures, trained together; each of them is evaluated and saved.

    Args:
        student: an `nn.ModuleList` of S students.
    """

    needs_teacher = False
    is_cohort = True
    min_students = 2
    student: nn.ModuleList

    @classmethod
    def student_names(cls, cfg: Any) -> list[str]:
        """STUDENTS of the method's node, else NUM_STUDENTS times DISTILLER.STUDENT."""
        node = cfg[cfg.DISTILLER.TYPE]
        return list(node.STUDENTS) or [cfg.DISTILLER.STUDENT] * node.NUM_STUDENTS

    def students(self) -> dict[str, nn.Module]:
        """By name: student1, student2, ..."""
        return {f"student{i}": student for i, student in enumerate(self.student, 1)}

    def forward_students(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (S,N,C) of the students for images (N,3,H,W), and their pooled features, S tensors (N,D)."""
        logits, features = zip(*(student(image) for student in self.student), strict=True)
        return torch.stack(logits), [feature["pooled_feat"].flatten(1) for feature in features]

    def forward_test(self, image: Tensor) -> Tensor:
        """Logits (S,N,C) of the students for images (N,3,H,W)."""
        return self.forward_students(image)[0]


def cohort_losses(
    logits: Tensor, target: Tensor, log_p: Sequence[Tensor], weights: tuple[Any, Any], temperature: float
) -> dict[str, Tensor]:
    """The terms loss_ce_student1, loss_kd_student1, ... of S students that each learn from a target of its own.

    Args:
        logits: (S,N,C).
        target: (N,), class numbers.
        log_p: S times the softened log-probabilities (N,C) from which a student learns.
        weights: of the cross-entropies and of the divergences.
    """
    losses = {}
    for i, (row, p) in enumerate(zip(logits, log_p, strict=True), 1):
        losses[f"loss_ce_student{i}"] = weights[0] * cross_entropy(row, target)
        losses[f"loss_kd_student{i}"] = weights[1] * soft_divergence(p, row, temperature)
    return losses


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """The mean over the batch, a scalar, from logits (N,C) and targets (N,)."""
    return F.cross_entropy(at_least_float32(logits), target)


def soft_divergence(log_p: Tensor, logits_student: Tensor, temperature: float) -> Tensor:
    """T^2 * mean_n KL(p || p_s), p_s = softmax(logits_student / T), from log p (N,C) and logits (N,C); a scalar."""
    log_p_s = F.log_softmax(at_least_float32(logits_student) / temperature, 1)
    return temperature**2 * kl_divergence(log_p, log_p_s).mean()


def soft_log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / T) over the classes, the last dimension, in float32 or better."""
    return F.log_softmax(at_least_float32(logits) / temperature, -1)


def feature_sizes(students: Sequence[nn.Module]) -> list[int]:
    """D of each student's pooled features: what its classifier, the last layer with weights, takes in."""
    layers = [[m for m in student.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1] for student in students]
    return [layer.weight.shape[1] for layer in layers]
