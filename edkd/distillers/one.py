"""ONE: students learn from their gated ensemble.

X. Lan, X. Zhu, S. Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018,
arXiv:1806.04606.
"""

from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers._cohort import COHORT_KEYS, Cohort, pooled_features, stack_logits
from edkd.distillers._math import at_least_float32, log_softmax, soft_divergence, warmup_factor
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output


@METHODS.register("ONE")
class ONE(Cohort):
    """A gate weighs the students' logits, z_e = sum_i g_i z_i; each student learns from z_e.

    sum_i CE_WEIGHT * CE(z_i) + CE_WEIGHT * CE(z_e) + KD_WEIGHT * T^2 * sum_i KL(p_e || p_i)
    (section 3). No gradient flows through the divergence into the ensemble.

    Differs from the paper: its students are branches on common first layers, and its gate reads the
    output of these layers. Here the students are whole networks, and the gate reads their pooled
    features.
    """

    defaults = dict(
        **COHORT_KEYS,
        CE_WEIGHT=Key(1.0, "weight of the cross-entropies with the labels", low=0.0),
        KD_WEIGHT=Key(1.0, "weight of the divergences from the ensemble", low=0.0),
        T=Key(3.0, "softens the predictions", low=1e-3),
        WARMUP=Key(0, "the divergences grow over these epochs", unit="epochs", low=0),
    )

    def set_up(self, student: Any, teacher: None, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        self.gate = nn.Linear(sum(self.pooled_sizes()), len(student))

    def losses(self, students: list[Output], teacher: None, batch: Batch) -> dict[str, Tensor]:
        """See `Cohort`; the ensemble has a term `loss_ce_ensemble`."""
        features = torch.cat(pooled_features(students), 1)
        gates = at_least_float32(self.gate(features.detach())).softmax(1)
        ensemble = (gates.T[:, :, None] * stack_logits(students)).sum(0)

        log_p = log_softmax(ensemble.detach(), self.hp.T)
        weight = self.hp.KD_WEIGHT * warmup_factor(batch.epoch, self.hp.WARMUP)
        losses = {}
        for number, student in enumerate(students, 1):
            divergence = soft_divergence(log_p, student.logits, self.hp.T)
            losses[f"loss_kd_student{number}"] = weight * divergence

        return losses | {"loss_ce_ensemble": self.task_loss(ensemble, batch.target)}
