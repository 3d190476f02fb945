"""SGD with a momentum buffer for each kind of terms of the loss: what such update rules share."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn, optim

from edkd import world
from edkd.engine.optimizer import make_plain_sgd
from edkd.engine.update import Losses, Update
from edkd.errors import UserError

Parts = tuple[Tensor | None, ...]
"""Gradients of a parameter, one for each kind of terms; None: the kind does not reach it."""


class SeveralMomenta(Update):
    """SGD with several momentum buffers.

    v_k = m_k * v_k + g_k
    theta = theta - lr * sum_k v_k

    g_k is the gradient of all terms of kind k. A parameter that not all kinds reach has the
    momentum SOLVER.MOMENTUM. Weight decay is added to the first gradient that reaches it. It takes
    one backward pass for each kind, through one graph.
    """

    title: ClassVar[str]
    """SOLVER.TRAINER, for messages."""
    buffers: ClassVar[tuple[str, ...]]
    """Names of the buffers in the optimizer's state, one for each kind."""

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        cfg: Any,
        device: torch.device,
        amp: torch.dtype | None,
    ) -> None:
        self._check_solver(cfg.SOLVER, amp)
        super().__init__(groups, cfg, device, amp)

        self.momenta = self.own_momenta(cfg.SOLVER)
        self.decays = [
            group.get("weight_decay", cfg.SOLVER.WEIGHT_DECAY)
            for group in groups
            for _ in group["params"]
        ]
        self.gradients: list[Parts] = []

    # What a rule defines.

    def own_momenta(self, solver: Any) -> list[float]:
        """The momentum of each buffer.

        Args:
            solver: the node SOLVER.
        """
        raise NotImplementedError

    def kind_of(self, name: str) -> int:
        """The place of the buffer to which a term of the loss belongs.

        Args:
            name: of the term.
        """
        raise NotImplementedError

    # What the engine calls.

    def make_optimizer(self, groups: Sequence[dict[str, Any]]) -> optim.Optimizer:
        """SGD without momentum or decay: the direction of each step is computed here."""
        optimizer = make_plain_sgd(groups, self.cfg)
        for parameter in self.parameters:
            for name in self.buffers:
                buffer = torch.zeros_like(parameter, requires_grad=False)
                optimizer.state[parameter][name] = buffer
        return optimizer

    def buffers_per_parameter(self) -> int:
        """One momentum for each kind."""
        return len(self.buffers)

    def terms_by_kind(self, losses: Losses) -> list[list[Tensor]]:
        """The terms of each kind."""
        kinds: list[list[Tensor]] = [[] for _ in self.buffers]
        for name, loss in losses.items():
            if name != "loss":
                kinds[self.kind_of(name)].append(loss)
        return kinds

    def backward(self, losses: Losses) -> None:
        """Compute the gradient of each kind; those of a batch's parts add up."""
        kinds = self.terms_by_kind(losses)
        last = len(kinds) - 1
        found = [self._gradient(terms, number < last) for number, terms in enumerate(kinds)]

        parts: list[Parts] = list(zip(*found, strict=True))
        if self.gradients:  # of an earlier part of the batch
            parts = [_sums(*both) for both in zip(self.gradients, parts, strict=True)]
        self.gradients = parts

    def step(
        self,
        losses: Losses,
        recompute: Callable[[], Losses] | None = None,
        ends_step: bool = True,
    ) -> None:
        """See `Update.step`."""
        present = [each for parts in self.gradients for each in parts if each is not None]
        world.average(present)
        self._clip_sum(present)

        # From the first step that is not finite no update is made, so the buffers do not matter.
        self._set_directions()
        if self.may_update(losses, ends_step):
            self.optimizer.step()

        self.optimizer.zero_grad(set_to_none=True)
        self.gradients = []

    def _gradient(self, terms: list[Tensor], retain_graph: bool) -> Parts:
        trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        found = torch.autograd.grad(
            torch.stack(terms).sum(), trained, retain_graph=retain_graph, allow_unused=True
        )
        by_parameter = {id(p): gradient for p, gradient in zip(trained, found, strict=True)}
        return tuple(by_parameter.get(id(parameter)) for parameter in self.parameters)

    @torch.no_grad()
    def _clip_sum(self, present: list[Tensor]) -> None:
        """Scale all gradients so that their sum has a norm of at most CLIP_GRAD_NORM."""
        largest = self.cfg.SOLVER.CLIP_GRAD_NORM
        if not largest:
            return
        sums = [_sum(parts) for parts in self.gradients]
        reached = [each for each in sums if each is not None]
        norm = nn.utils.get_total_norm(reached)
        factor = (largest / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(present, factor)

    @torch.no_grad()
    def _set_directions(self) -> None:
        """Update the buffers; their sum, which SGD subtracts, replaces the gradient."""
        for kind, name in enumerate(self.buffers):
            reached = [i for i, parts in enumerate(self.gradients) if parts[kind] is not None]
            if not reached:
                continue

            weights: list[Any] = [self.parameters[i] for i in reached]
            buffers: list[Any] = [self.optimizer.state[weight][name] for weight in weights]
            gradients: list[Any] = [self.gradients[i][kind] for i in reached]
            momenta = [self._momentum(i, kind) for i in reached]
            decays = [self.decays[i] * self._decays(i, kind) for i in reached]

            torch._foreach_mul_(buffers, momenta)
            torch._foreach_add_(buffers, gradients)
            torch._foreach_add_(buffers, list(torch._foreach_mul(weights, decays)))
            for weight, buffer in zip(weights, buffers, strict=True):
                other = weight.grad
                weight.grad = buffer.clone() if other is None else other + buffer

    def _momentum(self, i: int, kind: int) -> float:
        if any(each is None for each in self.gradients[i]):
            return self.cfg.SOLVER.MOMENTUM
        return self.momenta[kind]

    def _decays(self, i: int, kind: int) -> bool:
        """Whether a buffer has the weight decay."""
        return all(each is None for each in self.gradients[i][:kind])

    def _check_solver(self, solver: Any, amp: torch.dtype | None) -> None:
        """Raise UserError for keys that the rule cannot follow."""
        rule = f"SOLVER.TRAINER {self.title}"
        if solver.TYPE != "SGD":
            raise UserError(f"{rule} needs SOLVER.TYPE SGD, not {solver.TYPE}")
        if solver.NESTEROV:
            raise UserError(f"{rule} has no Nesterov momentum; set SOLVER.NESTEROV False")
        if amp == torch.float16:
            raise UserError(f"{rule} cannot scale the loss for SOLVER.AMP fp16; use bf16 or off")

        momenta = self.own_momenta(solver)
        if min(momenta) < 0 or max(momenta) >= 1:
            node = f"SOLVER.{self.title.upper()}"
            *first, last = [f"{momentum:g}" for momentum in momenta]
            raise UserError(
                f"{node}: the momenta would be {', '.join(first)} and {last}, but must be at least "
                f"0 and below 1; change SOLVER.MOMENTUM or the keys {node}.DELTA*"
            )


def _sums(first: Parts, second: Parts) -> Parts:
    """The sum of the gradients of each kind."""
    return tuple(_sum(pair) for pair in zip(first, second, strict=True))


def _sum(parts: Parts) -> Tensor | None:
    present = [gradient for gradient in parts if gradient is not None]
    return torch.stack(present).sum(0) if present else None
