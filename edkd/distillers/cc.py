"""Correlation congruence.

B. Peng, X. Jin, J. Liu, S. Zhou, Y. Wu, Y. Liu, D. Li, Z. Zhang, "Correlation Congruence for
Knowledge Distillation", ICCV 2019, arXiv:1904.01802.
"""

from typing import Any

from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._math import at_least_float32
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output


def cc_loss(embedding_student: Tensor, embedding_teacher: Tensor) -> Tensor:
    """mean_n sum_d |s_nd - t_nd| * |s_(n+1)d - t_(n+1)d| over neighbours in the batch.

    Differs from the paper, which compares the correlation matrices of the batch under a Gaussian
    kernel. This is the loss of RepDistiller, whose figures are the published ones; the paper's
    authors gave it the code. It depends on the order of the batch. It grows with the square of the
    features, so one weight does not fit all networks.

    Args:
        embedding_student: (N,D); computed in float32 or better.
        embedding_teacher: (N,D).

    Returns:
        A scalar >= 0; 0 where the embeddings agree, and for one image.

    Example:
        >>> import torch
        >>> cc_loss(torch.ones(3, 2), torch.zeros(3, 2)).item()
        2.0
    """
    delta = (at_least_float32(embedding_student) - at_least_float32(embedding_teacher)).abs()
    products = delta[:-1] * delta[1:]
    return products.sum() / max(len(products), 1)


@METHODS.register("CC")
class CC(Distiller):
    """CE_WEIGHT * CE(student, target) + FEAT_WEIGHT * cc_loss(W_s f_s, W_t f_t).

    f are the pooled features of both networks, W two linear layers that learn with the student and
    are not part of it.
    """

    teacher_needs = ("pooled_feat",)
    student_needs = ("pooled_feat",)
    gathers_batch = True
    defaults = dict(
        CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
        FEAT_WEIGHT=Key(0.02, "weight of the distance of the embeddings", low=0.0),
        EMBED_DIM=Key(128, "length of an embedding", low=1),
    )

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        size_student = self.feature_shapes(student).pooled_feat[1]
        size_teacher = self.feature_shapes(self.teacher).pooled_feat[1]
        self.embed_student = nn.Linear(size_student, self.hp.EMBED_DIM)
        self.embed_teacher = nn.Linear(size_teacher, self.hp.EMBED_DIM)

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        embedding_student = self.embed_student(student.features["pooled_feat"])
        embedding_teacher = self.embed_teacher(teacher.features["pooled_feat"])
        loss_cc = cc_loss(embedding_student, embedding_teacher)
        return {"loss_kd": self.hp.FEAT_WEIGHT * loss_cc}
