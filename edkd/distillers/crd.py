"""Contrastive representation distillation.

Y. Tian, D. Krishnan, P. Isola, "Contrastive Representation Distillation", ICLR 2020,
arXiv:1910.10699.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._math import at_least_float32
from edkd.distillers._memory_bank import MemoryBank, Negatives
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, DataInfo, Output

EPSILON = 1e-7
"""Added to K/M in the denominators, as in the published code."""

MODES = ("exact", "relax", "all")


def crd_loss(
    similarity: Tensor, log_normalizer: Tensor | float, num_images: int, temperature: float
) -> Tensor:
    """-mean_i [log h_i0 + sum_k log(1 - h_ik)] with h = P / (P + K/M) (section 3.1).

    P = exp(s / temperature) / Z. h is the estimated probability that a pair is a positive one.

    Args:
        similarity: s (N,1+K), dot products of a feature of norm 1 with those of other images; the
            positive first. Computed in float32 or better.
        log_normalizer: log Z, a scalar.
        num_images: M, images of the training set.
        temperature: > 0.

    Returns:
        A scalar.

    Example:
        >>> similarity = torch.tensor([[1.0, 0.0, -1.0]])
        >>> loss = crd_loss(similarity, log_normalizer=2.3, num_images=10, temperature=0.5)
        >>> round(loss.item(), 4)
        0.711
    """
    s = at_least_float32(similarity)
    noise = (s.shape[1] - 1) / num_images

    # With the margin m = log P - log(K/M), h = sigmoid(m): no exponential can overflow.
    margin = s / temperature - log_normalizer - math.log(noise + EPSILON)
    loss_positive = F.softplus(-margin[:, 0])
    loss_negative = F.softplus(margin[:, 1:]) + math.log1p(EPSILON / noise)
    return (loss_positive + loss_negative.sum(1)).mean()


@METHODS.register("CRD")
class CRD(Distiller):
    """CE_WEIGHT * CE(student, target) + FEAT_WEIGHT * (crd_loss of student + of teacher).

    The pooled features of both networks are mapped linearly to DIM features of norm 1. Those of
    the student are compared with a memory bank of the teacher's, and the reverse.

    Z is set in the first step, to the mean of exp(s / temperature) times the number of images.

    Differs from the published code: the K negatives of an image are drawn with replacement, which
    leaves the expected loss as it is; MODE all is added.
    """

    teacher_needs = ("pooled_feat",)
    student_needs = ("logits", "pooled_feat")
    needs_index = True
    gathers_batch = True  # the images of a batch change the banks
    defaults = dict(
        MODE=Key(
            "exact",
            "exact: the positive is the image itself, negatives are of other classes; relax: the "
            "positive is any image of its class; all: all other images are negatives",
            choices=MODES,
        ),
        FEAT=dict(
            DIM=Key(128, "width of the compared features", low=1),
            STUDENT_DIM=Key(0, "width of the student's pooled feature; 0: as it is", low=0),
            TEACHER_DIM=Key(0, "width of the teacher's pooled feature; 0: as it is", low=0),
        ),
        LOSS=dict(
            CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
            FEAT_WEIGHT=Key(0.8, "weight of the contrastive terms", low=0.0),
        ),
        NCE=dict(
            K=Key(16384, "negatives for each image", low=1, high=1_000_000),
            MOMENTUM=Key(
                0.5, "share of the old feature that a memory bank keeps", low=0.0, high=1.0
            ),
            TEMPERATURE=Key(0.07, "divides the dot products", low=1e-3),
        ),
    )

    log_normalizers: Tensor

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        data = self.facts()
        feat = self.hp.FEAT
        nce = self.hp.NCE
        self.num_images = data.num_images
        self.negatives = Negatives(_classes(data, self.hp.MODE))

        # The published keys of the widths may be given; they must be right.
        width_student = self._width(student, "STUDENT")
        width_teacher = self._width(teacher, "TEACHER")
        self.embed_student = nn.Linear(width_student, feat.DIM)
        self.embed_teacher = nn.Linear(width_teacher, feat.DIM)

        self.bank_student = MemoryBank(data.num_images, feat.DIM, nce.MOMENTUM)
        self.bank_teacher = MemoryBank(data.num_images, feat.DIM, nce.MOMENTUM)
        self.register_buffer("log_normalizers", torch.full((2,), math.nan))  # not set yet

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        assert batch.index is not None
        index = batch.index.to(batch.image.device)
        pooled_s = student.features["pooled_feat"]
        pooled_t = teacher.features["pooled_feat"]
        feature_s = F.normalize(at_least_float32(self.embed_student(pooled_s)))
        feature_t = F.normalize(at_least_float32(self.embed_teacher(pooled_t)))

        with torch.autocast(index.device.type, enabled=False):
            compared = self._compared(index)
            similarity_s = self.bank_teacher.similarities(feature_s, compared)
            similarity_t = self.bank_student.similarities(feature_t, compared)
            loss_student = self._loss(similarity_s, 0)
            loss_teacher = self._loss(similarity_t, 1)

        self.bank_student.update(index, feature_s)
        self.bank_teacher.update(index, feature_t)
        return {"loss_kd": self.hp.LOSS.FEAT_WEIGHT * (loss_student + loss_teacher)}

    def _compared(self, index: Tensor) -> Tensor:
        """The images that each one is compared with, (N,1+K); the positive first."""
        is_relaxed = self.hp.MODE == "relax"
        positive = self.negatives.of_same_class(index) if is_relaxed else index
        negatives = self.negatives.of_other_classes(index, self.hp.NCE.K)
        return torch.cat([positive[:, None], negatives], 1)

    def _loss(self, similarity: Tensor, side: int) -> Tensor:
        """`crd_loss` with the constant of a side, 0: student, 1: teacher."""
        temperature = self.hp.NCE.TEMPERATURE
        log_normalizer = self._log_normalizer(similarity.detach() / temperature, side)
        return crd_loss(similarity, log_normalizer, self.num_images, temperature)

    @torch.no_grad()
    def _log_normalizer(self, scores: Tensor, side: int) -> Tensor:
        """log Z of a side: log(M * mean exp(scores)) of the first step."""
        constant = math.log(self.num_images / scores.numel())
        now = (scores.flatten().logsumexp(0) + constant).to(self.log_normalizers.dtype)
        held = self.log_normalizers[side]

        self.log_normalizers[side] = torch.where(held.isnan(), now, held)
        return self.log_normalizers[side].clone()

    def _width(self, network: nn.Module, role: str) -> int:
        width = self.feature_shapes(network).pooled_feat[1]
        given = self.hp.FEAT[f"{role}_DIM"]
        if given not in (0, width):
            raise UserError(
                f"CRD.FEAT.{role}_DIM is {given}, but the pooled feature of the {role.lower()} has "
                f"{width} numbers; set it to {width}, or to 0"
            )
        return width


def _classes(data: DataInfo, mode: str) -> Tensor:
    """The class of each training image, (num_images,); in MODE all, each has its own."""
    if mode == "all":
        return torch.arange(data.num_images)
    if data.targets is None:
        raise UserError(
            f"CRD.MODE {mode} needs the classes of all training images, which this data loader "
            "does not give; set CRD.MODE to all"
        )
    return data.targets.cpu()
