"""What glibc does with freed memory. With another allocator, nothing happens."""

import ctypes

# Numbers of `mallopt(3)`.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

_USUAL_TRIM = 128 * 1024
_USUAL_MMAPS = 65536


def keep_freed_memory() -> None:
    """Let this process keep freed memory for later use, and not only small blocks of it.

    By default glibc returns large blocks to the system, and whatever needs the next ones pays for
    page faults.
    """
    _set(mmaps=0, trim=2**31 - 1)


def return_freed_memory() -> None:
    """Return freed memory to the system, as by default; child processes inherit the above."""
    _set(mmaps=_USUAL_MMAPS, trim=_USUAL_TRIM)


def _set(mmaps: int, trim: int) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_MAX, mmaps)
    mallopt(_M_TRIM_THRESHOLD, trim)
