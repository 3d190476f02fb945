"""The device to run on, and the precision that suits it."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from edkd.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of `mallopt(3)`."""
KINDS = ("auto", "cuda", "mps", "cpu")


def pick_device(name: str = "auto") -> torch.device:
    """`auto`: CUDA, else Apple's, else the CPU; or a device by its name ("cuda:1").

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        here = torch.accelerator.current_accelerator(check_available=True)
        return here if here is not None and here.type in KINDS else torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type not in KINDS:
            raise RuntimeError
        torch.empty(0, device=device)
        if device.index is not None and device.type == "cuda":
            torch.cuda.set_device(device)  # else pinned memory and queries go to the first one
    except (RuntimeError, AssertionError):  # torch's words for an unknown name, an absent driver, a number too high
        raise UserError(f"--device {name}: no such device here; the choices are {', '.join(KINDS)}") from None
    return device


def amp_dtype(mode: str, device: torch.device) -> torch.dtype | None:
    """The type of mixed precision for SOLVER.AMP, or None for float32.

    `auto` is bfloat16 where the hardware computes in it natively: an emulated one is slower than float32.

    Raises:
        UserError: fp16 where there is no support for it.
    """
    if mode == "fp16" and device.type == "cpu":
        raise UserError("SOLVER.AMP fp16 needs a GPU; on a CPU use auto, bf16 or off")
    if mode == "auto":
        return torch.bfloat16 if _has_native_bf16(device) else None
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[mode]


def autocast(dtype: torch.dtype | None, device: torch.device) -> Any:
    """The context in which a forward pass runs."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Where enabled, compute the same bits each time on CUDA too; a CPU does so in any case.

    Raises:
        UserError: an operation has no form that does.
    """
    before = torch.are_deterministic_algorithms_enabled()
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first matrices are multiplied
        torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if enabled and "does not have a deterministic implementation" in str(error):
            reason = f"{str(error).split(' does not have')[0]} has no deterministic form here"
            raise UserError(
                f"SOLVER.DETERMINISTIC: {reason}; set it False, in a run of another EXPERIMENT.NAME"
            ) from None
        if enabled and (key := "CUBLAS_WORKSPACE_CONFIG") in str(error):
            raise UserError(f"SOLVER.DETERMINISTIC needs {key}=:4096:8, and it is {os.environ[key]}") from None
        raise
    finally:
        torch.use_deterministic_algorithms(before)


def keep_freed_memory(device: torch.device, most: int = 2**31 - 1) -> None:
    """Let glibc keep what a step on a CPU frees for the next one, instead of giving it back and faulting it in again.

    Elsewhere, and with another allocator, nothing happens.

    Args:
        most: bytes that are kept.
    """
    if device.type != "cpu":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the highest that it takes
    mallopt(_M_TRIM_THRESHOLD, most)


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
