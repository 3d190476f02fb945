"""The student alone: the baseline of every distilled student."""

from torch import Tensor

from edkd.distillers._base import Distiller
from edkd.registry import METHODS
from edkd.types import Batch, Output


@METHODS.register("NONE")
class Vanilla(Distiller):
    """Cross-entropy with the labels, without a teacher."""

    needs_teacher = False

    def losses(self, student: Output, teacher: None, batch: Batch) -> dict[str, Tensor]:
        """No term besides the task loss."""
        return {}
