"""The student alone: what every distilled student is compared with."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from edkd.distillers._base import Distiller, register
from edkd.distillers._common import at_least_float32


@register("NONE")
class Vanilla(Distiller):
    """Cross-entropy with the labels, without a teacher."""

    needs_teacher = False

    def forward_train(self, image: Tensor, target: Tensor, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Distiller.forward_train`; the loss has one term, `loss_ce`."""
        logits_student, _ = self.student(image)
        return logits_student, {"loss_ce": F.cross_entropy(at_least_float32(logits_student), target)}
