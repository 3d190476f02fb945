"""The update rule for optimizers that the caller made."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from edkd.engine.given_networks import held_parameters, warn_of_missing
from edkd.engine.optimizer import make_optimizer
from edkd.engine.update import Losses, Update
from edkd.errors import UserError, warn


class GivenOptimizers(Update):
    """Steps optimizers of any kind; each group keeps its own rate, scaled by the schedule.

    Parameters of the method itself, which the caller cannot know, get the optimizer of SOLVER.
    Parameters of the student that are in no optimizer keep their values, with a warning.

    Args:
        optimizers: of the student's parameters.
        student_parameters: by name.
        groups: parameter groups, see `Distiller.parameter_groups`.
        cfg: SOLVER is read.
        device: of the parameters.
        amp: type of mixed precision; None: float32.
    """

    def __init__(
        self,
        optimizers: Sequence[optim.Optimizer],
        student_parameters: Mapping[str, nn.Parameter],
        groups: Sequence[dict[str, Any]],
        cfg: Any,
        device: torch.device,
        amp: torch.dtype | None,
    ) -> None:
        if amp == torch.float16:
            raise UserError("optimizers of your own cannot scale the loss for SOLVER.AMP fp16")
        self.optimizers = list(optimizers)
        super().__init__(groups, cfg, device, amp)

        align_states(self.optimizers)  # the parameters may have another layout than before

        # The student's parameters without an optimizer keep their values.
        self._check()
        held = held_parameters(self.optimizers)
        warn_of_missing(student_parameters.items(), held)
        of_student = {id(parameter) for parameter in student_parameters.values()}
        self.fixed = [p for p in self.parameters if id(p) in of_student - held]
        self.parameters = [p for p in self.parameters if id(p) not in of_student - held]

        # The method's own parameters.
        rest = [p for p in self.parameters if p.requires_grad and id(p) not in held]
        if rest:
            self.optimizers.append(make_optimizer([{"params": rest}], cfg))

        self.rates = self._rates()
        self.present: list[list[Any]] = []
        self.has_warned = False

    def make_optimizer(self, groups: Sequence[dict[str, Any]]) -> optim.Optimizer:
        """The first of them."""
        return self.optimizers[0]

    def step(
        self,
        losses: Losses,
        recompute: Callable[[], Losses] | None = None,
        ends_step: bool = True,
    ) -> None:
        """See `Update.step`; the host checks whether the update may be made."""
        skip = self.watch.skip(losses, self.parameters, ends_step)
        if not skip.item():
            self.clip()
            for optimizer in self.optimizers:
                optimizer.step()

        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        for parameter in self.fixed:
            parameter.grad = None

    def set_learning_rate(self, rate: float) -> None:
        """Scale each group's own rate by the schedule's factor."""
        if self.present and self._rates() != self.present and not self.has_warned:
            self.has_warned = True
            warn(
                "the learning rate of an optimizer was changed during the run, as by a scheduler; "
                "the change has no effect: edkd.distill sets it in each step, see its arguments "
                "schedule and lr_decay_stages"
            )

        factor = self._factor(rate)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, own in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = own * factor
        self.present = self._rates()

    def recorded_rate(self, rate: float) -> float:
        """That of the first group."""
        return float(self.rates[0][0]) * self._factor(rate)

    def state_dict(self) -> dict[str, Any]:
        """The state of all optimizers."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the state of another run; the groups keep their own rates."""
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
        self.present = []

    def buffers_per_parameter(self) -> int:
        """Enough for the optimizers of torch."""
        return 3

    def _rates(self) -> list[list[Any]]:
        """The present learning rate of each group."""
        return [[group["lr"] for group in each.param_groups] for each in self.optimizers]

    def _factor(self, rate: float) -> float:
        base = self.cfg.SOLVER.LR
        return rate / base if base else 1.0

    def _check(self) -> None:
        """Raise UserError if the optimizers hold other parameters than the run's, or one twice."""
        groups = [group for each in self.optimizers for group in each.param_groups]
        held = [parameter for group in groups for parameter in group["params"]]
        learnable = {id(parameter) for parameter in self.parameters}
        strange = [parameter for parameter in held if id(parameter) not in learnable]

        if strange:
            raise UserError(
                f"an optimizer holds {len(strange)} parameters that are not the student's; make it "
                "with the parameters of the network that is trained, after the last change of its "
                "layers"
            )
        if len({id(parameter) for parameter in held}) < len(held):
            raise UserError("two optimizers hold the same parameter; give each network its own")


def align_states(optimizers: Sequence[optim.Optimizer]) -> None:
    """Give the states of optimizers the device and the memory layout of their parameters.

    A fused update reads a parameter and its states in the order of their memory, so that with
    different layouts it computes other values, without an error.
    """
    for optimizer in optimizers:
        for parameter, states in optimizer.state.items():
            for name, state in states.items():
                if isinstance(state, Tensor) and state.shape == parameter.shape:
                    states[name] = _aligned(state, parameter)


@torch.no_grad()
def _aligned(state: Tensor, parameter: Tensor) -> Tensor:
    """The state on the device and in the memory layout of its parameter; no copy if it is so."""
    if state.stride() == parameter.stride() and state.device == parameter.device:
        return state
    return torch.empty_like(parameter, dtype=state.dtype, requires_grad=False).copy_(state)
