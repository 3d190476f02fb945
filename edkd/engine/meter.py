"""Running means on the device, read only when a line or a curve needs them."""

from typing import Any

import torch
from torch import Tensor


class Meter:
    """Means over the images seen so far: each term of the loss, and top-1 in percent.

    With several students, `top1` is the mean over them, and `student1_top1`, ... are their own.
    """

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
        hits = (logits.argmax(-1) == classes).float()
        accuracies = {"top1": hits.mean() * 100}
        if logits.dim() == 3:
            for number, of_student in enumerate(hits, 1):
                accuracies[f"student{number}_top1"] = of_student.mean() * 100

        figures = losses | accuracies
        terms = [figure.float() for figure in figures.values()]
        self.names = list(figures)
        self.sums = self.sums + torch.stack(terms) * len(target)
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
