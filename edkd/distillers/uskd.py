"""Universal self-knowledge distillation (USKD): soft labels from the student itself.

Z. Yang, A. Zeng, Z. Li, T. Zhang, C. Yuan, Y. Li, "From Knowledge Distillation to Self-Knowledge
Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels", ICCV 2023,
arXiv:2303.13005.
"""

from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._math import (
    at_least_float32,
    cross_entropy,
    log_softmax,
    log_softmax_among,
)
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output

SMOOTHING = 0.1
"""Of the labels of the weak head."""


def uskd_loss(
    logits_student: Tensor,
    logits_weak: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    mu: float,
) -> Tensor:
    """alpha * L_target + beta * L_others + mu * CE(weak, target smoothed by 0.1).

    L_target is `target_loss`; L_others the cross-entropy of the student's prediction of the other
    classes from `zipf_labels`.

    Args:
        logits_student: (N,C), C >= 2; computed in float32 or better, finite for logits up to +-1e4.
        logits_weak: (N,C), of a head on an intermediate feature.
        target: (N,), class numbers; (N,C), class probabilities, of which the two largest count.
        alpha: >= 0.
        beta: >= 0.
        mu: >= 0.

    Returns:
        A scalar.

    Example:
        >>> logits = torch.zeros(1, 3)
        >>> loss = uskd_loss(logits, logits, torch.tensor([0]), alpha=1.0, beta=0.1, mu=0.005)
        >>> round(loss.item(), 4)  # 1.005 * log(3) + 0.1 * log(2)
        1.1734
    """
    share, label = labels_of(target)
    is_label = torch.zeros_like(logits_student, dtype=torch.bool).scatter(1, label, share > 0)

    labels = zipf_labels(logits_student, logits_weak, is_label)
    log_q = log_softmax_among(logits_student, ~is_label)
    loss_others = -(labels * log_q).sum(1).mean()

    loss_target = target_loss(logits_student, share, label)
    loss_weak = cross_entropy(logits_weak, target, SMOOTHING)
    return alpha * loss_target + beta * loss_others + mu * loss_weak


def labels_of(target: Tensor) -> tuple[Tensor, Tensor]:
    """Shares and numbers of the classes of each image, (N,1); of mixed images (N,2).

    Args:
        target: (N,), class numbers; (N,C), class probabilities.
    """
    if target.dim() == 1:
        return torch.ones_like(target)[:, None], target[:, None]
    share, label = target.topk(2, dim=1)
    return share, label


def target_loss(logits: Tensor, share: Tensor, label: Tensor) -> Tensor:
    """-mean_i sum_y l_y log p(y) with l_y = p(y)^2 + share_y - mean_i p(y)^2, without gradient.

    Args:
        logits: (N,C); p = softmax(logits).
        share: (N,K), of each label of an image; l_y is 0 where it is 0.
        label: y (N,K).
    """
    log_p = log_softmax(logits).gather(1, label)
    squared = log_p.detach().exp().square()
    soft = torch.where(share > 0, squared + share - squared.mean(0, keepdim=True), 0.0)
    return -(soft * log_p).sum(1).mean()


@torch.no_grad()
def zipf_labels(logits: Tensor, logits_weak: Tensor, is_label: Tensor) -> Tensor:
    """1 / rank of each class that is no label of the image, divided by their sum, (N,C).

    The rank is that among all classes by w / (1 - w_y) + p / (1 - p_y), with the probabilities w of
    the weak head and p of the student, w_y and p_y those of the labels of the image.

    Differs from the published code: there the second summand is log p / (1 - log p_y), because a
    variable is overwritten before that, and 1e-6 is added to the denominators. For an image with
    one label in a batch of mixed images, one more class is left out there.

    Args:
        logits: (N,C).
        logits_weak: (N,C).
        is_label: (N,C), bool.
    """
    score = _odds(logits, is_label) + _odds(logits_weak, is_label)
    order = score.argsort(dim=1, descending=True, stable=True)
    rank = 1 + order.argsort(dim=1)
    label = (1 / rank.to(score.dtype)).masked_fill(is_label, 0)
    return label / label.sum(1, keepdim=True).clamp(min=torch.finfo(label.dtype).tiny)


def _odds(logits: Tensor, is_label: Tensor) -> Tensor:
    """p / (1 - p_y), without the cancellation in 1 - p_y; can be infinite for a label, (N,C)."""
    z = at_least_float32(logits)
    others = z.masked_fill(is_label, torch.finfo(z.dtype).min)
    return (z - others.logsumexp(1, keepdim=True)).exp()


@METHODS.register("USKD")
class USKD(Distiller):
    """CE_WEIGHT * CE(student, target) + uskd_loss(student, weak head, target); without a teacher.

    The weak head is a linear layer on the mean of the feature map before the last one. It learns
    with the student, and is not part of the deployed network.
    """

    needs_teacher = False
    student_needs = ("logits", "feats")
    defaults = dict(
        CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
        ALPHA=Key(1.0, "weight of the target-class term; 0.1 on CIFAR-100", low=0.0),
        BETA=Key(0.1, "weight of the non-target-class term", low=0.0),
        MU=Key(0.005, "weight of the weak head's loss; 0.1 on CIFAR-100", low=0.0),
    )

    gathers_batch = True

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        shapes = self.feature_shapes(student).feats
        if len(shapes) < 2:
            raise UserError(
                f"DISTILLER.TYPE USKD needs a student with two or more feature maps, but "
                f"{type(student).__name__} has {len(shapes)}; choose a convolutional network as "
                "DISTILLER.STUDENT"
            )
        self.weak_head = nn.Linear(shapes[-2][1], self.facts().num_classes)

    def losses(self, student: Output, teacher: None, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        hp = self.hp
        pooled = student.features["feats"][-2].mean((2, 3))
        logits_weak = self.weak_head(pooled)
        loss_uskd = uskd_loss(student.logits, logits_weak, batch.target, hp.ALPHA, hp.BETA, hp.MU)
        return {"loss_kd": loss_uskd}
