"""The update rule: backward pass, reduction over processes, clipping, optimizer step.

From the first loss or gradient that is not finite, no update is made.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn, optim
from torch.nn.utils import clip_grad_norm_

from edkd import world
from edkd.engine.nonfinite import FiniteWatch
from edkd.engine.optimizer import is_fused, make_optimizer, set_learning_rate
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import UPDATES, place

KEYS = {
    "SOLVER.TRAINER": Key(
        "base", "update rule; crd, ours and crld mean base, crd_dot dot, deepkd_aug deepkd"
    ),
    "SOLVER.CLIP_GRAD_NORM": Key(
        0.0, "largest norm of the gradient of all parameters together; 0: not clipped", low=0.0
    ),
}

PUBLISHED_NAMES = {"crd": "base", "crd_dot": "dot", "deepkd_aug": "deepkd"}
PUBLISHED_NAMES |= {"ours": "base", "crld": "base"}  # two views, of MLKD and CRLD
"""Published values of SOLVER.TRAINER, whose own loaders and loops are not needed here."""

Losses = dict[str, Tensor]
"""The terms of the loss by name, and "loss", their sum."""


@UPDATES.register("base")
class Update:
    """One optimizer step for the sum of all terms.

    A rule with its own mathematics derives from it and overrides `backward` or `step`. Both run on
    the device alone, so that a CUDA graph can hold them; the state of a rule is in tensors.

    Args:
        groups: parameter groups, see `Distiller.parameter_groups`.
        cfg: SOLVER is read; the rule's own keys are SOLVER.<NAME>.
        device: of the parameters.
        amp: type of mixed precision; None: float32.
    """

    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        cfg: Any,
        device: torch.device,
        amp: torch.dtype | None,
    ) -> None:
        self.cfg = cfg
        self.parameters: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        self.optimizer = self.make_optimizer(groups)
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == torch.float16)
        self.watch = FiniteWatch(device)

    def make_optimizer(self, groups: Sequence[dict[str, Any]]) -> optim.Optimizer:
        """The optimizer that SOLVER names."""
        return make_optimizer(groups, self.cfg)

    def prepare(self, distiller: Any) -> None:
        """Adjust a method before its first step; UserError if the rule cannot train it."""

    def backward(self, losses: Losses) -> None:
        """Compute the gradients of a forward pass; those of a batch's parts add up."""
        loss = losses["loss"]
        if self.scaler.is_enabled():
            # The scaler skips updates with gradients that overflow, but not the ones after a loss
            # that was not finite.
            loss = loss * torch.where(self.watch.failed, torch.nan, 1.0)
        self.scaler.scale(loss).backward()

    def step(
        self,
        losses: Losses,
        recompute: Callable[[], Losses] | None = None,
        ends_step: bool = True,
    ) -> None:
        """Update the parameters from their gradients, and clear these.

        Args:
            losses: of the forward pass.
            recompute: runs the forward pass for the same batch again, with the present weights,
                for rules that need a second gradient.
            ends_step: whether this is the last update for the batch.
        """
        world.average([p.grad for p in self.parameters if p.grad is not None])
        if not self.may_update(losses, ends_step):
            self.optimizer.zero_grad(set_to_none=True)
            return

        self.clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def may_update(self, losses: Losses, ends_step: bool) -> bool:
        """Check losses and gradients; False where the update must be skipped here.

        A fused optimizer is told on the device and skips the update itself.
        """
        scaled = self.scaler.is_enabled()  # scaled gradients may overflow: the scaler checks them
        skip = self.watch.skip(losses, [] if scaled else self.parameters, ends_step)
        if scaled:
            return True
        if is_fused(self.optimizer):
            self.optimizer.found_inf = skip  # type: ignore[attr-defined]
            return True
        return not skip.item()

    def clip(self) -> None:
        """Limit the norm of the gradient to CLIP_GRAD_NORM."""
        if self.cfg.SOLVER.CLIP_GRAD_NORM:
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.parameters, self.cfg.SOLVER.CLIP_GRAD_NORM)

    def buffers_per_parameter(self) -> int:
        """Tensors of the size of a parameter that are kept for it, at most."""
        return 1 if self.cfg.SOLVER.TYPE == "SGD" else 2

    def set_learning_rate(self, rate: float) -> None:
        """Set the rate of the next steps."""
        set_learning_rate(self.optimizer, rate)

    def recorded_rate(self, rate: float) -> float:
        """The learning rate of a record, for the schedule's rate."""
        return rate

    def check_terms(self, losses: Losses) -> None:
        """Raise UserError where a method's terms of the loss do not suit the rule."""

    def has_no_scale(self) -> bool:
        """Whether fp16 found no scale at which the gradient is finite."""
        return self.scaler.is_enabled() and self.scaler.get_scale() < 1

    def state_dict(self) -> dict[str, Any]:
        """The state for `load_state_dict`."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the state of another run."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

        # Whether the update is fused is a matter of this device, not of the one before.
        for group in self.optimizer.param_groups:
            if "fused" in group:
                group["fused"] = self.optimizer.defaults["fused"]


def find_update(name: str) -> type[Update]:
    """The update rule of a SOLVER.TRAINER."""
    return UPDATES.find(PUBLISHED_NAMES.get(name.lower(), name)).value


def _check_update(name: str, cls: Any) -> None:
    if not (isinstance(cls, type) and issubclass(cls, Update)):
        raise UserError(f"update rule {name!r} of {place(cls)} must be a class derived from Update")


UPDATES.check = _check_update
