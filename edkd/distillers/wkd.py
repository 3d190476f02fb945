"""Wasserstein distance for knowledge distillation from logits (WKD-L).

J. Lv, H. Yang, P. Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge
Distillation", NeurIPS 2024, arXiv:2412.08139.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._class_samples import ClassSamples
from edkd.distillers._math import (
    at_least_float32,
    check_class_numbers,
    cosine_decay,
    full_precision,
    log_softmax,
    reduced,
)
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output

SHORTEST = 1e-12
"""Below the norm of a kernel matrix, which is 0 for a class with less than two samples."""


class Sinkhorn(NamedTuple):
    """How the entropic optimal transport is solved."""

    regularization: float = 0.05
    """Of the entropy, > 0; costs are between 0 and 1."""
    iterations: int = 10


USUAL = Sinkhorn()


def class_relations(samples: Tensor, number: Tensor) -> Tensor:
    """Linear CKA between classes, (C,C), each in [0, 1]; 1 on the diagonal.

    CKA_ij = <K_i, K_j> / (|K_i| |K_j|) in the Frobenius norm, with the kernel matrix
    K_i = X_i X_i^T (S,S) of the centred features X_i (S,D) of class i. Sample k of one class is
    compared with sample k of the other one, in the order of the data. A class that has fewer
    samples than another one is padded with its mean. Memory: as much again as the samples take.

    Args:
        samples: (C,S,D), features of up to S images of each class.
        number: (C,), how many of them there are; the rest is ignored. The relations of a class with
            fewer than two are 0.
    """
    is_sample = torch.arange(samples.shape[1], device=samples.device) < number[:, None]
    weight = is_sample.to(samples.dtype) / number.clamp(min=1)[:, None]
    products = samples.new_zeros(len(samples), len(samples))

    with full_precision(samples):
        mean = torch.einsum("cs,csd->cd", weight, samples)
        centred = (samples - mean[:, None]).mul_(is_sample[..., None])

        # One row of all kernel matrices at a time, as all of them do not fit into memory.
        for row in range(samples.shape[1]):
            kernels = torch.einsum("cd,csd->cs", centred[:, row], centred)
            products += kernels @ kernels.T

    norms = products.diagonal().sqrt().clamp(min=SHORTEST)
    relations = products / (norms[:, None] * norms)
    return relations.fill_diagonal_(1.0)


def cost_matrix(relations: Tensor, sharpen: float) -> Tensor:
    """c_ij = 1 - exp(-k * (1 - CKA_ij)), (C,C), in [0, 1) (equation 5).

    Args:
        relations: (C,C), see `class_relations`.
        sharpen: k; 0: c_ij = 1 - CKA_ij, as in the published code.
    """
    distance = (1 - relations).clamp(min=0.0)
    return 1 - torch.exp(-sharpen * distance) if sharpen else distance


def wkd_loss(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    cost: Tensor,
    temperature: float,
    sinkhorn: Sinkhorn = USUAL,
    reduction: str = "mean",
) -> Tensor:
    """mean_i W(q_s_i, q_t_i) with q the softened predictions of all classes but the target.

    W = sum_jk P_jk c_jk for the plan P that Sinkhorn's iterations find for the cost
    c_jk + lambda * log P_jk (equations 4 and 6). They run in log space on vectors (N,C); the
    target has no mass. So `cost` stays one matrix (C,C) for all images.

    Differs from the published code: no 1e-8 is added to the costs and divisors.

    Args:
        logits_student: (N,C), C >= 2; computed in float32 or better, finite for logits up to +-1e4.
        logits_teacher: (N,C).
        target: (N,), class numbers.
        cost: (C,C), in [0, 1], see `cost_matrix`.
        temperature: T > 0.
        sinkhorn: the regularisation lambda and the number of iterations.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar >= 0, or (N,). It is not 0 where both predictions agree, as the entropy spreads the
        plan; with two classes it is the constant cost of the only other class.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> cost = 1 - torch.eye(3)
        >>> loss = wkd_loss(logits, -logits, torch.tensor([0]), cost, temperature=1.0)
        >>> round(loss.item(), 4)
        0.17
    """
    check_class_numbers(target)
    is_target = torch.arange(len(cost), device=target.device) == target[:, None]
    log_q_s = _without(logits_student, is_target, temperature)
    log_q_t = _without(logits_teacher, is_target, temperature)

    start = torch.zeros_like(log_q_s).masked_fill(is_target, torch.finfo(log_q_s.dtype).min)
    distance = _transport(log_q_s, log_q_t, start, cost.to(log_q_s.dtype), sinkhorn)
    return reduced(distance, reduction)


def target_loss(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, reduction: str = "mean"
) -> Tensor:
    """-mean_i p_t_iy * log p_s_iy for the target y, with p = softmax(logits).

    Args:
        logits_student: (N,C).
        logits_teacher: (N,C).
        target: (N,), class numbers.
        reduction: "mean"; or "none", for the loss of each image.

    Returns:
        A scalar >= 0, or (N,).
    """
    check_class_numbers(target)
    log_p_s = log_softmax(logits_student).gather(1, target[:, None])
    log_p_t = log_softmax(logits_teacher).gather(1, target[:, None])
    return reduced(-(log_p_t.exp() * log_p_s).squeeze(1), reduction)


def _without(logits: Tensor, is_target: Tensor, temperature: float) -> Tensor:
    """Log-probabilities over the other classes (N,C); that of the target is a very low number."""
    z = at_least_float32(logits) / temperature
    return F.log_softmax(z.masked_fill(is_target, torch.finfo(z.dtype).min), 1)


def _transport(
    log_p: Tensor, log_q: Tensor, log_u: Tensor, cost: Tensor, sinkhorn: Sinkhorn
) -> Tensor:
    """The cost of moving p to q for each row, (N,).

    With K = exp(-c / lambda), the plan is u_j K_jk v_k; v = q / K^T u and u = p / K v in turn. At
    the end its cost is sum_j p_j (K c) v_j / (K v)_j, which does not depend on the scale of v.
    """
    with full_precision(cost):
        kernel = torch.exp(-cost / sinkhorn.regularization)
        for _ in range(sinkhorn.iterations):
            log_v = log_q - _log_product(log_u, kernel)
            log_u = log_p - _log_product(log_v, kernel.T)

        v, _ = _scaled(log_v)
        mean_costs = (v @ (kernel * cost).T) / (v @ kernel.T)
    return (log_p.exp() * mean_costs).sum(1)


def _log_product(log_x: Tensor, kernel: Tensor) -> Tensor:
    """log(x K) for each row x."""
    x, log_scale = _scaled(log_x)
    return log_scale + (x @ kernel).log()


def _scaled(log_x: Tensor) -> tuple[Tensor, Tensor]:
    """x / max(x) and log max(x), (N,1), of each row."""
    log_scale = log_x.detach().amax(1, keepdim=True)
    return (log_x - log_scale).exp(), log_scale


@METHODS.register("WKD")
class WKD(Distiller):
    """CE_WEIGHT * CE(student, target) + target_loss + WKD_LOGIT_WEIGHT * decay * wkd_loss.

    The costs between classes come from the teacher's features for the augmented images of the
    first epoch. Until they are gathered all classes are equally far apart.

    Differs from the published code: there, the features are those of images without augmentation,
    and for CIFAR-100 those of the last feature map, with each position as a sample; here, as in the
    paper, it is the input of the classifier. Both networks run in the precision of SOLVER.AMP, not
    in float16.
    """

    cost: Tensor
    """(C,C), see `cost_matrix`."""

    needs_class_numbers = True
    has_loss_per_image = True
    collects = True
    teacher_needs = ("logits", "pooled_feat")
    defaults = dict(
        LOSS=dict(
            CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
            WKD_LOGIT_WEIGHT=Key(600.0, "weight of the Wasserstein distance", low=0.0),
            COSINE_DECAY_EPOCH=Key(
                150, "from here on that weight falls to 0 by half a cosine", unit="epochs", low=0
            ),
        ),
        TEMPERATURE=Key(8.0, "softens both predictions of the other classes", low=1e-3),
        SINKHORN=dict(
            LAMBDA=Key(0.05, "regularisation of the optimal transport", low=0.02),
            ITER=Key(10, "iterations of the optimal transport", low=1),
        ),
        COST_MATRIX=Key(
            "pooled",
            "what the costs between classes come from: the teacher's pooled features, or its "
            "logits, as published for ImageNet",
            choices=("pooled", "logits"),
        ),
        COST_MATRIX_SHARPEN=Key(1.0, "k in the cost 1 - exp(-k * (1 - CKA)); 0: 1 - CKA", low=0.0),
        COST_MATRIX_SAMPLES=Key(
            500,
            "images of each class that the costs come from; before the first step they take "
            "classes * images * features * 8 bytes on the device",
            low=2,
        ),
    )

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        self.epochs = cfg.SOLVER.EPOCHS
        self.register_buffer("cost", 1 - torch.eye(self.facts().num_classes))
        self.samples: ClassSamples | None = None

    def collect(self, teacher: Output, batch: Batch) -> None:
        """Keep features of some images of each class."""
        source = teacher.logits
        if self.hp.COST_MATRIX == "pooled":
            source = teacher.features["pooled_feat"]

        if self.samples is None:
            self.samples = ClassSamples(len(self.cost), self.hp.COST_MATRIX_SAMPLES)
        self.samples.add(at_least_float32(source).flatten(1), batch.target)

    def end_collection(self) -> None:
        """Turn the features into costs, and drop them."""
        assert self.samples is not None
        relations = class_relations(self.samples.features, self.samples.number)
        self.cost.copy_(cost_matrix(relations, self.hp.COST_MATRIX_SHARPEN))
        self.samples = None

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        hp = self.hp
        logits = (student.logits, teacher.logits)
        loss_wkd = wkd_loss(
            *logits,
            batch.target,
            self.cost,
            hp.TEMPERATURE,
            Sinkhorn(hp.SINKHORN.LAMBDA, hp.SINKHORN.ITER),
            self.reduction,
        )

        decay = cosine_decay(batch.epoch, hp.LOSS.COSINE_DECAY_EPOCH, self.epochs)
        loss_target = target_loss(*logits, batch.target, self.reduction)
        return {"loss_kd": loss_target + hp.LOSS.WKD_LOGIT_WEIGHT * decay * loss_wkd}
