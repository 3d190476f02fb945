"""What a row of the store holds: a teacher's logits or pooled features, or both, as bytes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LOGITS = "logits"
POOLED = "pooled_feat"

Values = dict[str, Tensor]
"""Outputs of a teacher by name, (N,width) each."""


class Field(NamedTuple):
    """An output of a teacher in a row."""

    name: str
    width: int
    """Its numbers."""
    dtype: torch.dtype
    """In which it is stored."""

    @property
    def num_bytes(self) -> int:
        """In a row."""
        return self.width * self.dtype.itemsize


class RowFormat:
    """The fields of a row, one after the other.

    Args:
        fields: at least one.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        self.num_bytes = sum(field.num_bytes for field in fields)

    def stored(self, values: Mapping[str, Tensor]) -> Values:
        """The outputs of the fields, in the types in which they are stored."""
        return {field.name: values[field.name].to(field.dtype) for field in self.fields}

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """Outputs from `stored` as rows (N,num_bytes), uint8, on their device."""
        parts = [values[field.name].contiguous().view(torch.uint8) for field in self.fields]
        return torch.cat(parts, 1)

    def unpack(self, rows: np.ndarray) -> Values:
        """The reverse, on the CPU."""
        content = torch.from_numpy(rows)
        widths = [field.num_bytes for field in self.fields]
        parts = content.split(widths, 1)
        return {
            field.name: part.contiguous().view(field.dtype)
            for field, part in zip(self.fields, parts, strict=True)
        }
