"""Layers that relate the images of a batch, for a batch that several processes share.

Within `shared`, batch normalisation uses the statistics of the whole batch, and dropout and
stochastic depth draw for the whole batch and use the rows of this process. So the result does not
depend on the number of processes. Networks stay as they are: the functions that they call are
replaced. Dropout within torch's attention functions is not: each process draws for its own images.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from edkd import world
from edkd.world import Counts

_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)

_modes: list["_Shared"] = []
"""Those that are in use, the innermost one last."""


class _Shared(TorchFunctionMode):
    """Replaces functions of torch within the block.

    Args:
        counts: images of each process in the batch.
        syncs: whether batch normalisation uses the whole batch.
    """

    def __init__(self, counts: Counts, syncs: bool) -> None:
        super().__init__()
        self.counts = counts
        self.syncs = syncs
        self.is_on = True
        self.rows = max(1, counts[world.rank()])
        self.total = sum(counts)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.is_on:
            return func(*args, **kwargs)
        if func is F.batch_norm and self.syncs:
            return _batch_norm(self.counts, *args, **kwargs)
        if func in _DROPOUTS and self._is_batch(args[0]):
            bound = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
            return self._drop(func, **bound)
        if func is Tensor.bernoulli_ and self._is_batch(args[0]):
            return self._bernoulli(*args, **kwargs)
        return func(*args, **kwargs)

    def _is_batch(self, tensor: Tensor) -> bool:
        return tensor.dim() > 0 and len(tensor) == self.rows

    def _drop(self, func: Callable[..., Tensor], input: Tensor, **kwargs: Any) -> Tensor:
        """Dropout with the mask of the whole batch."""
        if not kwargs.get("training", True) or not kwargs.get("p", 0.5):
            return func(input, **kwargs)
        kwargs.pop("inplace", None)
        whole = input.new_ones(self.total, *input.shape[1:])
        mask = func(whole, **kwargs)
        return input * mask[world.own_rows(self.counts, self.total)]

    def _bernoulli(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        whole = tensor.new_empty(self.total, *tensor.shape[1:]).bernoulli_(*args, **kwargs)
        return tensor.copy_(whole[world.own_rows(self.counts, self.total)])


@contextmanager
def shared(counts: Counts, syncs: bool = True) -> Iterator[None]:
    """Within the block, layers see the whole batch of which this process has a share.

    Args:
        counts: images of each process; empty: this process has all, and nothing changes.
        syncs: SOLVER.SYNC_BATCH_NORM.
    """
    if not counts:
        yield
        return
    mode = _Shared(counts, syncs)
    _modes.append(mode)
    try:
        with mode:
            yield
    finally:
        _modes.pop()


@contextmanager
def alone() -> Iterator[None]:
    """Within the block, which is within `shared`, tensors are of the whole batch already."""
    before = [mode.is_on for mode in _modes]
    for mode in _modes:
        mode.is_on = False
    try:
        yield
    finally:
        for mode, is_on in zip(_modes, before, strict=True):
            mode.is_on = is_on


def _batch_norm(
    counts: Counts,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As `F.batch_norm`, with the mean and the variance of the whole batch in training."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    is_counted = counts[world.rank()] > 0
    output, mean, var, number = _SyncedBatchNorm.apply(input, weight, bias, is_counted, eps)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            unbiased = var * (number / (number - 1).clamp(min=1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return output


class _SyncedBatchNorm(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with the statistics of all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        is_counted: bool,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Also returns mean and variance (C,), and the number of values of a channel, ().

        Args:
            is_counted: whether the images of this process count.
        """
        mean, var, number = _statistics(input if is_counted else input[:0])
        inverse = (var + eps).rsqrt()
        output = F.batch_norm(input, mean, var, weight, bias, False, 0.0, eps)

        ctx.save_for_backward(input, weight, mean, var, inverse, number)
        ctx.is_counted = is_counted
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, number)
        return output, mean, var, number

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
        """Sums over the batch are those of all processes."""
        input, weight, mean, var, inverse, number = ctx.saved_tensors

        # Of this process: the gradients of weight and bias.
        mask = [False, True, True]
        constants = (mean, var, None, None, False, ctx.eps, mask)
        unit = torch.ones_like(mean) if weight is None else weight
        _, of_weight, of_bias = _backward(gradient, input, unit, *constants)
        means = world.add_up(torch.stack([of_bias, of_weight]).to(mean.dtype)) / number

        # With u = (x - mean) / sqrt(var + eps), of the input:
        # scale * (gradient - mean(gradient) - u * mean(gradient * u)) = a * gradient + b * x + c.
        # Images that do not count have no part in the statistics.
        scale = inverse if weight is None else inverse * weight.to(mean.dtype)
        of_input = gradient * _as_channels(scale, input)
        if ctx.is_counted:
            slope = scale * inverse * means[1]
            constant = scale * means[0] - slope * mean
            part = torch.addcmul(_as_channels(constant, input), input, _as_channels(slope, input))
            of_input = of_input.sub_(part)

        of_parameters = (None, None) if weight is None else (of_weight, of_bias)
        return of_input.to(input.dtype), *of_parameters, None, None


_backward = torch.ops.aten.native_batch_norm_backward


def _statistics(own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (C,) of the whole batch, and its number of values of a channel, ().

    Those of the processes are merged as by T. F. Chan et al., "Algorithms for Computing the Sample
    Variance", 1983: sums of squares would lose digits.

    Args:
        own: (N,C,...), the values of this process that count. N may be a multiple of its images, as
            where views or tokens stand in one batch.
    """
    found = torch.zeros(3, own.shape[1], dtype=_wide(own.dtype), device=own.device)
    if len(own):
        found[:2] = torch.stack(torch.batch_norm_update_stats(own, None, None, 0.0))
        found[2] = own.numel() // own.shape[1]

    means, variances, numbers = world.gather(found).unbind(1)
    total = numbers.sum(0)
    shares = numbers / total
    mean = (shares * means).sum(0)
    var = (shares * (variances + (means - mean).square())).sum(0)
    return mean, var, total[0]


def _wide(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def _as_channels(values: Tensor, input: Tensor) -> Tensor:
    """(C,) as (1,C,1,...), to be combined with the input."""
    return values.view(1, -1, *[1] * (input.dim() - 2))
