"""The memory of a process on a CPU. Where the system has no such settings, nothing happens."""

import ctypes
import mmap

# Numbers of `mallopt(3)`.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_LARGEST_MMAP = 32 * 2**20
_LARGEST_TRIM = 2 * _LARGEST_MMAP
"""In bytes: up to these, glibc raises its thresholds when large blocks are freed. A
threshold that was set stays as it is."""

_HUGE_PAGE = 2 * 2**20


def keep_freed_memory() -> None:
    """Let this process keep freed memory for later use, in blocks of up to 32 MiB.

    By default glibc returns most of it to the system, and whatever needs the next blocks pays for
    page faults.
    """
    _set(threshold=_LARGEST_MMAP, trim=2**31 - 1)


def return_freed_memory() -> None:
    """Undo this in a child process, which inherits it: it keeps 64 MiB at most."""
    _set(threshold=_LARGEST_MMAP, trim=_LARGEST_TRIM)


def prefer_huge_pages(address: int, size: int) -> None:
    """Ask for huge pages for a new block, so that its first use has far fewer page faults.

    Args:
        address: of its first byte.
        size: in bytes; smaller blocks than two huge pages are left alone.
    """
    if size < 2 * _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    start = -(-address // _HUGE_PAGE) * _HUGE_PAGE
    length = (address + size - start) // _HUGE_PAGE * _HUGE_PAGE
    madvise = ctypes.CDLL(None).madvise
    madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)


def _set(threshold: int, trim: int) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, threshold)
    mallopt(_M_TRIM_THRESHOLD, trim)
