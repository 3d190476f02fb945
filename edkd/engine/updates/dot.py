"""DOT: separate momentum for the task loss and the distillation loss.

B. Zhao, Q. Cui, R. Song, J. Liang, "DOT: A Distillation-Oriented Trainer", ICCV 2023,
arXiv:2307.08436.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from edkd import world
from edkd.engine.optimizer import make_plain_sgd
from edkd.engine.update import Losses, Update
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import UPDATES

TASK_TERMS = "loss_ce"
BUFFERS = ("momentum_task", "momentum_kd")


@UPDATES.register("dot")
class DOT(Update):
    """SGD with two momentum buffers (equations 6 and 7).

    v_ce = (mu - DELTA) * v_ce + g_ce + w * theta
    v_kd = (mu + DELTA) * v_kd + g_kd
    theta = theta - lr * (v_ce + v_kd)

    g_ce is the gradient of the terms whose names begin with loss_ce, g_kd that of all other terms,
    mu is SOLVER.MOMENTUM and w is SOLVER.WEIGHT_DECAY. A parameter that only one of the losses
    reaches has momentum mu, and weight decay in either case (as in the published code).

    It takes two backward passes through one graph.
    """

    defaults = dict(
        DELTA=Key(0.075, "difference of the momenta to SOLVER.MOMENTUM", low=0, high=1),
    )

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        cfg: Any,
        device: torch.device,
        amp: torch.dtype | None,
    ) -> None:
        _check_solver(cfg.SOLVER, amp)
        super().__init__(groups, cfg, device, amp)

        self.decays = [
            group.get("weight_decay", cfg.SOLVER.WEIGHT_DECAY)
            for group in groups
            for _ in group["params"]
        ]
        self.gradients: list[tuple[Tensor | None, Tensor | None]] = []

    def make_optimizer(self, groups: Sequence[dict[str, Any]]) -> optim.Optimizer:
        """SGD without momentum or decay: the direction of each step is computed here."""
        optimizer = make_plain_sgd(groups, self.cfg)
        for parameter in self.parameters:
            for name in BUFFERS:
                buffer = torch.zeros_like(parameter, requires_grad=False)
                optimizer.state[parameter][name] = buffer
        return optimizer

    def buffers_per_parameter(self) -> int:
        """Two momenta."""
        return len(BUFFERS)

    def check_terms(self, losses: Losses) -> None:
        """Both kinds of terms must be there."""
        names = [name for name in losses if name != "loss"]
        task = [name for name in names if name.startswith(TASK_TERMS)]
        if not task or len(task) == len(names):
            raise UserError(
                "SOLVER.TRAINER dot needs a method with terms loss_ce* and loss_kd*, but this one "
                f"has {', '.join(names)}; set SOLVER.TRAINER base"
            )

    def backward(self, losses: Losses) -> None:
        """Compute the gradients of both losses; those of a batch's parts add up."""
        terms = {name: loss for name, loss in losses.items() if name != "loss"}
        task = [loss for name, loss in terms.items() if name.startswith(TASK_TERMS)]
        distillation = [loss for name, loss in terms.items() if not name.startswith(TASK_TERMS)]

        of_task = self._gradient(task, retain_graph=True)
        of_distillation = self._gradient(distillation, retain_graph=False)
        pairs = list(zip(of_task, of_distillation, strict=True))
        if self.gradients:  # of an earlier part of the batch
            pairs = [_sums(*both) for both in zip(self.gradients, pairs, strict=True)]
        self.gradients = pairs

    def step(
        self,
        losses: Losses,
        recompute: Callable[[], Losses] | None = None,
        ends_step: bool = True,
    ) -> None:
        """See `Update.step`."""
        present = [gradient for pair in self.gradients for gradient in pair if gradient is not None]
        world.average(present)
        self._clip_sum(present)

        # From the first step that is not finite no update is made, so the buffers do not matter.
        self._set_directions()
        if self.may_update(losses, ends_step):
            self.optimizer.step()

        self.optimizer.zero_grad(set_to_none=True)
        self.gradients = []

    def _gradient(self, terms: list[Tensor], retain_graph: bool) -> tuple[Tensor | None, ...]:
        trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        found = torch.autograd.grad(
            torch.stack(terms).sum(), trained, retain_graph=retain_graph, allow_unused=True
        )
        by_parameter = {id(p): gradient for p, gradient in zip(trained, found, strict=True)}
        return tuple(by_parameter.get(id(parameter)) for parameter in self.parameters)

    @torch.no_grad()
    def _clip_sum(self, present: list[Tensor]) -> None:
        """Scale both gradients so that their sum has a norm of at most CLIP_GRAD_NORM."""
        largest = self.cfg.SOLVER.CLIP_GRAD_NORM
        if not largest:
            return
        sums = [_sum(pair) for pair in self.gradients]
        norm = nn.utils.get_total_norm([each for each in sums if each is not None])
        factor = (largest / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(present, factor)

    @torch.no_grad()
    def _set_directions(self) -> None:
        """Update the buffers; their sum, which SGD subtracts, replaces the gradient."""
        for number, name in enumerate(BUFFERS):
            reached = [i for i, pair in enumerate(self.gradients) if pair[number] is not None]
            if not reached:
                continue

            buffers: list[Any] = [self.optimizer.state[self.parameters[i]][name] for i in reached]
            gradients: list[Any] = [self.gradients[i][number] for i in reached]
            weights: list[Any] = [self.parameters[i] for i in reached]
            momenta = [self._momentum(i, number) for i in reached]
            decays = [self.decays[i] * self._decays(i, number) for i in reached]

            torch._foreach_mul_(buffers, momenta)
            torch._foreach_add_(buffers, gradients)
            torch._foreach_add_(buffers, list(torch._foreach_mul(weights, decays)))
            for i, buffer in zip(reached, buffers, strict=True):
                other = self.parameters[i].grad
                self.parameters[i].grad = buffer.clone() if other is None else other + buffer

    def _momentum(self, i: int, number: int) -> float:
        """Of a buffer: mu - DELTA, mu + DELTA, or mu where one loss alone reaches the parameter."""
        momentum = self.cfg.SOLVER.MOMENTUM
        if None in self.gradients[i]:
            return momentum
        delta = self.cfg.SOLVER.DOT.DELTA
        return momentum + delta if number else momentum - delta

    def _decays(self, i: int, number: int) -> bool:
        """Whether a buffer has the weight decay: the task's, if the task reaches the parameter."""
        return number == 0 or self.gradients[i][0] is None


Pair = tuple[Tensor | None, Tensor | None]
"""Gradients of a parameter, of the task loss and of the distillation loss."""


def _sums(first: Pair, second: Pair) -> Pair:
    """The sum of the gradients of each loss."""
    task, distillation = (_sum(pair) for pair in zip(first, second, strict=True))
    return task, distillation


def _sum(pair: Pair) -> Tensor | None:
    present = [gradient for gradient in pair if gradient is not None]
    return torch.stack(present).sum(0) if present else None


def _check_solver(solver: Any, amp: torch.dtype | None) -> None:
    if solver.TYPE != "SGD":
        raise UserError(f"SOLVER.TRAINER dot needs SOLVER.TYPE SGD, not {solver.TYPE}")
    if solver.NESTEROV:
        raise UserError("SOLVER.TRAINER dot has no Nesterov momentum; set SOLVER.NESTEROV False")
    if amp == torch.float16:
        raise UserError(
            "SOLVER.TRAINER dot cannot scale the loss for SOLVER.AMP fp16; use bf16 or off"
        )
    lowest = solver.MOMENTUM - solver.DOT.DELTA
    highest = solver.MOMENTUM + solver.DOT.DELTA
    if lowest < 0 or highest >= 1:
        raise UserError(
            f"SOLVER.DOT.DELTA is {solver.DOT.DELTA}: the momenta would be {lowest:g} and "
            f"{highest:g}, but must be at least 0 and below 1"
        )
