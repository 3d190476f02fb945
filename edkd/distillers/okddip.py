"""OKDDip: diverse peers, and a leader that learns from all of them.

D. Chen, J.-P. Mei, C. Wang, Y. Feng, C. Chen, "Online Knowledge Distillation with Diverse Peers",
AAAI 2020, arXiv:1912.00350.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers._cohort import COHORT_KEYS, Cohort, pooled_features, stack_logits
from edkd.distillers._math import at_least_float32, log_softmax, soft_divergence
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output

PROJECTION_SIZE = 8
"""Of the attention's projections, as in the published code."""


@METHODS.register("OKDDip")
class OKDDip(Cohort):
    """S - 1 peers learn from their own targets; the last student, the leader, from their mean.

    sum_i CE_WEIGHT * CE(z_i)
    + KD_WEIGHT * T^2 * [sum_a KL(t_a || p_a) + KL(mean_b p_b || p_leader)]

    The target of peer a is t_a = sum_b w_ab p_b. Its attention
    w_ab = softmax_b(L_a(h_a) . E_b(h_b)) compares linear projections of pooled features h (the
    paper's two levels of distillation). No gradient flows through a target into the peers: only
    the projections learn from it. The leader is the network to use.
    """

    min_students = 3
    defaults = dict(
        **COHORT_KEYS
        | dict(NUM_STUDENTS=Key(4, "number of students; the last one leads", low=3, high=1000)),
        CE_WEIGHT=Key(1.0, "weight of the cross-entropies with the labels", low=0.0),
        KD_WEIGHT=Key(1.0, "weight of the divergences", low=0.0),
        T=Key(3.0, "softens the predictions", low=1e-3),
    )

    def set_up(self, student: Any, teacher: None, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        *sizes, _ = self.pooled_sizes()
        self.queries = _projections(sizes)
        self.keys = _projections(sizes)

    def losses(self, students: list[Output], teacher: None, batch: Batch) -> dict[str, Tensor]:
        """See `Cohort`."""
        *peers, _ = students
        log_p = log_softmax(stack_logits(peers).detach(), self.hp.T)  # (S-1,N,C)

        # Attention of peer a to peer b, (a,b,N).
        features = pooled_features(peers)
        query = _project(self.queries, features)
        key = _project(self.keys, features)
        log_w = (query[:, None] * key[None]).sum(3).log_softmax(1)

        # Each peer's target, and the mean for the leader: log-probabilities (N,C).
        targets = [(log_w_a[:, :, None] + log_p).logsumexp(0) for log_w_a in log_w]
        mean = log_p.logsumexp(0) - math.log(len(log_p))

        losses = {}
        for number, log_t in enumerate([*targets, mean], 1):
            logits = students[number - 1].logits
            divergence = soft_divergence(log_t, logits, self.hp.T)
            losses[f"loss_kd_student{number}"] = self.hp.KD_WEIGHT * divergence
        return losses


def _projections(sizes: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(size, PROJECTION_SIZE, bias=False) for size in sizes)


def _project(projections: nn.ModuleList, features: Sequence[Tensor]) -> Tensor:
    """(S-1,N,PROJECTION_SIZE), from each peer's own pooled features (N,D)."""
    projected = [
        at_least_float32(linear(feature.detach()))
        for linear, feature in zip(projections, features, strict=True)
    ]
    return torch.stack(projected)
