"""The optimizer of the student's and the method's parameters."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, optim

from edkd.errors import UserError
from edkd.hints import hint
from edkd.keys import Key

LAMB = "LAMB"
"""Y. You et al., "Large Batch Optimization for Deep Learning", ICLR 2020, arXiv:1904.00962. As in
timm's recipes, the norm of the gradient of all parameters is limited to 1."""

KEYS = {
    "SOLVER.TYPE": Key(
        "SGD", "optimizer; LAMB is that of timm", choices=("SGD", "Adam", "AdamW", "LAMB")
    ),
    "SOLVER.WEIGHT_DECAY": Key(0.0001, "of all parameters, as published", low=0.0),
    "SOLVER.DECAY_NORM_AND_BIAS": Key(
        True,
        "apply WEIGHT_DECAY also to parameters with fewer than two dimensions: norms and biases",
    ),
    "SOLVER.MOMENTUM": Key(0.9, "of SGD", low=0, high=1),
    "SOLVER.NESTEROV": Key(False, "Nesterov momentum of SGD"),
    "SOLVER.BETAS": Key([0.9, 0.999], "of Adam, AdamW and LAMB", low=0, high=1),
}


def make_optimizer(groups: Sequence[dict[str, Any]], cfg: Any) -> optim.Optimizer:
    """SGD, Adam, AdamW or LAMB as SOLVER says, with a fused update where the device has one.

    Args:
        groups: `params`; optionally `lr_factor` (of SOLVER.LR) or a published `lr`, and options of
            the optimizer, as `weight_decay`.
        cfg: SOLVER is read.

    Raises:
        UserError: a group has an option that the optimizer does not know; timm is not installed.
    """
    solver = cfg.SOLVER
    with_factors = [_with_factor(group, solver.LR) for group in groups]

    kind = optimizer_class(solver.TYPE)
    options = {"lr": solver.LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.TYPE == "SGD":
        options |= {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    else:
        options |= {"betas": tuple(solver.BETAS)}
    if has_fused_update(kind, groups[0]["params"][0].device):
        options["fused"] = True

    _check_options(with_factors, kind)
    optimizer = kind(with_factors, **options)
    if solver.TYPE == "SGD":
        _start_momentum(optimizer)
    return optimizer


def optimizer_class(name: str) -> type[optim.Optimizer]:
    """The optimizer of a SOLVER.TYPE; UserError if its package is not installed."""
    if name != LAMB:
        return getattr(optim, name)
    try:
        from timm.optim import Lamb
    except ImportError:
        raise UserError(
            f"SOLVER.TYPE {LAMB} needs the package timm: pip install 'edkd[models]'; or use AdamW"
        ) from None
    return Lamb


def split_decay(groups: Sequence[dict[str, Any]], cfg: Any) -> list[dict[str, Any]]:
    """The groups, with norms and biases in groups of their own that have no weight decay.

    With DECAY_NORM_AND_BIAS, and where a group has a weight decay of its own, nothing changes.

    Args:
        groups: see `make_optimizer`.
        cfg: SOLVER is read.
    """
    found: list[dict[str, Any]] = []
    for group in groups:
        if cfg.SOLVER.DECAY_NORM_AND_BIAS or "weight_decay" in group:
            found.append(group)
            continue

        weights = [p for p in group["params"] if p.dim() > 1]
        others = [p for p in group["params"] if p.dim() <= 1]
        if weights:
            found.append(group | {"params": weights})
        if others:
            found.append(group | {"params": others, "weight_decay": 0.0})
    return found


def make_plain_sgd(groups: Sequence[dict[str, Any]], cfg: Any) -> optim.Optimizer:
    """SGD without momentum and weight decay, for update rules that compute the direction.

    A group may have its own learning rate and weight decay, but no other option.
    """
    with_factors = [_with_factor(group, cfg.SOLVER.LR) for group in groups]
    _check_known(with_factors, {"weight_decay"}, f"SOLVER.TRAINER {cfg.SOLVER.TRAINER}")
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

    own = group["lr"]
    if own and not rate:
        raise UserError(
            f"a parameter group has the learning rate {own:g}, but SOLVER.LR, which the schedule "
            "scales, is 0; set SOLVER.LR above 0 and give the other groups lr_factor 0"
        )
    factor = own / rate if rate else 1.0
    return group | {"lr_factor": factor}


def _check_options(groups: Sequence[dict[str, Any]], kind: type[optim.Optimizer]) -> None:
    """Raise UserError for an option that torch would keep and never read."""
    known = set(inspect.signature(kind).parameters) - {"params"}
    _check_known(groups, known, f"SOLVER.TYPE {kind.__name__}")


def _check_known(groups: Sequence[dict[str, Any]], known: set[str], owner: str) -> None:
    own = {"params", "lr", "lr_factor", "name"}
    for group in groups:
        for option in group.keys() - own - known:
            raise UserError(
                f"a parameter group has {option!r}, which {owner} does not know"
                f"{hint(option, known)} (known: {', '.join(sorted(known | own))})"
            )


def _start_momentum(optimizer: optim.Optimizer) -> None:
    """Begin with buffers of zeros; the first gradient makes the same of them as of no buffer.

    If the first step is skipped, the fused kernel would leave new buffers uninitialised.
    """
    for group in optimizer.param_groups:
        if not group["momentum"]:
            continue
        for parameter in group["params"]:
            buffer = torch.zeros_like(parameter, requires_grad=False)
            optimizer.state[parameter]["momentum_buffer"] = buffer
