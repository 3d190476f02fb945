"""Running means on the device, read only when a line or a curve needs them."""

from typing import Any

import torch
from torch import Tensor

from edkd import world
from edkd.types import class_numbers


class Meter:
    """Means over the images seen so far: each term of the loss, and top-1 in percent.

    With several students, `top1` is the mean over them, and `student1_top1`, ... are their own.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sums: Tensor | float = 0.0
        self.count = 0

    def add(
        self, losses: dict[str, Tensor], logits: Tensor, target: Tensor, count: int | None = None
    ) -> None:
        """Add a batch, or this process's share of one.

        Args:
            losses: means over the batch.
            logits: (N,C), or (S,N,C) of S students.
            target: (N,), class numbers; (N,C), class probabilities.
            count: images that count, all N or 0; None: all.
        """
        count = len(target) if count is None else count
        hits = (logits.argmax(-1) == class_numbers(target)).float()
        accuracies = {"top1": hits.mean() * 100}
        if logits.dim() == 3:
            for number, of_student in enumerate(hits, 1):
                accuracies[f"student{number}_top1"] = of_student.mean() * 100

        figures = losses | accuracies
        terms = [figure.float() for figure in figures.values()]
        self.names = list(figures)
        self.sums = self.sums + torch.stack(terms) * count
        self.count += count

    def read(self) -> dict[str, float]:
        """The means over the images of all processes; waits for the device."""
        sums, count = self._totals()
        means = [value / count for value in sums.tolist()]
        return dict(zip(self.names, means, strict=True))

    def _totals(self) -> tuple[Tensor, int]:
        """The sums and the number of images of all processes."""
        assert isinstance(self.sums, Tensor), "no batch was added"
        sums = world.add_up(self.sums.clone())
        return sums, sum(world.gather_objects(self.count))

    def state_dict(self) -> dict[str, Any]:
        """The state for `load_state_dict`; the sums (F,) of each process, where there are several.

        They are kept apart, so that a resumed run adds in the same order.
        """
        if world.size() == 1:
            return {"names": self.names, "sums": self.sums, "count": self.count}
        assert isinstance(self.sums, Tensor), "no batch was added"
        counts = world.gather_objects(self.count)
        return {"names": self.names, "sums": world.gather(self.sums), "count": counts}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue with the sums of another meter.

        Where it was that of as many processes, each continues with its own; else the first one
        continues with all.
        """
        sums = state["sums"].to(device)
        counts = state["count"]
        if sums.dim() == 1:
            sums = sums[None]
            counts = [counts]

        own = [world.rank()]
        if len(counts) != world.size():
            own = list(range(len(counts))) if world.is_first() else []
        self.names = state["names"]
        self.sums = sums[own].sum(0)
        self.count = sum(counts[each] for each in own)
