"""Parameters, multiplications, size and latency of a network."""

import statistics
import time
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_SECONDS = 2.0
"""Time after which no further pass is measured."""

_PASSES = 30


class Profile(NamedTuple):
    """What a network costs."""

    parameters: int
    macs: int
    """Multiply-accumulate operations of one image."""
    megabytes: float
    """Of its weights and statistics."""
    milliseconds: float
    """Median time of a forward pass of a batch."""
    batch_size: int
    threads: int


@torch.inference_mode()
def profile_network(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    device: torch.device,
    batch_size: int = 1,
) -> Profile:
    """Measure a network in eval mode, in float32.

    Args:
        network: on the device.
        image_shape: (channels, height, width).
        batch_size: images of a timed pass.
    """
    mode = network.training
    network.eval()
    image = torch.zeros(batch_size, *image_shape, device=device)

    with FlopCounterMode(display=False) as counter:
        network(image[:1])
    milliseconds = _latency(network, image)
    network.train(mode)

    state = [*network.parameters(), *network.buffers()]
    return Profile(
        parameters=sum(each.numel() for each in network.parameters()),
        macs=counter.get_total_flops() // 2,
        megabytes=sum(each.nbytes for each in state) / 1e6,
        milliseconds=milliseconds,
        batch_size=batch_size,
        threads=torch.get_num_threads(),
    )


def _latency(network: nn.Module, image: torch.Tensor) -> float:
    """Median milliseconds of a pass, after two that warm up."""
    for _ in range(2):
        network(image)

    times: list[float] = []
    while len(times) < _PASSES and sum(times) < _SECONDS:
        start = time.perf_counter()
        network(image)
        if image.is_cuda:
            torch.cuda.synchronize(image.device)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
