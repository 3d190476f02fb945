"""The processes that train together: which one this is, and what they must agree on.

With one process, the default, every function returns immediately and changes nothing.
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from edkd.errors import UserError


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _is_distributed() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _is_distributed() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and lines."""
    return rank() == 0


def average(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the processes, in place."""
    if size() == 1:
        return
    for tensor in tensors:
        dist.all_reduce(tensor)
        tensor.div_(size())


def any_of(flag: Tensor) -> Tensor:
    """Whether a flag (a bool tensor) is set in any process; a tensor of the same shape."""
    if size() == 1:
        return flag
    count = flag.to(torch.int32)
    dist.all_reduce(count)
    return count > 0


def check_single_process() -> None:
    """Raise UserError where a launcher started several processes: training runs in one."""
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise UserError(
            "training runs in one process, but the launcher started "
            f"{os.environ['WORLD_SIZE']} (WORLD_SIZE); start the command without torchrun"
        )


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
