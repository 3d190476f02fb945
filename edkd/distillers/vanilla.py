"""The student alone: the baseline of every distilled student."""

from torch import Tensor

from edkd.distillers._base import Distiller
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output


@METHODS.register("NONE")
class Vanilla(Distiller):
    """CE_WEIGHT * cross-entropy with the labels, without a teacher.

    With a weight of 2, a control for methods that add a second loss: twice the gradient, and no
    knowledge.
    """

    needs_teacher = False
    defaults = dict(CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0))

    def losses(self, student: Output, teacher: None, batch: Batch) -> dict[str, Tensor]:
        """No term besides the task loss."""
        return {}
