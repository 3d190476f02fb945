"""Similarity-preserving distillation.

F. Tung, G. Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv:1907.09682.
"""

from torch import Tensor

from edkd.distillers._base import Distiller
from edkd.distillers._math import matmul, unit_vectors
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output


def similarities(feature: Tensor) -> Tensor:
    """G with G_i = g_i / |g_i| and g = F F^T, F one row for each image (section 3).

    Args:
        feature: (N,D,H,W) or (N,D); computed in float32 or better.

    Returns:
        (N,N), rows of norm 1; 0 where an image's features are 0.

    Example:
        >>> import torch
        >>> similarities(torch.eye(2))
        tensor([[1., 0.],
                [0., 1.]])
    """
    rows = feature.flatten(1)
    return unit_vectors(matmul(rows, rows.T))


def sp_loss(feature_student: Tensor, feature_teacher: Tensor) -> Tensor:
    """1 / N^2 * |G_t - G_s|_F^2 with G from `similarities` (section 3).

    Args:
        feature_student: (N,D,H,W) or (N,D).
        feature_teacher: the same; D, H and W may differ.

    Returns:
        A scalar >= 0; 0 where the similarities agree, and for one image.

    Example:
        >>> import torch
        >>> student = torch.eye(2)
        >>> sp_loss(student, student).item()
        0.0
    """
    return (similarities(feature_teacher) - similarities(feature_student)).square().mean()


@METHODS.register("SP")
class SP(Distiller):
    """CE_WEIGHT * CE(student, target) + FEAT_WEIGHT * sp_loss(student, teacher).

    It reads the last feature map of both networks.
    """

    teacher_needs = ("feats",)
    student_needs = ("feats",)
    gathers_batch = True
    defaults = dict(
        LOSS=dict(
            CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
            FEAT_WEIGHT=Key(3000.0, "weight of the distance of the similarities", low=0.0),
        ),
    )

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        loss_sp = sp_loss(student.features["feats"][-1], teacher.features["feats"][-1])
        return {"loss_kd": self.hp.LOSS.FEAT_WEIGHT * loss_sp}
