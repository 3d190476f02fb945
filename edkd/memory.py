"""What glibc does with freed memory. With another allocator, nothing happens."""

import ctypes

# Numbers of `mallopt(3)`.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_USUAL = 128 * 1024
"""Both thresholds of a new process, in bytes."""


def keep_freed_memory() -> None:
    """Let this process keep freed memory for later use, blocks of up to 32 MiB.

    By default glibc returns large blocks to the system, and whatever needs the next ones pays for
    page faults.
    """
    _set(mmap=32 * 2**20, trim=2**31 - 1)  # the highest allowed values


def return_freed_memory() -> None:
    """Return freed memory to the system, as by default; child processes inherit the above."""
    _set(mmap=_USUAL, trim=_USUAL)


def _set(mmap: int, trim: int) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, mmap)
    mallopt(_M_TRIM_THRESHOLD, trim)
