"""The k largest probabilities of a teacher and the mass of the rest, instead of all logits.

Z. Shen, E. Xing, "A Fast Knowledge Distillation Framework for Visual Recognition", ECCV 2022,
arXiv:2112.01528, where replaying them so is called marginal smoothing.
"""

import math

import torch
from torch import Tensor

from edkd.engine.memo.rows import LOGITS, Field, Values

TOP_LOG = "top_log_probabilities"
"""(N,k), largest first."""
TOP_CLASS = "top_classes"
"""(N,k), their class numbers."""
REST_LOG = "rest_log_probability"
"""(N,1), of all other classes together."""

DTYPE = torch.float16
"""Of a stored log-probability l, if none is given: its error is at most |l| / 2048."""


def fields_of(k: int, num_classes: int, dtype: torch.dtype) -> list[Field]:
    """The fields of a row, of 4 k + 2 bytes with 16-bit numbers.

    Args:
        k: classes with a probability of their own, below `num_classes`.
        num_classes: of the teacher.
        dtype: of a log-probability.
    """
    kind = torch.int16 if num_classes <= 2**15 else torch.int32
    return [Field(TOP_LOG, k, dtype), Field(TOP_CLASS, k, kind), Field(REST_LOG, 1, dtype)]


def shortened(logits: Tensor, k: int) -> Values:
    """The values of the fields.

    Args:
        logits: (N,C).
        k: below C.
    """
    # The logits decide the order: rounded log-probabilities may be equal where logits are not.
    classes = logits.topk(k, 1).indices
    log_p = logits.float().log_softmax(1)
    top = log_p.gather(1, classes)
    rest = log_p.scatter(1, classes, -torch.inf).logsumexp(1, keepdim=True)
    return {TOP_LOG: top, TOP_CLASS: classes, REST_LOG: rest}


def with_logits(num_classes: int, values: Values) -> Values:
    """Replace the fields by logits (N,C), float32, whose softmax has these probabilities.

    The mass of the rest is spread evenly over the other classes. It happens on the device alone, so
    that a CUDA graph can contain it.

    Args:
        num_classes: C.
        values: from `shortened`, in any type, perhaps with further outputs.

    Example:
        >>> logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
        >>> with_logits(4, shortened(logits, 2))["logits"].softmax(1)
        tensor([[0.5000, 0.2500, 0.1250, 0.1250]])
    """
    others = dict(values)
    top = others.pop(TOP_LOG).float()
    classes = others.pop(TOP_CLASS).long()
    rest = others.pop(REST_LOG).float()

    each = rest - math.log(num_classes - top.shape[1])
    logits = each.repeat(1, num_classes).scatter(1, classes, top)
    return others | {LOGITS: logits}
