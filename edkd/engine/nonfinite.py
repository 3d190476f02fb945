"""Detects losses and gradients that are not finite, on the device."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edkd import world

GRADIENT = "norm of the gradient"


class Kept(NamedTuple):
    """The figures of an update."""

    names: tuple[str, ...]
    """Of the losses and of the norm of the gradient, which come first in `figures`."""
    figures: Tensor
    """(F,): losses, norm of the gradient, norm of the gradient of each parameter."""
    parameters: list[Tensor]


class FiniteWatch:
    """Checks the losses and the gradient of each step.

    From the first step that is not finite, no update is made. The check never waits for the
    device: `skip` tells a fused optimizer there, and the trainer calls `read` from time to time.
    """

    def __init__(self, device: torch.device) -> None:
        self.failed = torch.zeros((), dtype=torch.bool, device=device)
        self.good_steps = torch.zeros((), dtype=torch.int64, device=device)

        # By the names of the losses and the numbers of the parameters, which differ by update.
        self.kept: dict[tuple[Any, ...], Kept] = {}

    def reset(self) -> None:
        """Start again, in the same tensors: a captured step refers to them."""
        self.failed.zero_()
        self.good_steps.zero_()

    @torch.no_grad()
    def skip(
        self,
        losses: dict[str, Tensor],
        parameters: Sequence[Tensor],
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
        reached = tuple(i for i, each in enumerate(parameters) if each.grad is not None)
        norms = norms_of([parameters[i].grad for i in reached], self.failed.device)
        terms = torch.stack([loss.detach().float() for loss in losses.values()])
        world.average([terms])  # all processes must come to one decision
        whole = torch.linalg.vector_norm(norms)
        figures = torch.cat([terms, whole[None], norms])

        # In place, for a captured step: the figures of the first step that failed stay.
        key = (*losses, *reached)
        if key not in self.kept:
            names = (*losses, GRADIENT)
            of_update = [parameters[i] for i in reached]
            self.kept[key] = Kept(names, torch.zeros_like(figures), of_update)
        kept = self.kept[key].figures
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

        kept = self._failed_update()
        values = kept.figures[: len(kept.names)].tolist()
        figures = dict(zip(kept.names, values, strict=True))
        return int(self.good_steps.item()), figures

    def bad_parameters(self) -> list[Tensor]:
        """The parameters whose gradients were not finite in the step that failed."""
        kept = self._failed_update()
        is_finite = kept.figures[len(kept.names) :].isfinite().tolist()
        pairs = zip(kept.parameters, is_finite, strict=True)
        return [parameter for parameter, finite in pairs if not finite]

    def _failed_update(self) -> Kept:
        for kept in self.kept.values():
            if not kept.figures.isfinite().all():
                return kept
        raise AssertionError("a step failed, but all of its figures are finite")


def norms_of(gradients: list[Any], device: torch.device) -> Tensor:
    """The norm of each gradient, (P,), float32."""
    if not gradients:
        return torch.zeros(0, device=device)
    if len({(each.dtype, each.device) for each in gradients}) == 1:
        norms = list(torch._foreach_norm(gradients))
    else:
        norms = [torch.linalg.vector_norm(each).to(device) for each in gradients]
    return torch.stack([norm.float() for norm in norms])
