"""The step as a CUDA graph: the host starts one graph instead of hundreds of kernels."""

import pickle
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, optim

from edkd.keys import Key

KEYS = {
    "SOLVER.CUDA_GRAPH": Key(False, "replay the whole training step as one CUDA graph"),
}

WARM_UP = 3
"""Eager steps of a shape before one is captured; kernels are chosen in them."""


class Capture(NamedTuple):
    """A graph, the tensors that it reads and those that it writes."""

    graph: Any
    inputs: tuple[Tensor, ...]
    outputs: Any


class CapturedStep:
    """Runs `step(epoch, *inputs)`, as a CUDA graph from its fourth call with inputs of a shape on.

    Whatever changes from step to step is a tensor: the inputs, the epoch, and the learning rate,
    which becomes a tensor here. Where capturing fails, as in a method that reads a value from the
    device, all later steps run eagerly. A Python counter in a method stands still in a graph: use a
    tensor for it.

    Args:
        step: from tensors to tensors, without waiting for the device.
        say: called with a line for the log.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        optimizer: optim.Optimizer,
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        self.step = step
        self.optimizer = optimizer
        self.say = say
        self.captures: dict[tuple[torch.Size, ...], Capture] = {}
        self.calls: Counter[tuple[torch.Size, ...]] = Counter()

        self.works = device.type == "cuda"
        if not self.works:
            self._give_up(f"the device is {device}")
            return

        self.device = device
        self.epoch = torch.zeros((), device=device)
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros((), device=device)

    def __call__(self, epoch: int, *inputs: Tensor) -> Any:
        """The results of `step`; with a graph, in tensors that the next call overwrites."""
        if not self.works:
            return self.step(epoch, *inputs)

        self.epoch.fill_(epoch)
        shapes = tuple(tensor.shape for tensor in inputs)
        self.calls[shapes] += 1
        if self.calls[shapes] <= WARM_UP:
            return self._warm_up(inputs)

        if shapes not in self.captures:
            try:
                self.captures[shapes] = self._capture(inputs)
            except RuntimeError as error:
                self._abandon_capture(error)
                return self.step(epoch, *inputs)

        return self._replay(self.captures[shapes], inputs)

    def forget(self) -> None:
        """Drop all graphs: what a method decides in Python has changed."""
        self.captures.clear()
        self.calls.clear()
        if self.works:
            self.pool = torch.cuda.graph_pool_handle()  # one without graphs cannot be used again

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> Any:
        """An eager step on the stream of the captures, so that autograd's buffers belong to it."""
        before = host_random_states()

        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = self.step(self.epoch, *inputs)
        torch.cuda.current_stream().wait_stream(self.stream)

        # A graph would repeat the random numbers that the host drew while it was captured.
        if host_random_states() != before:
            self._give_up("it draws random numbers on the host")
        return outputs

    def _capture(self, inputs: tuple[Tensor, ...]) -> Capture:
        graph = torch.cuda.CUDAGraph()
        static = tuple(tensor.clone() for tensor in inputs)
        for group in self.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True

        # thread_local: a data loader that pins memory in another thread does not end the capture.
        capturing = torch.cuda.graph(
            graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
        )

        # The outer context restores the stream, which older versions leave changed by a failure.
        with torch.cuda.stream(torch.cuda.current_stream()), capturing:
            outputs = self.step(self.epoch, *static)
        return Capture(graph, static, outputs)

    def _replay(self, capture: Capture, inputs: tuple[Tensor, ...]) -> Any:
        for tensor, value in zip(capture.inputs, inputs, strict=True):
            tensor.copy_(value)
        capture.graph.replay()
        return capture.outputs

    def _abandon_capture(self, error: RuntimeError) -> None:
        """After a failed capture: drop its void gradients, run eagerly from now on."""
        # Ending a failed capture raises an error of its own; its context is the cause.
        cause = error.__context__ or error
        self.optimizer.zero_grad(set_to_none=True)
        self.captures.clear()
        end_capture_of_generator(self.device)
        reason = " ".join(str(cause).split())[:200]
        self._give_up(f"it cannot be captured: {reason}")

    def _give_up(self, reason: str) -> None:
        self.works = False
        self.say(f"SOLVER.CUDA_GRAPH: off, steps run eagerly ({reason})")


def end_capture_of_generator(device: torch.device) -> None:
    """Let the device's generator draw again after a capture that failed.

    Such a capture leaves it in the state of a graph, in which it refuses to draw outside of one. A
    copy of its state has the same seed and offset, and belongs to no graph.
    """
    number = torch.cuda.current_device() if device.index is None else device.index
    generator = torch.cuda.default_generators[number]
    generator.graphsafe_set_state(generator.clone_state())


def host_random_states() -> bytes:
    """The states of the generators of Python, NumPy and torch on the CPU, to compare."""
    states = [random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()]
    return pickle.dumps(states)
