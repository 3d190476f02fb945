"""The processor cores that this process may use, and the data workers that follow."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from edkd.dataset.workers import start_worker

_GROUPS = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


class Workers(NamedTuple):
    """The processes that read images."""

    number: int
    """0: the main process reads."""
    timeout: float
    """In seconds, after which a worker counts as hanging."""
    prefetch: int
    """Batches that each of them reads ahead."""

    def settings(self) -> dict[str, Any]:
        """The arguments of a DataLoader."""
        if not self.number:
            return {}
        return {
            "num_workers": self.number,
            "timeout": self.timeout,
            "prefetch_factor": self.prefetch,
            "persistent_workers": True,
            "worker_init_fn": start_worker,
        }


def available_cores() -> int:
    """Cores of this process, at least 1: by its affinity, and by the quota of its container."""
    return max(1, min([cores_by_affinity(), *_quotas()]))


def cores_by_affinity() -> int:
    """Cores on which the system may run this process, whatever share of them it gets."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def workers_for(limit: int) -> int:
    """The number of data workers for DATASET.NUM_WORKERS; more than cores slow one another down.

    The processes that torchrun started on this machine share its cores.
    """
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return min(limit, max(1, available_cores() // sharing))


def workers_note(limit: int) -> list[str]:
    """A line for the log where there are fewer workers than DATASET.NUM_WORKERS; else none."""
    number = workers_for(limit)
    if number == limit:
        return []
    workers = "1 data worker" if number == 1 else f"{number} data workers"
    return [f"{workers}, one for each available core, instead of DATASET.NUM_WORKERS {limit}"]


def _quotas() -> Iterator[int]:
    """Cores by the limits of the control groups that hold this process, rounded up."""
    for folder in _control_groups():
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                yield math.ceil(int(quota) / int(period))

    # The first version of control groups.
    with suppress(OSError, ValueError):
        quota = (_ROOT / "cpu" / "cpu.cfs_quota_us").read_text()
        period = (_ROOT / "cpu" / "cpu.cfs_period_us").read_text()
        if int(quota) > 0:
            yield math.ceil(int(quota) / int(period))


def _control_groups() -> Iterator[Path]:
    """The folder of this process's control group, and those above it."""
    yield _ROOT
    with suppress(OSError, ValueError):
        for line in _GROUPS.read_text().splitlines():
            number, _, path = line.split(":", 2)
            inside = Path(path.lstrip("/"))
            if number == "0":
                yield from (_ROOT / part for part in (inside, *inside.parents))
