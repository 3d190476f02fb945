"""Whether all that a step computes is finite, found out on the device and acted upon there."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm


class FiniteWatch:
    """Looks at the loss and the gradient of each step; from the first one on that is not finite, no update is made.

    It never waits for the device: `skip` tells a fused optimizer, and the trainer reads `failed` when it suits it.
    """

    def __init__(self, device: torch.device) -> None:
        self.failed = torch.zeros((), dtype=torch.bool, device=device)
        self.good_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.figures: dict[tuple[str, ...], Tensor] = {}  # by what they are: not each update has the same terms

    def reset(self) -> None:
        """Begin anew, in the same tensors: a captured step holds on to them."""
        self.failed.zero_()
        self.good_steps.zero_()

    @torch.no_grad()
    def skip(self, losses: dict[str, Tensor], parameters: Iterable[nn.Parameter], ends_step: bool = True) -> Tensor:
        """1 where the update must not be made, else 0; after the backward pass, in the form of `found_inf`.

        Args:
            parameters: whose gradient must be finite; none where a scaled one may overflow.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = get_total_norm(gradients).to(self.failed.device)
        figures = torch.stack([*(loss.float() for loss in losses.values()), norm.float()])
        kept = self.figures.setdefault((*losses, "norm of the gradient"), torch.zeros_like(figures))
        kept.copy_(torch.where(self.failed, kept, figures))  # in place, for a captured step
        self.failed.logical_or_(~figures.isfinite().all())
        if ends_step:
            self.good_steps.add_(~self.failed)
        return self.failed.float()

    def read(self) -> tuple[int, dict[str, float]] | None:
        """None, or the number of steps before the first that failed, and its figures; waits for the device."""
        if not self.failed.item():
            return None
        names, kept = next((names, kept) for names, kept in self.figures.items() if not kept.isfinite().all())
        return int(self.good_steps.item()), dict(zip(names, kept.tolist(), strict=True))
