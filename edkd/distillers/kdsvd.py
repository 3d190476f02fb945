"""Distillation of singular vectors.

S. H. Lee, D. H. Kim, B. C. Song, "Self-supervised Knowledge Distillation Using Singular Value
Decomposition", ECCV 2018, arXiv:1807.06819.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edkd.distillers._math import at_least_float32, matmul, unit_vectors
from edkd.distillers._stages import StageDistiller, at_one_size
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output

SPARE = 3
"""Vectors of the student beyond k, as its order may differ from the teacher's."""


class Vectors(NamedTuple):
    """The largest singular values of each image and their right singular vectors."""

    values: Tensor
    """(N,K), descending, relative to the largest magnitude in the map."""
    vectors: Tensor
    """(N,W,K), of length 1."""


def right_singular_vectors(feature: Tensor, number: int) -> Vectors:
    """The singular value decomposition of each image's map as a matrix of D*H rows and W columns.

    With X = U S V^T, V are the eigenvectors of G = X^T X, and a change of G changes them by
    dV = V (F o V^T dG V) with F_ij = 1 / (l_j - l_i) for the eigenvalues l. Where two are equal, F
    is not finite. Here it is (l_j - l_i) / ((l_j - l_i)^2 + w^2) with w = sqrt(eps) * l_1: 0 for
    equal ones, and the same to a relative w^2 / (l_j - l_i)^2 elsewhere.

    A singular vector has no sign of its own; here the sum over its elements is not negative.

    Args:
        feature: (N,D,H,W); computed in float32 or better.
        number: K; fewer where W is smaller.

    Example:
        >>> values, vectors = right_singular_vectors(torch.tensor([[[[3.0, 0.0], [0.0, 1.0]]]]), 1)
        >>> vectors.abs().flatten()
        tensor([1., 0.])
    """
    rows = at_least_float32(feature).flatten(1, 2)
    info = torch.finfo(rows.dtype)
    largest = rows.detach().abs().amax((1, 2), keepdim=True)
    rows = rows / largest.clamp(min=info.tiny)
    gram = matmul(rows.mT, rows)

    # Values without gradients; a map that is not finite makes the result so below.
    eigenvalues, eigenvectors = torch.linalg.eigh(gram.detach().nan_to_num())
    eigenvalues = eigenvalues.flip(1)
    eigenvectors = eigenvectors.flip(2)
    eigenvectors = torch.where(eigenvectors.sum(1, keepdim=True) < 0, -eigenvectors, eigenvectors)
    chosen = eigenvectors[:, :, :number]

    # V (F o V^T dG V): its value is 0, its gradient the one of the vectors.
    change = matmul(eigenvectors.mT, matmul(gram - gram.detach(), chosen))
    gap = eigenvalues[:, None, :number] - eigenvalues[:, :, None]
    width = info.eps**0.5 * eigenvalues[:, :1, None]
    factor = gap / (gap.square() + width.square()).clamp(min=info.tiny)
    vectors = chosen + matmul(eigenvectors, factor * change)
    return Vectors(eigenvalues[:, :number].clamp(min=0).sqrt(), vectors)


def aligned(vectors_student: Tensor, vectors_teacher: Tensor) -> Tensor:
    """For each of the teacher's vectors the student's nearest one, with the matching sign.

    Args:
        vectors_student: (N,W,M).
        vectors_teacher: (N,W,K).

    Returns:
        (N,W,K).
    """
    cosine = matmul(vectors_student.mT, vectors_teacher).detach()
    nearest = cosine.abs().argmax(1, keepdim=True)
    numbers = torch.arange(cosine.shape[1], device=cosine.device)[:, None]
    sign = torch.where(cosine < 0, -1.0, 1.0).to(cosine.dtype)
    return matmul(vectors_student, sign * (numbers == nearest))


def kdsvd_loss(
    features_student: Sequence[Tensor], features_teacher: Sequence[Tensor], k: int = 1
) -> Tensor:
    """1 / N * sum_stages sum (R_s - R_t)^2 with R_ijc = exp(-(v_ic - u_jc)^2 / 8).

    v are the right singular vectors of a stage, u those of the stage before, both multiplied by the
    teacher's singular values, divided by their norm. Position i of a row in one stage and j in the
    other, c = 1..k.

    Differs from the paper, where the matrix of a map has H*W rows and D columns, so that both
    networks need the same channels, and where the gradient of the decomposition is cut to 5
    vectors. This is the form of mdistiller, which publishes no result for it: D*H rows and W
    columns. Differs from that code: gradients are finite where singular values are equal, see
    `right_singular_vectors`, and the signs of the teacher's vectors, on which R_t depends, do not
    depend on the linear algebra library.

    Args:
        features_student: (N,D,H,W) for each stage, at least 2.
        features_teacher: as many; the larger of two maps is pooled to the size of the smaller.
        k: number of singular vectors, >= 1.

    Returns:
        A scalar >= 0; 0 where the features agree.

    Example:
        >>> maps = [torch.eye(4)[None, None], torch.ones(1, 1, 2, 2)]
        >>> kdsvd_loss(maps, maps).item()
        0.0
    """
    stages = []
    for stage_student, stage_teacher in zip(features_student, features_teacher, strict=True):
        pooled_student, pooled_teacher = at_one_size(stage_student, stage_teacher)
        of_teacher = right_singular_vectors(pooled_teacher, k)
        of_student = right_singular_vectors(pooled_student, k + SPARE)
        weight = unit_vectors(of_teacher.values)[:, None]
        v_s = weight * aligned(of_student.vectors, of_teacher.vectors)
        v_t = weight * of_teacher.vectors
        stages.append((v_s, v_t))

    losses = []
    for (u_s, u_t), (v_s, v_t) in itertools.pairwise(stages):
        losses.append((_kernel(v_s, u_s) - _kernel(v_t, u_t)).square().sum())
    return torch.stack(losses).sum() / len(features_student[0])


def _kernel(vectors: Tensor, before: Tensor) -> Tensor:
    """R, (N,W,W',K), with the smaller K of both."""
    number = min(vectors.shape[2], before.shape[2])
    distance = vectors[:, :, None, :number] - before[:, None, :, :number]
    return torch.exp(-distance.square() / 8)


@METHODS.register("KDSVD")
class KDSVD(StageDistiller):
    """CE_WEIGHT * CE(student, target) + FEAT_WEIGHT * kdsvd_loss(student, teacher).

    It reads the maps after the stem, paired as in `StageDistiller`. The decomposition waits for the
    GPU, so SOLVER.CUDA_GRAPH has no effect.
    """

    defaults = dict(
        K=Key(1, "number of singular vectors of a map", low=1),
        LOSS=dict(
            CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
            FEAT_WEIGHT=Key(1.0, "weight of the distance of the singular vectors", low=0.0),
        ),
    )

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        super().set_up(student, teacher, cfg)
        if len(self.pairs) < 2:
            raise UserError(
                "KDSVD relates the feature maps of successive stages, but the networks have one "
                "pair of them; choose other networks, or another method, such as AT"
            )

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        loss_kdsvd = kdsvd_loss(*self.stages(student, teacher), self.hp.K)
        return {"loss_kd": self.hp.LOSS.FEAT_WEIGHT * loss_kdsvd}
