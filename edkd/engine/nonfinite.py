"""Detects losses and gradients that are not finite, on the device."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

GRADIENT = "norm of the gradient"

REMEDY = "lower SOLVER.LR, or set SOLVER.CLIP_GRAD_NORM"


class FiniteWatch:
    """Checks the losses and the gradient of each step.

    From the first step that is not finite, no update is made. The check never waits for the
    device: `skip` tells a fused optimizer there, and the trainer calls `read` from time to time.
    """

    def __init__(self, device: torch.device) -> None:
        self.failed = torch.zeros((), dtype=torch.bool, device=device)
        self.good_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.figures: dict[tuple[str, ...], Tensor] = {}  # by their names, which differ by update

    def reset(self) -> None:
        """Start again, in the same tensors: a captured step refers to them."""
        self.failed.zero_()
        self.good_steps.zero_()

    @torch.no_grad()
    def skip(
        self,
        losses: dict[str, Tensor],
        parameters: Iterable[nn.Parameter],
        ends_step: bool = True,
    ) -> Tensor:
        """Check an update after its backward pass.

        Args:
            losses: scalars.
            parameters: their gradients must be finite; none where scaled gradients may overflow.
            ends_step: whether this is the last update of the step.

        Returns:
            1 where the update must be skipped, else 0, in the form of an optimizer's `found_inf`.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = get_total_norm(gradients).to(self.failed.device)
        terms = [loss.float() for loss in losses.values()]
        figures = torch.stack([*terms, norm.float()])

        # In place, for a captured step: the figures of the first step that failed stay.
        names = (*losses, GRADIENT)
        kept = self.figures.setdefault(names, torch.zeros_like(figures))
        kept.copy_(torch.where(self.failed, kept, figures))

        self.failed.logical_or_(~figures.isfinite().all())
        if ends_step:
            self.good_steps.add_(~self.failed)
        return self.failed.float()

    def read(self) -> tuple[int, dict[str, float]] | None:
        """None, or the number of steps before the first that failed, and its figures.

        Waits for the device.
        """
        if not self.failed.item():
            return None

        for names, kept in self.figures.items():
            if not kept.isfinite().all():
                figures = dict(zip(names, kept.tolist(), strict=True))
                return int(self.good_steps.item()), figures
        raise AssertionError("a step failed, but all of its figures are finite")


def describe_step(
    epoch: int, step: int, figures: dict[str, float], index: Tensor | None
) -> dict[str, Any]:
    """The content of `nonfinite.json`.

    Args:
        epoch: from 1.
        step: of the epoch, from 0.
        figures: losses and the norm of the gradient.
        index: numbers of the step's images, where they are known.
    """
    return {
        "epoch": epoch,
        "step": step + 1,
        "figures": {name: str(value) for name, value in figures.items()},
        "index": None if index is None else index.tolist(),
    }
