"""Networks and optimizers that the caller made are given back as they were."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn, optim

from edkd.engine.given_optimizers import align_states


@contextmanager
def modes_kept(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Give networks back in the mode, training or evaluation, that each module had."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def flags_kept(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Give parameters back with their gradient flags."""
    flags = [(p, p.requires_grad) for network in networks for p in network.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def layouts_kept(
    networks: Sequence[nn.Module], optimizers: Sequence[optim.Optimizer]
) -> Iterator[None]:
    """Give weights back contiguous that were so, after a training in channels_last.

    `view` and files of safetensors need it.

    Args:
        optimizers: their states follow the layout of the weights.
    """
    names = [
        {name for name, tensor in _named_tensors(network) if tensor.is_contiguous()}
        for network in networks
    ]
    try:
        yield
    finally:
        for network, contiguous in zip(networks, names, strict=True):
            for name, tensor in _named_tensors(network):
                if name in contiguous:
                    _make_contiguous(tensor)
        align_states(optimizers)


@contextmanager
def rates_kept(optimizers: Sequence[optim.Optimizer]) -> Iterator[None]:
    """Give optimizers back with the learning rates that the schedule has scaled."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rates = [group["lr"] for group in groups]
    try:
        yield
    finally:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate


def _named_tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers (N,C,H,W), which alone have a layout; one may have several names."""
    parameters = network.named_parameters(remove_duplicate=False)
    buffers = network.named_buffers(remove_duplicate=False)
    return [(name, tensor) for name, tensor in (*parameters, *buffers) if tensor.dim() == 4]


def _make_contiguous(tensor: Tensor) -> None:
    """Convert a tensor, and its gradient, in place."""
    tensor.data = tensor.data.contiguous()
    if tensor.grad is not None:
        tensor.grad.data = tensor.grad.data.contiguous()
