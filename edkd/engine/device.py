"""The device to run on, and the precision for it."""

import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from edkd import memory
from edkd.errors import UserError
from edkd.keys import Key

KEYS = {
    "SOLVER.AMP": Key(
        "auto",
        "precision of forward passes; auto: bf16 where the hardware computes in it natively",
        choices=("auto", "off", "bf16", "fp16"),
    ),
    "SOLVER.DETERMINISTIC": Key(
        False, "on CUDA, too, the same bits in each run; operations without such a form are refused"
    ),
}

AHEAD = 2
"""Steps that the host may be ahead of a CUDA device."""

KINDS = ("auto", "cuda", "mps", "cpu")


def pick_device(name: str = "auto") -> torch.device:
    """`auto`: CUDA, else Apple's, else the CPU; or a device by its name ("cuda:1").

    Raises:
        UserError: this machine has no such device.
    """
    if name == "auto":
        best = torch.accelerator.current_accelerator(check_available=True)
        return best if best is not None and best.type in KINDS else torch.device("cpu")

    try:
        device = torch.device(name)
        if device.type not in KINDS:
            raise RuntimeError
        torch.empty(0, device=device)

        # Without this, pinned memory and queries use the first GPU.
        if device.index is not None and device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError):  # unknown name, no driver, number too high
        choices = ", ".join(KINDS)
        raise UserError(f"--device {name}: no such device here; choose from {choices}") from None
    return device


def as_current_gpu(name: str) -> AbstractContextManager[Any]:
    """A block in which the GPU that a name numbers is CUDA's current one; afterwards, that before.

    `pick_device` changes it for good, which suits a command, but not a function of the interface.

    Args:
        name: see `pick_device`, which refuses a wrong one; without a number, nothing happens.
    """
    number = re.fullmatch(r"cuda:(\d+)", name)
    if not number or int(number[1]) >= torch.cuda.device_count():
        return nullcontext()
    return torch.cuda.device(int(number[1]))


def amp_dtype(mode: str, device: torch.device) -> torch.dtype | None:
    """The type of mixed precision for SOLVER.AMP, or None for float32.

    `auto` is bfloat16 where the hardware has it natively: emulated, it is slower than float32.

    Raises:
        UserError: fp16 on a device without support for it.
    """
    if mode == "fp16" and device.type == "cpu":
        raise UserError("SOLVER.AMP fp16 needs a GPU; on a CPU use auto, bf16 or off")
    if mode == "auto":
        return torch.bfloat16 if _has_native_bf16(device) else None
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[mode]


def autocast(dtype: torch.dtype | None, device: torch.device) -> Any:
    """The context in which a forward pass runs."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def precision_name(dtype: torch.dtype | None) -> str:
    """The type in which forward passes compute, as "bfloat16"."""
    return str(dtype or torch.float32).removeprefix("torch.")


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Where enabled, compute the same bits in each run on CUDA too; a CPU always does.

    Raises:
        UserError: an operation has no deterministic form.
    """
    before = torch.are_deterministic_algorithms_enabled()
    if enabled:
        # cuBLAS reads it at the first matrix product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)

    try:
        yield
    except RuntimeError as error:
        if enabled:
            _explain_nondeterminism(str(error))
        raise
    finally:
        torch.use_deterministic_algorithms(before)


def _explain_nondeterminism(message: str) -> None:
    """Raise UserError where torch's message is about determinism."""
    if "does not have a deterministic implementation" in message:
        operation = message.split(" does not have")[0]
        raise UserError(
            f"SOLVER.DETERMINISTIC: {operation} has no deterministic form here; set it to False "
            "in a run with another EXPERIMENT.NAME"
        ) from None

    variable = "CUBLAS_WORKSPACE_CONFIG"
    if variable in message:
        raise UserError(
            f"SOLVER.DETERMINISTIC needs {variable}=:4096:8, but it is {os.environ[variable]}"
        ) from None


class Pace:
    """Keeps the host few steps ahead of a CUDA device, so that few batches take memory there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps: deque[torch.cuda.Event] = deque()
        """The ends of steps that may not be computed yet."""

    def end_step(self) -> None:
        """Wait until all but the last AHEAD steps are computed."""
        if self.device.type != "cuda":
            return
        self.steps.append(torch.cuda.current_stream(self.device).record_event())
        if len(self.steps) > AHEAD:
            self.steps.popleft().synchronize()


def keep_freed_memory(device: torch.device) -> None:
    """Let this process keep the memory that a step on a CPU frees, for the next step.

    Args:
        device: with another one, nothing happens.
    """
    if device.type == "cpu":
        memory.keep_freed_memory()


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
