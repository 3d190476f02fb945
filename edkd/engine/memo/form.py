"""In which form a teacher's outputs are stored: all logits, pooled features, or the top k."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edkd import world
from edkd.distillers import find_classifier
from edkd.engine.device import autocast
from edkd.engine.memo import topk
from edkd.engine.memo.rows import LOGITS, POOLED, Field, RowFormat, Values
from edkd.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

AUTO = "auto"

TITLES = {
    LOGITS: "logits",
    POOLED: "pooled features",
    topk.TOP_LOG: "logits",
    topk.TOP_CLASS: "logits",
    topk.REST_LOG: "logits",
}
"""Of what is stored, for the log."""


class Runner(NamedTuple):
    """A teacher, and how it runs."""

    teacher: nn.Module
    amp: torch.dtype | None
    """None: float32."""
    device: torch.device


class StoredForm:
    """From outputs to rows, and from rows to outputs.

    Where pooled features are stored and the teacher's classifier makes its logits of them bit for
    bit, a row holds these alone.

    Args:
        runner: the teacher.
        sample: its outputs for some images.
        dtype: of a stored number: fp32, bf16, fp16, or auto.
        top_k: probabilities that are stored of an image; 0: all logits.

    Attributes:
        rows: what a row holds.
        outputs: makes outputs of what is stored, on the device alone; None: it is the outputs.

    Raises:
        UserError: there are not more classes than probabilities to store.
    """

    def __init__(self, runner: Runner, sample: Values, dtype: str, top_k: int) -> None:
        self.runner = runner
        self.top_k = top_k
        self.num_classes = sample[LOGITS].shape[1]
        if top_k >= self.num_classes:
            raise UserError(
                f"TEACHER_MEMO.TOP_K {top_k} is not below the number of classes, "
                f"{self.num_classes}; 0 stores all logits"
            )

        self.outputs: Callable[[Values], Values] | None = None
        if top_k:
            self.outputs = functools.partial(topk.with_logits, self.num_classes)
        self.classifier = None
        if POOLED in sample and dtype == AUTO and not top_k:
            self.classifier = self._classifier(sample)

        self.rows = RowFormat(self._fields(sample, dtype))
        stored = [field.dtype == sample[field.name].dtype for field in self._whole_fields()]
        self.is_lossless = not top_k and all(stored)

    @property
    def title(self) -> str:
        """Of what is stored, for the log: "logits"."""
        return " and ".join(dict.fromkeys(TITLES[field.name] for field in self.rows.fields))

    def __str__(self) -> str:
        """For the log: "lossless", or what is lost."""
        if self.is_lossless:
            return "lossless"
        dtype = str(self.rows.fields[-1].dtype).removeprefix("torch.")
        return (
            f"as topk {self.top_k} of {self.num_classes}, {dtype}" if self.top_k else f"as {dtype}"
        )

    def stored(self, values: Values) -> Values:
        """Of a teacher's outputs what is stored, in the types in which it is stored."""
        if self.top_k:
            values = values | topk.shortened(values[LOGITS], self.top_k)
        return self.rows.stored(values)

    def tables(self, stored: Values, size: int) -> Values:
        """What steps look up, of what is stored, (K,width) each.

        Args:
            stored: on the device.
            size: of the batches in which the teacher ran.
        """
        if self.classifier is None:
            return stored
        return stored | {LOGITS: self._classify(self.classifier, stored[POOLED], size)}

    def _fields(self, sample: Values, dtype: str) -> list[Field]:
        """The stored outputs and their types."""

        def field_of(name: str) -> Field:
            value = sample[name]
            return Field(name, value.shape[1], DTYPES.get(dtype, value.dtype))

        fields = [field_of(name) for name in sample if name != LOGITS]
        if self.top_k:
            kind = DTYPES.get(dtype, topk.DTYPE)
            fields += topk.fields_of(self.top_k, self.num_classes, kind)
        elif self.classifier is None:
            fields.append(field_of(LOGITS))
        return fields

    def _whole_fields(self) -> list[Field]:
        """The fields that are outputs of the teacher."""
        return [field for field in self.rows.fields if field.name in (LOGITS, POOLED)]

    def _classifier(self, sample: Values) -> nn.Module | None:
        """The layer that makes the logits of pooled features, with the teacher's bits."""
        teacher, amp, device = self.runner
        logits = sample[LOGITS]
        classifier = find_classifier(teacher, self.num_classes)
        if classifier is None or classifier.in_features != sample[POOLED].shape[1]:
            return None

        with torch.no_grad(), autocast(amp, device):
            derived = classifier(sample[POOLED])
        is_same = derived.dtype == logits.dtype and torch.equal(derived, logits)
        return classifier if all(world.gather_objects(is_same)) else None

    @torch.no_grad()
    def _classify(self, classifier: nn.Module, pooled: Tensor, size: int) -> Tensor:
        """Logits (K,C) of pooled features (K,D), in batches of the shape of the teacher's."""
        _, amp, device = self.runner
        num_batches = -(-len(pooled) // size)
        order = torch.arange(num_batches * size, device=device) % len(pooled)
        with autocast(amp, device):
            logits = [classifier(pooled[part]) for part in order.split(size)]
        return torch.cat(logits)[: len(pooled)]
