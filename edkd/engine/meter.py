"""Running means on the device, read only when a line or a curve needs them."""

from typing import Any

import torch
from torch import Tensor


class Meter:
    """Means over the images seen so far, of each term of the loss and of top-1 in percent."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sums: Tensor | float = 0.0
        self.count = 0

    def add(self, losses: dict[str, Tensor], logits: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            losses: means over the batch.
            logits: (N,C), or (S,N,C) of S students.
            target: (N,), class numbers; (N,C), class probabilities.
        """
        classes = target.argmax(1) if target.dim() == 2 else target
        hits = logits.argmax(-1) == classes
        top1 = hits.float().mean() * 100
        terms = [loss.float() for loss in losses.values()]

        self.names = [*losses, "top1"]
        self.sums = self.sums + torch.stack([*terms, top1]) * len(target)
        self.count += len(target)

    def read(self) -> dict[str, float]:
        """The means; waits for the device."""
        assert isinstance(self.sums, Tensor), "no batch was added"
        means = [value / self.count for value in self.sums.tolist()]
        return dict(zip(self.names, means, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The state for `load_state_dict`."""
        return {"names": self.names, "sums": self.sums, "count": self.count}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue with the sums of another meter."""
        self.names = state["names"]
        self.sums = state["sums"].to(device)
        self.count = state["count"]
