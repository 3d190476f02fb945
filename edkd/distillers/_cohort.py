"""The contract of methods in which students learn from one another, without a teacher."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._layout import contiguous_output
from edkd.distillers._whole_batch import whole_batch
from edkd.keys import Key
from edkd.types import Batch, Output

COHORT_KEYS = dict(
    STUDENTS=Key([], "architectures, any mix; empty: NUM_STUDENTS times DISTILLER.STUDENT"),
    NUM_STUDENTS=Key(2, "number of students where STUDENTS is empty", low=2, high=1000),
)


class Cohort(Distiller):
    """Students of any architectures that train together; each is evaluated and saved.

    `losses(students, None, batch)` gets a list of their outputs and names its terms
    `loss_kd_student1`, ...; the base class adds `loss_ce_student1`, ...

    Args:
        student: an `nn.ModuleList` of S students.
    """

    needs_teacher = False
    is_cohort = True
    min_students = 2
    turn = 0
    """Number of the present update of the batch, from 0."""
    student: nn.ModuleList

    @classmethod
    def student_names(cls, cfg: Any) -> list[str]:
        """STUDENTS of the method's node, else NUM_STUDENTS times DISTILLER.STUDENT."""
        node = cfg[cfg.DISTILLER.TYPE]
        return list(node.STUDENTS) or [cfg.DISTILLER.STUDENT] * node.NUM_STUDENTS

    def students(self) -> dict[str, nn.Module]:
        """By name: student1, student2, ..."""
        return {f"student{number}": student for number, student in enumerate(self.student, 1)}

    def training_step(self, batch: Batch, turn: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Distiller.training_step`; the logits are (S,N,C)."""
        self.turn = turn
        students = self.run_students(batch)
        logits = torch.stack([student.logits for student in students])
        with whole_batch(self, students, None, batch) as (outputs, _, whole):
            return logits.detach(), self._terms_of_students(outputs, whole)

    def _terms_of_students(self, students: list[Output], batch: Batch) -> dict[str, Tensor]:
        """The task loss and the terms of `losses` of those that learn, then all other terms."""
        terms = self.losses(students, None, batch)
        losses: dict[str, Tensor] = {}
        for i in self.learners():
            losses[f"loss_ce_student{i + 1}"] = self.task_loss(students[i].logits, batch.target)
            losses[f"loss_kd_student{i + 1}"] = terms.pop(f"loss_kd_student{i + 1}")
        return losses | terms

    def run_students(self, batch: Batch) -> list[Output]:
        """The outputs of all students for the batch."""
        return [contiguous_output(student(batch.image)) for student in self.student]

    def learners(self) -> Sequence[int]:
        """Numbers, from 0, of the students that learn in the update `turn`."""
        return range(len(self.student))

    def forward_test(self, image: Tensor) -> Tensor:
        """Logits (S,N,C) of the students for images (N,3,H,W)."""
        return torch.stack([student(image)[0] for student in self.student])

    def pooled_sizes(self) -> list[int]:
        """D of each student's pooled features."""
        shapes = [self.feature_shapes(student).pooled_feat for student in self.student]
        return [math.prod(shape) for shape in shapes]


def stack_logits(students: Sequence[Output]) -> Tensor:
    """Logits (S,N,C) of S students."""
    return torch.stack([student.logits for student in students])


def pooled_features(students: Sequence[Output]) -> list[Tensor]:
    """Pooled features (N,D) of each student."""
    return [student.features["pooled_feat"].flatten(1) for student in students]
