"""The cost of a network: parameters, multiply-accumulates, size of its weights, latency."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edkd.engine.device import pick_device
from edkd.engine.named_network import NamedNetwork
from edkd.errors import UserError

WARM_UP_PASSES = 3
WARM_UP_SECONDS = 0.5
"""Libraries choose kernels and reserve memory in the first passes; slow ones need fewer."""

MIN_PASSES = 3
MAX_PASSES = 50
SECONDS = 1.5
"""Time after which no further pass is timed."""


class Profile(NamedTuple):
    """The cost of a network."""

    parameters: int
    macs: int
    """Multiply-accumulates of convolutions and matrix products for one image, as papers count."""
    megabytes: float
    """Of parameters and buffers, 10^6 bytes each."""
    milliseconds: float
    """Median time of a forward pass of a batch."""
    batch_size: int
    threads: int
    """Of the CPU."""

    @property
    def images_per_second(self) -> float:
        """Throughput with this batch size."""
        return 1000 * self.batch_size / self.milliseconds


@torch.inference_mode()
def profile_network(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    device: torch.device,
    batch_size: int = 1,
) -> Profile:
    """Measure a network in eval mode, in its own precision; it is not changed.

    A CPU or GPU that does other work gives longer times.

    Args:
        network: on the device.
        image_shape: (channels, height, width).
        device: where the images are made.
        batch_size: images of a timed pass.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU())
        >>> profile = profile_network(network, (3, 32, 32), torch.device("cpu"))
        >>> profile.parameters, profile.macs
        (216, 221184)
    """
    dtype = next((p.dtype for p in network.parameters()), torch.float32)
    image = torch.zeros(batch_size, *image_shape, device=device, dtype=dtype)
    state = [*network.parameters(), *network.buffers()]

    with _evaluating(network):
        return Profile(
            parameters=sum(each.numel() for each in network.parameters()),
            macs=_count_macs(network, image[:1]),
            megabytes=sum(each.nbytes for each in state) / 1e6,
            milliseconds=_latency(network, image),
            batch_size=batch_size,
            threads=torch.get_num_threads(),
        )


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards each module is in its mode from before."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _count_macs(network: nn.Module, image: Tensor) -> int:
    """Half of the floating-point operations of a pass.

    Fused attention is computed in its parts here: torch counts nothing for some fused kernels.
    """
    is_fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            network(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fused)
    return counter.get_total_flops() // 2


def _latency(network: nn.Module, image: Tensor) -> float:
    """Median milliseconds of a pass."""
    warm_up = 0.0
    for _ in range(WARM_UP_PASSES):
        if warm_up < WARM_UP_SECONDS:
            warm_up += _timed(network, image)

    times: list[float] = []
    while len(times) < MIN_PASSES or (len(times) < MAX_PASSES and sum(times) < SECONDS):
        times.append(_timed(network, image))
    return 1000 * statistics.median(times)


def _timed(network: nn.Module, image: Tensor) -> float:
    """Seconds of a pass, until the device has its results."""
    start = time.perf_counter()
    network(image)
    if image.device.type != "cpu":
        torch.accelerator.synchronize(image.device)
    return time.perf_counter() - start


def profile_named(
    named: NamedNetwork, device: str = "auto", batch_sizes: Sequence[int] = (1,)
) -> dict[str, Any]:
    """Measure a network with several batch sizes; the figures by name, as JSON takes them.

    Raises:
        UserError: there is no such device, the network does not take images of this size, or the
            memory does not hold a batch.
    """
    where = pick_device(device)
    network = named.network.to(where)
    profiles = [_profile_or_refuse(named, network, where, size) for size in batch_sizes]

    first = profiles[0]
    latency = [
        {
            "batch_size": profile.batch_size,
            "milliseconds": profile.milliseconds,
            "images_per_second": profile.images_per_second,
        }
        for profile in profiles
    ]
    return {
        "model": named.name,
        "architecture": named.model,
        "image_shape": list(named.image_shape),
        "num_classes": named.num_classes,
        "parameters": first.parameters,
        "macs": first.macs,
        "megabytes": first.megabytes,
        "latency": latency,
        "device": _device_name(where),
        "threads": first.threads,
    }


def _profile_or_refuse(
    named: NamedNetwork, network: nn.Module, device: torch.device, batch_size: int
) -> Profile:
    try:
        return profile_network(network, named.image_shape, device, batch_size)
    except (RuntimeError, AssertionError, ValueError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        if _is_out_of_memory(error):
            raise UserError(
                f"the memory of {device} does not hold a batch of {batch_size} images for "
                f"{named.name}; give a smaller --batch-size"
            ) from error
        shape = "x".join(map(str, named.image_shape))
        raise UserError(
            f"{named.name} does not take images of {shape} ({reason}); give another --size"
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch is about memory; on a CPU it is a RuntimeError."""
    is_of_cpu = "DefaultCPUAllocator" in str(error)
    return is_of_cpu or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def _device_name(device: torch.device) -> str:
    """The name of a GPU, else the kind of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
