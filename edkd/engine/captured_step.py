"""The step as a CUDA graph: the host starts one graph instead of hundreds of kernels."""

import pickle
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, optim

WARM_UP = 3
"""Steps of a shape that run as usual before one is captured: kernels are chosen and the optimizer makes its state."""


class Capture(NamedTuple):
    """A graph, the tensors that it reads and those that it writes."""

    graph: Any
    inputs: tuple[Tensor, ...]
    outputs: Any


def host_random_states() -> bytes:
    """The states of the generators of Python, NumPy and torch on the CPU, to compare."""
    return pickle.dumps([random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()])


class CapturedStep:
    """Runs `step(epoch, *inputs)`, from its fourth call with inputs of a shape on as a CUDA graph.

    What changes from step to step lies in tensors: the inputs, the epoch, and the learning rate, which becomes a tensor
    here. Where capturing fails, as in a method that reads a value from the device, all steps run as usual from then on.
    What a method counts in Python stands still in a graph: it belongs into a tensor.

    Args:
        step: from tensors to tensors, without waiting for the device.
        say: called with a line for a person.
    """

    def __init__(
        self, step: Callable[..., Any], optimizer: optim.Optimizer, device: torch.device, say: Callable[[str], None]
    ) -> None:
        self.step, self.optimizer, self.say = step, optimizer, say
        self.captures: dict[tuple[torch.Size, ...], Capture] = {}
        self.calls: Counter[tuple[torch.Size, ...]] = Counter()
        self.works = device.type == "cuda"
        if not self.works:
            self._give_up(f"the device is {device}")
            return
        self.epoch, self.stream = torch.zeros((), device=device), torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros((), device=device)

    def __call__(self, epoch: int, *inputs: Tensor) -> Any:
        """What `step` returns; with a graph, in tensors that the next call overwrites."""
        if not self.works:
            return self.step(epoch, *inputs)
        self.epoch.fill_(epoch)
        shapes = tuple(tensor.shape for tensor in inputs)
        self.calls[shapes] += 1
        if self.calls[shapes] > WARM_UP and shapes not in self.captures:
            try:
                self.captures[shapes] = self._capture(inputs)
            except RuntimeError as error:
                cause = error.__context__ or error  # ending a capture that has failed raises an error of its own
                self.optimizer.zero_grad(set_to_none=True)  # what was captured of the gradients is void
                self._give_up(f"it cannot be captured: {' '.join(str(cause).split())[:200]}")
                return self.step(epoch, *inputs)
        if shapes not in self.captures:
            return self._warm_up(inputs)
        capture = self.captures[shapes]
        for tensor, value in zip(capture.inputs, inputs, strict=True):
            tensor.copy_(value)
        capture.graph.replay()
        return capture.outputs

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> Any:
        """A step on the stream of captures, so that autograd's buffers belong to it."""
        before = host_random_states()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = self.step(self.epoch, *inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        if host_random_states() != before:  # a graph would repeat what the host drew when it was captured
            self._give_up("it draws random numbers on the host")
        return outputs

    def _give_up(self, reason: str) -> None:
        self.works = False
        self.say(f"SOLVER.CUDA_GRAPH: off, steps run as usual: {reason}")

    def _capture(self, inputs: tuple[Tensor, ...]) -> Capture:
        graph, static = torch.cuda.CUDAGraph(), tuple(tensor.clone() for tensor in inputs)
        for group in self.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True
        # thread_local: that a data loader pins memory in another thread does not end the capture
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            outputs = self.step(self.epoch, *static)
        return Capture(graph, static, outputs)
