"""OKDDip: peers that stay diverse, and a leader that learns from all of them.

D. Chen, J.-P. Mei, C. Wang, Y. Feng, C. Chen, "Online Knowledge Distillation with Diverse Peers", AAAI 2020,
arXiv:1912.00350.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers._base import register
from edkd.distillers._cohort import COHORT, Cohort, cohort_losses, feature_sizes, soft_log_probabilities
from edkd.distillers._common import at_least_float32

SIZE = 8
"""Of the projections that attention compares, as in the published code."""


@register("OKDDip")
class OKDDip(Cohort):
    """S - 1 peers learn from targets of their own; the last student, the leader, learns from their mean.

    sum_i CE_WEIGHT * CE(z_i) + KD_WEIGHT * T^2 * [sum_a KL(t_a || p_a) + KL(mean_b p_b || p_leader)], where the
    target of a peer is t_a = sum_b w_ab p_b, and its attention w_ab = softmax_b(L_a(h_a) . E_b(h_b)) compares linear
    projections of pooled features h (the paper's two levels of distillation). Peers' predictions and features are taken
    as given in a target: of it only the projections learn. The model to use is the leader.
    """

    min_students = 3
    defaults = dict(
        **COHORT | dict(NUM_STUDENTS=4),  # the last one leads, >= 3
        CE_WEIGHT=1.0,  # of the cross-entropies with the labels
        KD_WEIGHT=1.0,  # of the divergences
        T=3.0,  # softens the predictions, > 0
    )

    def __init__(self, student: nn.ModuleList, teacher: None, cfg: Any) -> None:
        super().__init__(student, teacher)
        node = cfg.OKDDip
        self.ce_weight, self.kd_weight, self.temperature = node.CE_WEIGHT, node.KD_WEIGHT, node.T
        sizes = feature_sizes(list(student))[:-1]
        self.queries = nn.ModuleList(nn.Linear(size, SIZE, bias=False) for size in sizes)
        self.keys = nn.ModuleList(nn.Linear(size, SIZE, bias=False) for size in sizes)

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Distiller.forward_train`; the logits are (S,N,C), the terms loss_ce_student1, loss_kd_student1, ..."""
        logits, features = self.forward_students(image)
        log_p = soft_log_probabilities(logits[:-1].detach(), self.temperature)  # (S-1,N,C)
        query, key = (self.project(projections, features[:-1]) for projections in (self.queries, self.keys))
        attention = (query[:, None] * key[None]).sum(3).log_softmax(1)  # (a,b,N)
        targets = [(weights[:, :, None] + log_p).logsumexp(0) for weights in attention]  # log t_a, (N,C)
        mean = log_p.logsumexp(0) - math.log(len(log_p))
        weights = self.ce_weight, self.kd_weight
        return logits.detach(), cohort_losses(logits, target, [*targets, mean], weights, self.temperature)

    @staticmethod
    def project(projections: nn.ModuleList, features: Sequence[Tensor]) -> Tensor:
        """(S-1,N,SIZE), from each peer's own features (N,D)."""
        pairs = zip(projections, features, strict=True)
        return torch.stack([at_least_float32(linear(feature.detach())) for linear, feature in pairs])

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """The students' and the projections'."""
        return [*super().get_learnable_parameters(), *self.queries.parameters(), *self.keys.parameters()]

    def get_extra_parameters(self) -> int:
        """The projections'."""
        return sum(p.numel() for module in (self.queries, self.keys) for p in module.parameters())
