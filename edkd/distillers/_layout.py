"""The memory layout that a method sees: contiguous, in whatever layout the networks compute.

Networks compute faster in channels_last. Its strides differ from those of a contiguous tensor, so
that `view`, which many methods call on images and features, would fail.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edkd.types import Batch, ChangedFeatures, Output


def to_channels_last(network: nn.Module) -> None:
    """Convert the weights of a network, in place; those of 3D layers stay.

    Args:
        network: any module.
    """
    if all(parameter.dim() < 5 for parameter in network.parameters()):
        network.to(memory_format=torch.channels_last)


def contiguous_batch(batch: Batch) -> Batch:
    """The batch with contiguous images."""
    views = {
        name: view._replace(image=view.image.contiguous()) for name, view in batch.views.items()
    }
    return dataclasses.replace(batch, image=batch.image.contiguous(), views=views)


def contiguous_output(output: Any) -> Any:
    """(logits, features) with features that become contiguous when they are first looked at."""
    if not isinstance(output, tuple) or len(output) != 2:
        return output

    logits, features = output
    if not isinstance(features, Mapping):
        return Output(logits, features)
    return Output(logits, ChangedFeatures(features, _contiguous))


@contextmanager
def contiguous_features(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, these networks return contiguous features."""
    handles = [network.register_forward_hook(_convert) for network in networks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _convert(network: nn.Module, inputs: Any, output: Any) -> Any:
    return contiguous_output(output)


def _contiguous(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.contiguous()
    if isinstance(value, Sequence) and value:  # an empty one may raise when it is read
        return [_contiguous(each) for each in value]
    return value
