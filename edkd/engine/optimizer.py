"""The optimizer of the student's and the method's parameters."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from edkd.keys import Key

KEYS = {
    "SOLVER.TYPE": Key("SGD", "optimizer", choices=("SGD", "Adam", "AdamW")),
    "SOLVER.WEIGHT_DECAY": Key(0.0001, "of all parameters, as published", low=0.0),
    "SOLVER.MOMENTUM": Key(0.9, "of SGD", low=0, high=1),
    "SOLVER.NESTEROV": Key(False, "Nesterov momentum of SGD"),
    "SOLVER.BETAS": Key([0.9, 0.999], "of Adam and AdamW", low=0, high=1),
}


def make_optimizer(groups: Sequence[dict[str, Any]], cfg: Any) -> optim.Optimizer:
    """SGD, Adam or AdamW as SOLVER says, with a fused update where the device has one.

    Args:
        groups: `params`, and either `lr_factor` (of SOLVER.LR) or a published `lr`.
        cfg: SOLVER is read.
    """
    solver = cfg.SOLVER
    with_factors = [_with_factor(group, solver.LR) for group in groups]
    parameters = [parameter for group in groups for parameter in group["params"]]

    kind = getattr(optim, solver.TYPE)
    options = {"lr": solver.LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.TYPE == "SGD":
        options |= {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    else:
        options |= {"betas": tuple(solver.BETAS)}
    if has_fused_update(kind, parameters[0].device):
        options["fused"] = True

    optimizer = kind(with_factors, **options)
    if solver.TYPE == "SGD" and solver.MOMENTUM:
        _start_momentum(optimizer, parameters)
    return optimizer


def make_plain_sgd(groups: Sequence[dict[str, Any]], cfg: Any) -> optim.Optimizer:
    """SGD without momentum and weight decay, for update rules that compute the direction."""
    with_factors = [_with_factor(group, cfg.SOLVER.LR) for group in groups]
    with_factors = [{key: g[key] for key in ("params", "lr_factor")} for g in with_factors]
    device = groups[0]["params"][0].device
    fused = has_fused_update(optim.SGD, device)
    return optim.SGD(with_factors, lr=cfg.SOLVER.LR, fused=fused)


def has_fused_update(kind: type[optim.Optimizer], device: torch.device) -> bool:
    """Whether one kernel can update all parameters on a device."""
    takes_fused = "fused" in inspect.signature(kind).parameters
    return takes_fused and device.type in ("cpu", "cuda")


def is_fused(optimizer: optim.Optimizer) -> bool:
    """Whether an optimizer updates all parameters by one kernel, which can skip the update."""
    return bool(optimizer.defaults.get("fused"))


def set_learning_rate(optimizer: optim.Optimizer, rate: float) -> None:
    """Set the rate of each group, times its factor.

    In place where a captured step made the rate a tensor.
    """
    for group in optimizer.param_groups:
        own = rate * group.get("lr_factor", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def _with_factor(group: dict[str, Any], rate: float) -> dict[str, Any]:
    """A parameter group with `lr_factor`; a published group states its own `lr` instead."""
    if "lr_factor" in group or "lr" not in group:
        return {"lr_factor": 1.0} | group
    factor = group["lr"] / rate if rate else 1.0
    return group | {"lr_factor": factor}


def _start_momentum(optimizer: optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Begin with buffers of zeros; the first gradient makes the same of them as of no buffer.

    If the first step is skipped, the fused kernel would leave new buffers uninitialised.
    """
    for parameter in parameters:
        buffer = torch.zeros_like(parameter, requires_grad=False)
        optimizer.state[parameter]["momentum_buffer"] = buffer
