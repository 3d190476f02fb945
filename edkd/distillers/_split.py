"""The distillation loss in two parts: that of the target class, and that of the other classes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edkd.distillers._math import check_class_numbers, decoupled_kl, reduced, warmup_factor
from edkd.types import Batch

Parts = tuple[Tensor, Tensor]
"""Losses (N,) of the target class and of the other classes."""

FIRST_SHARE = 0.05
"""Share of the classes that count at first, where their number grows."""


@dataclass(frozen=True)
class Split:
    """How an update rule wants the parts of the distillation loss.

    KL(teacher || student) = TCKD + (1 - p_t) * NCKD, with p_t the teacher's softened probability of
    the target class, TCKD the divergence of the binary distributions target / not target, and NCKD
    that of the distributions over the other classes (B. Zhao et al., CVPR 2022, equation 6).

    Args:
        as_dkd: whether the parts are alpha * TCKD and beta * NCKD, after a warm-up; else TCKD and
            (1 - p_t) * NCKD.
        alpha: weight of TCKD, >= 0.
        beta: weight of NCKD, >= 0.
        warmup: epochs in which both grow.
        top_k: number of other classes that NCKD compares, the teacher's likeliest; 0: all.
        epochs: of the training. In the first third the number grows linearly to `top_k` from
            FIRST_SHARE of all classes, in the last third from `top_k` to all. 0: it is constant.
    """

    as_dkd: bool = False
    alpha: float = 1.0
    beta: float = 8.0
    warmup: int = 20
    top_k: int = 0
    epochs: int = 0

    def kd(
        self, logits_student: Tensor, logits_teacher: Tensor, temperature: float, batch: Batch
    ) -> Parts:
        """T^2 times both parts of a divergence, weighted, for each image.

        Args:
            logits_student: (N,C), C >= 2.
            logits_teacher: (N,C).
            temperature: T > 0.
            batch: its targets, class numbers, and its epoch are read.
        """
        check_class_numbers(batch.target)
        kept = self.kept(logits_teacher, batch)
        tckd, nckd, margin_t = decoupled_kl(
            logits_student, logits_teacher, batch.target, temperature, kept
        )
        if self.as_dkd:
            factor = temperature**2 * warmup_factor(batch.epoch, self.warmup)
            return factor * self.alpha * tckd, factor * self.beta * nckd

        # 1 - sigmoid(m) = sigmoid(-m), without cancellation.
        return temperature**2 * tckd, temperature**2 * torch.sigmoid(-margin_t) * nckd

    def kept(self, logits_teacher: Tensor, batch: Batch) -> Tensor | None:
        """The other classes that count, (N,C), bool; None: all."""
        if not self.top_k:
            return None
        num_classes = logits_teacher.shape[1]
        number = self.number_kept(batch.epoch, num_classes)

        target = batch.target[:, None]
        others = logits_teacher.scatter(1, target, -torch.inf)
        rank = others.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return rank < number

    def number_kept(self, epoch: int | Tensor, num_classes: int) -> int | Tensor:
        """How many other classes count in an epoch, at least 1."""
        most = num_classes - 1
        top_k = min(self.top_k, most)
        if not self.epochs:
            return top_k

        # Piecewise linear through (0, first), (1/3, top_k), (2/3, top_k), (1, most).
        share = torch.as_tensor(epoch).float() / self.epochs
        first = min(FIRST_SHARE * num_classes, top_k)
        rise = (3 * share).clamp(max=1.0)
        last_rise = (3 * share - 2).clamp(min=0.0)
        number = first + rise * (top_k - first) + last_rise * (most - top_k)
        return number.round().clamp(min=1)


def split_terms(parts: Parts, weight: float | Tensor, reduction: str) -> dict[str, Tensor]:
    """The terms of both parts.

    Args:
        parts: losses (N,).
        weight: of both.
        reduction: "mean"; or "none", for the loss of each image.
    """
    target, other = (weight * reduced(part, reduction) for part in parts)
    return {"loss_kd_target": target, "loss_kd_other": other}
