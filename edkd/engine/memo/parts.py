"""Parts of an epoch, for outputs of which the device does not hold a whole epoch's."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from edkd.dataset import NumberedLoader

TABLE_BYTES = 2**30
"""Size of the tables on the device from which on they hold a part of an epoch at a time."""


class Part(NamedTuple):
    """Some batches of an epoch, one after the other."""

    epoch: int
    number: int
    """From 0."""


class EpochParts:
    """The parts of an epoch, and where the rows of the present one are.

    Args:
        loader: calls its listeners before each batch.
        row_bytes: of a row of the tables.
        device: of the tables.

    Attributes:
        num_rows: rows of the tables.
        places: (set_size,), the row of each image of the present part. A captured CUDA graph reads
            it: it is filled in place.
        present: None: none.
        show: called with the progress of the teacher.
    """

    def __init__(self, loader: NumberedLoader, row_bytes: int, device: torch.device) -> None:
        self.batch_size = loader.batch_size
        self.batches = max(1, TABLE_BYTES // (row_bytes * self.batch_size))
        self.num_rows = self.batches * self.batch_size + 1  # a single last image joins its batch
        self.places = torch.zeros(loader.set_size, dtype=torch.long, device=device)
        self.num_batches = len(loader)
        self.present: Part | None = None
        self.show: Callable[[str], None] = lambda line: None

    @classmethod
    def needed(
        cls, loader: NumberedLoader, row_bytes: int, device: torch.device
    ) -> "EpochParts | None":
        """The parts, where the rows of all images are too many; None where they are not."""
        if loader.listeners is None or loader.set_size * row_bytes <= TABLE_BYTES:
            return None
        return cls(loader, row_bytes, device)

    def restart(self, show: Callable[[str], None]) -> None:
        """Begin an epoch, of which no part is present."""
        self.present = None
        self.show = show

    def of_batch(self, epoch: int, number: int) -> Part:
        """The part that has a batch, by its number from 0."""
        return Part(epoch, number // self.batches)

    def images(self, part: Part) -> slice:
        """Its images, in the order of the epoch."""
        first = part.number * self.batches
        is_last = first + self.batches >= self.num_batches
        end = None if is_last else (first + self.batches) * self.batch_size
        return slice(first * self.batch_size, end)

    def place(self, index: Tensor, start: int) -> Tensor:
        """Give images the rows from `start` on.

        Args:
            index: (K,), image numbers, on the device.

        Returns:
            Their rows, (K,).
        """
        rows = torch.arange(start, start + len(index), device=index.device)
        self.places[index] = rows
        return rows
