"""The processes that train together: which one this is, and what they compute together.

With one process, the default, every function returns immediately and changes nothing. A batch is
shared: each process has nearly the same number of its images, in the order of the processes.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from edkd.errors import EXPECTED, ProcessError, UserError, reason_of

T = TypeVar("T")

BUCKET = 25 * 2**20
"""Elements of gradients that are averaged in one message."""

Counts = tuple[int, ...]
"""Images of each process in a batch; empty where one process has all."""

TORN = (
    "another process of the run ended or did not answer; its message, or the log of the system, "
    "says why; --resume continues from the last checkpoint"
)

_SIGNS = ("connection", "closed", "reset by peer", "timed out", "timeout", "broken pipe")
"""In messages of torch.distributed where another process is gone."""

_OF_NETWORK = (dist.DistNetworkError, dist.DistBackendError) if dist.is_available() else ()


# Which process this is.


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _is_distributed() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _is_distributed() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and lines."""
    return rank() == 0


def launched() -> int:
    """The number of processes that a launcher, as torchrun, started."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first_launched() -> bool:
    """As `is_first`, also before `start` and after `end`."""
    return launched() == 1 or int(os.environ.get("RANK") or 0) == 0


def restarts() -> int:
    """How often torchrun has started this process again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def start(device: torch.device, seconds: float) -> None:
    """Join the other processes, where a launcher started several.

    Args:
        device: on which this process trains.
        seconds: after which a process that does not answer counts as hanging.

    Raises:
        UserError: the device cannot be used by several processes.
        ProcessError: the others cannot be reached.
    """
    if launched() == 1 or _is_distributed():
        return
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"several processes train on cuda or cpu, not on {device.type}")

    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    limit = timedelta(seconds=seconds)
    try:
        dist.init_process_group(
            backend, timeout=limit, store=_store(limit), rank=_own_number(), world_size=launched()
        )
        dist.barrier()
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ProcessError(f"the processes cannot reach one another: {reason}") from error


def is_first_report() -> bool:
    """Whether no process of the run has reported an error yet: one line is enough."""
    if launched() == 1:
        return True
    try:
        return _store(timedelta(seconds=3), may_serve=False).add("reports", 1) == 1
    except RuntimeError:  # the process that keeps the store is gone
        return True


def end() -> None:
    """Leave the other processes, after all of them are done."""
    wait()
    if _is_distributed():
        dist.destroy_process_group()


# Shares of a batch.


