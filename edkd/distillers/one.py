"""ONE, an ensemble that its members learn from.

X. Lan, X. Zhu, S. Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, arXiv:1806.04606.
"""

from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers._base import register
from edkd.distillers._cohort import COHORT, Cohort, cohort_losses, cross_entropy, feature_sizes, soft_log_probabilities
from edkd.distillers._common import at_least_float32, warmup_factor


@register("ONE")
class ONE(Cohort):
    """A gate weighs the students' logits, z_e = sum_i g_i z_i, and each student learns from the ensemble.

    sum_i CE_WEIGHT * CE(z_i) + CE_WEIGHT * CE(z_e) + KD_WEIGHT * T^2 * sum_i KL(p_e || p_i) (section 3). The
    ensemble's prediction is a target: through the divergence no gradient reaches it.
    Differs from the paper: its students are branches on common first layers, and its gate looks at what these say; here
    they are whole networks, and the gate looks at their pooled features.
    """

    defaults = dict(
        **COHORT,
        CE_WEIGHT=1.0,  # of the cross-entropies with the labels
        KD_WEIGHT=1.0,  # of the divergences from the ensemble
        T=3.0,  # softens the predictions, > 0
        WARMUP=0,  # epochs over which the weight of the divergences grows linearly
    )

    def __init__(self, student: nn.ModuleList, teacher: None, cfg: Any) -> None:
        super().__init__(student, teacher)
        node = cfg.ONE
        self.ce_weight, self.kd_weight = node.CE_WEIGHT, node.KD_WEIGHT
        self.temperature, self.warmup = node.T, node.WARMUP
        self.gate = nn.Linear(sum(feature_sizes(list(student))), len(student))

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Distiller.forward_train`; the logits are (S,N,C), the terms of each student, and loss_ce_ensemble."""
        logits, features = self.forward_students(image)
        weights = at_least_float32(self.gate(torch.cat(features, 1).detach())).softmax(1)
        ensemble = (weights.T[:, :, None] * logits).sum(0)
        log_p = soft_log_probabilities(ensemble.detach(), self.temperature)
        parts = self.ce_weight, self.kd_weight * warmup_factor(kwargs["epoch"], self.warmup)
        losses = cohort_losses(logits, target, [log_p] * len(logits), parts, self.temperature)
        return logits.detach(), losses | {"loss_ce_ensemble": self.ce_weight * cross_entropy(ensemble, target)}

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """The students' and the gate's."""
        return [*super().get_learnable_parameters(), *self.gate.parameters()]

    def get_extra_parameters(self) -> int:
        """The gate's."""
        return sum(p.numel() for p in self.gate.parameters())
