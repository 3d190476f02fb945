"""Running means on the device, read only when somebody looks."""

from typing import Any

import torch
from torch import Tensor


class Meter:
    """Means over the images seen so far, of each term of the loss and of the top-1 accuracy in percent."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sums: Tensor | float = 0.0
        self.count = 0

    def add(self, losses: dict[str, Tensor], logits: Tensor, target: Tensor) -> None:
        """Add a batch: terms of the loss (its means), logits (N,C) or of S students (S,N,C), targets (N,)."""
        top1 = (logits.argmax(-1) == target).float().mean() * 100
        self.names = [*losses, "top1"]
        self.sums = self.sums + torch.stack([*(loss.float() for loss in losses.values()), top1]) * len(target)
        self.count += len(target)

    def state(self) -> dict[str, Any]:
        """What `load_state` takes over."""
        return {"names": self.names, "sums": self.sums, "count": self.count}

    def load_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on with the sums of another meter."""
        self.names, self.sums, self.count = state["names"], state["sums"].to(device), state["count"]

    def read(self) -> dict[str, float]:
        """Fetch the means; waits for the device."""
        assert isinstance(self.sums, Tensor)
        return {name: value / self.count for name, value in zip(self.names, self.sums.tolist(), strict=True)}
