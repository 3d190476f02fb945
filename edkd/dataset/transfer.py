"""Copies batches to the device; on CUDA beside the computation, from pinned memory."""

from collections.abc import Sequence

import torch
from torch import Tensor


class DeviceCopy:
    """Copies the tensors of a batch to a device.

    On CUDA they are copied on a stream of their own, while earlier steps are still computed on the
    current stream. That one waits for the copies before it reads them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: torch.cuda.Stream | None = None

    def __call__(self, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tensors on the device; call it in the thread that computes."""
        if self.device.type != "cuda":
            return tuple(part.to(self.device, non_blocking=True) for part in parts)

        compute = torch.cuda.current_stream(self.device)
        if self.stream is None:
            self.stream = torch.cuda.Stream(self.device)

        with torch.cuda.stream(self.stream):
            copies = tuple(part.to(self.device, non_blocking=True) for part in parts)
        compute.wait_stream(self.stream)
        for copy in copies:
            copy.record_stream(compute)  # its memory is free only after the step
        return copies