def counts_of(total: int) -> Counts:
    """How many of `total` images each process has."""
    number = size()
    if number == 1:
        return ()
    bounds = [total * each // number for each in range(number + 1)]
    return tuple(end - start for start, end in itertools.pairwise(bounds))


def own_rows(counts: Counts, total: int) -> slice:
    """The rows of a batch of `total` images that this process has.

    A process whose share is empty has the first image, which then counts nowhere: every process
    must run its networks.
    """
    if not counts:
        return slice(0, total)
    first = sum(counts[: rank()])
    count = counts[rank()]
    return slice(first, first + count) if count else slice(0, 1)


def own_count(counts: Counts, total: int) -> int:
    """How many images of this process's share of a batch count."""
    return counts[rank()] if counts else total


def weight_of(counts: Counts) -> float:
    """The factor of this process's mean loss; the mean over processes is then the batch's."""
    if not counts:
        return 1.0
    return counts[rank()] * len(counts) / sum(counts)


# What they compute together.


def average(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the processes, in place."""
    if size() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        add_up(flat).div_(size())
        parts = flat.split([tensor.numel() for tensor in bucket])
        for tensor, part in zip(bucket, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def add_up(tensor: Tensor) -> Tensor:
    """Replace a tensor by its sum over the processes, in place; return it."""
    if size() > 1:
        _together(lambda: dist.all_reduce(tensor))
    return tensor


def largest(numbers: Sequence[int]) -> list[int]:
    """The largest of each number over the processes."""
    if size() == 1:
        return list(numbers)
    found = torch.tensor(numbers, dtype=torch.int64)
    _together(lambda: dist.all_reduce(found, dist.ReduceOp.MAX))
    return found.tolist()


def gather(tensor: Tensor) -> Tensor:
    """The tensors (...) of all processes, which have one shape, as (R,...)."""
    if size() == 1:
        return tensor[None]
    source = tensor.contiguous()
    parts = [torch.empty_like(source) for _ in range(size())]
    _together(lambda: dist.all_gather(parts, source))
    return torch.stack(parts)


def gather_rows(tensor: Tensor, counts: Counts) -> Tensor:
    """The rows of a whole batch (N,...) from those of each process, without gradients."""
    if not counts:
        return tensor
    own = tensor.detach()[: counts[rank()]]
    padded = own.new_zeros(max(counts), *own.shape[1:])
    padded[: len(own)] = own

    parts = gather(padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by that of the first process, in place."""
    if size() == 1:
        return
    for tensor in tensors:
        value = tensor.detach().clone(memory_format=torch.contiguous_format)
        _together(functools.partial(dist.broadcast, value, 0))
        tensor.detach().copy_(value)


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them; they also raise the error that it raises."""
    if size() == 1:
        return make()
    outcome: list[Any] = [None, None]
    if is_first():
        outcome = _outcome(make)
    _together(lambda: dist.broadcast_object_list(outcome, 0))
    value, error = outcome
    if error is not None:
        raise error
    return value


def _outcome(make: Callable[[], Any]) -> list[Any]:
    """What a function makes, and the expected error that it raises."""
    try:
        return [make(), None]
    except EXPECTED as error:
        return [None, error]


def share_random_state(device: torch.device) -> None:
    """Give the generators of all processes the state of the first one's.

    They are equal already, unless a layer drew a number that depends on the share of its process.
    """
    if size() == 1:
        return
    state = torch.get_rng_state()
    broadcast([state])
    torch.set_rng_state(state)
    if device.type == "cuda":
        state = torch.cuda.get_rng_state(device)
        broadcast([state])
        torch.cuda.set_rng_state(state, device)


def gather_objects(value: T) -> list[T]:
    """The small values of all processes, in their order."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    _together(lambda: dist.all_gather_object(found, value))
    return found


def wait() -> None:
    """Wait until all processes are here."""
    if size() > 1:
        _together(dist.barrier)


def agree(facts: Mapping[str, Any]) -> None:
    """Raise UserError where a fact differs between the processes, in all of them."""
    first, *others = gather_objects(dict(facts))
    for number, other in enumerate(others, 1):
        for name, value in first.items():
            if other.get(name) != value:
                raise UserError(
                    f"process {number} has another {name} than process 0{_both(other, first, name)}"
                    "; start all with the same command, code and files"
                )


def check_single_process(what: str) -> None:
    """Raise UserError where a launcher started several processes for what runs in one."""
    if launched() > 1:
        raise UserError(
            f"{what} runs in one process, but the launcher started {launched()} (WORLD_SIZE); "
            "start the command without torchrun"
        )


def _own_number() -> int:
    return int(os.environ.get("RANK") or 0)


def _store(limit: timedelta, may_serve: bool = True) -> dist.Store:
    """Where the processes find one another; each start of torchrun has keys of its own in it.

    Args:
        may_serve: whether the first process keeps it, if torchrun does not.
    """
    is_kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        os.environ.get("MASTER_ADDR", "localhost"),
        int(os.environ.get("MASTER_PORT") or 29500),
        is_master=may_serve and not is_kept and _own_number() == 0,
        timeout=limit,
        wait_for_workers=False,
    )
    return dist.PrefixStore(f"edkd/{restarts()}", store)


def _both(other: Mapping[str, Any], first: Mapping[str, Any], name: str) -> str:
    """Both values of a fact, where they are short."""
    texts = [" ".join(str(facts.get(name)).split()) for facts in (other, first)]
    if max(map(len, texts)) > 60:
        return ""
    return f" ({texts[0]}, not {texts[1]})"


def _buckets(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Tensors of one type and device together, up to BUCKET elements."""
    buckets: list[list[Tensor]] = []
    sizes: dict[Any, int] = {}
    last: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        kind = (tensor.dtype, tensor.device)
        if kind not in last or sizes[kind] + tensor.numel() > BUCKET:
            last[kind] = []
            sizes[kind] = 0
            buckets.append(last[kind])
        last[kind].append(tensor)
        sizes[kind] += tensor.numel()
    return buckets


def _together(call: Callable[[], Any]) -> None:
    """Run what all processes run; ProcessError where one of them is gone or hangs."""
    try:
        call()
    except RuntimeError as error:
        text = str(error).lower()
        if isinstance(error, _OF_NETWORK) or any(sign in text for sign in _SIGNS):
            is_of_backend = dist.is_available() and isinstance(error, dist.DistBackendError)
            reason = f" ({reason_of(error)[:200]})" if is_of_backend else ""
            raise ProcessError(f"{TORN}{reason}") from error
        raise


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
