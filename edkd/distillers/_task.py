"""The task loss: the divergence of the student's prediction from the labels."""

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from edkd.distillers._math import at_least_float32, cross_entropy
from edkd.keys import Key

CROSS_ENTROPY = "ce"
BINARY = "bce"

KEYS = {
    "SOLVER.TASK_LOSS": Key(
        CROSS_ENTROPY,
        "loss with the labels: ce: cross-entropy; bce: binary cross-entropy, averaged over classes",
        choices=(CROSS_ENTROPY, BINARY),
    ),
    "SOLVER.LABEL_SMOOTHING": Key(
        0.0, "share of each label that is spread evenly over all classes", low=0.0, high=1.0
    ),
    "SOLVER.BCE_THRESHOLD": Key(
        0.0,
        "bce: target probabilities above it become 1, the others 0; 0: unchanged; 0.2 in timm's A1 "
        "and A2",
        low=0.0,
        high=1.0,
    ),
}


class TaskLoss(NamedTuple):
    """The loss with the labels, the mean over the batch."""

    kind: str = CROSS_ENTROPY
    """ "ce" or "bce"."""
    smoothing: float = 0.0
    """In [0, 1)."""
    threshold: float = 0.0
    """Of "bce": target probabilities above it become 1, the others 0; 0: they stay."""

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """A scalar, computed in float32 or better.

        Args:
            logits: (N,C).
            target: (N,), class numbers; (N,C), class probabilities.
        """
        if self.kind == BINARY:
            return binary_cross_entropy(logits, target, self.smoothing, self.threshold)
        return cross_entropy(logits, target, self.smoothing)


def binary_cross_entropy(
    logits: Tensor, target: Tensor, smoothing: float = 0.0, threshold: float = 0.0
) -> Tensor:
    """mean_i mean_c BCE(sigmoid(z_ic), t_ic): each class is a decision of its own.

    R. Wightman, H. Touvron, H. Jegou, "ResNet strikes back: An improved training procedure in
    timm", NeurIPS workshop 2021, arXiv:2110.00476, section 2.

    Args:
        logits: z (N,C).
        target: (N,), class numbers, which become t = 1 for the class and 0 for the others; or t
            itself, (N,C).
        smoothing: s in [0, 1): t becomes (1 - s) t + s / C.
        threshold: after that, t above it becomes 1, and the others 0; 0: t stays.

    Returns:
        A scalar >= 0.

    Example:
        >>> import torch
        >>> loss = binary_cross_entropy(torch.zeros(1, 4), torch.tensor([0]))
        >>> round(loss.item(), 4)  # log(2)
        0.6931
    """
    logits = at_least_float32(logits)
    num_classes = logits.shape[1]
    if not target.is_floating_point():
        target = F.one_hot(target, num_classes)
    target = target.to(logits.dtype)

    if smoothing:
        target = (1 - smoothing) * target + smoothing / num_classes
    if threshold:
        target = (target > threshold).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, target)


def task_loss_of(cfg: Any) -> TaskLoss:
    """The loss that SOLVER names; the plain cross-entropy without a configuration."""
    if cfg is None or "SOLVER" not in cfg:
        return TaskLoss()
    solver = cfg.SOLVER
    return TaskLoss(solver.TASK_LOSS, solver.LABEL_SMOOTHING, solver.BCE_THRESHOLD)
