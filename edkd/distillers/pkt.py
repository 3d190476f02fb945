"""Probabilistic knowledge transfer.

N. Passalis, A. Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV
2018, arXiv:1803.10837.
"""

import torch
from torch import Tensor

from edkd.distillers._base import Distiller
from edkd.distillers._math import at_least_float32, matmul
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output

EPSILON = 1e-7
"""Of the published code, added to norms and probabilities."""


def neighbour_probabilities(feature: Tensor, epsilon: float = EPSILON) -> Tensor:
    """p_ij = k_ij / sum_l k_il with k_ij = (cos(f_i, f_j) + 1) / 2 (section 3).

    Differs from the paper: the sum over l includes i itself, as in the published code.

    Args:
        feature: (N,D); computed in float32 or better. The cosine with a row of zeros is 0, and it
            has no gradient there.
        epsilon: added to each norm.

    Returns:
        (N,N), rows that sum to 1.

    Example:
        >>> neighbour_probabilities(torch.eye(2), epsilon=0.0)
        tensor([[0.6667, 0.3333],
                [0.3333, 0.6667]])
    """
    rows = at_least_float32(feature).flatten(1)
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    unit = torch.where(norm > 0, rows / (norm + epsilon), 0.0)

    similarity = (matmul(unit, unit.T) + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


def pkt_loss(feature_student: Tensor, feature_teacher: Tensor, epsilon: float = EPSILON) -> Tensor:
    """mean_ij p_t_ij * log((p_t_ij + eps) / (p_s_ij + eps)) (section 3).

    p comes from `neighbour_probabilities`. Differs from the paper: the mean over all pairs, N^2
    times smaller than the sum, as in the published code, whose weight is 30000.

    Args:
        feature_student: (N,D).
        feature_teacher: (N,D); D may differ.
        epsilon: eps.

    Returns:
        A scalar >= 0, up to rounding; 0 where the probabilities agree, and for one image.

    Example:
        >>> student = torch.eye(3)
        >>> pkt_loss(student, 2 * student).abs().item() < 1e-7
        True
    """
    p_s = neighbour_probabilities(feature_student, epsilon)
    p_t = neighbour_probabilities(feature_teacher, epsilon)
    return (p_t * ((p_t + epsilon) / (p_s + epsilon)).log()).mean()


@METHODS.register("PKT")
class PKT(Distiller):
    """CE_WEIGHT * CE(student, target) + FEAT_WEIGHT * pkt_loss(student, teacher).

    It reads the pooled features of both networks.
    """

    teacher_needs = ("pooled_feat",)
    student_needs = ("pooled_feat",)
    gathers_batch = True
    defaults = dict(
        LOSS=dict(
            CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
            FEAT_WEIGHT=Key(30000.0, "weight of the divergence of the neighbours", low=0.0),
        ),
    )

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        loss_pkt = pkt_loss(student.features["pooled_feat"], teacher.features["pooled_feat"])
        return {"loss_kd": self.hp.LOSS.FEAT_WEIGHT * loss_pkt}
