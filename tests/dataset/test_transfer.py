"""Copies of batches to the device."""

import contextlib

import pytest
import torch

from edkd.dataset.transfer import DeviceCopy
from edkd.engine.device import AHEAD, Pace


def test_on_a_cpu_nothing_is_copied():
    parts = [torch.arange(6).view(2, 3), torch.ones(2)]
    copies = DeviceCopy(torch.device("cpu"))(parts)
    assert [copy.data_ptr() for copy in copies] == [part.data_ptr() for part in parts]


class Stream:
    """A CUDA stream that writes down what is done with it."""

    def __init__(self, name, done):
        self.name = name
        self.done = done
        self.step = 0

    def wait_stream(self, other):
        self.done.append(f"{self.name} waits for {other.name}")

    def record_event(self):
        step = self.step
        self.step += 1
        event = type("Event", (), {})()
        event.synchronize = lambda: self.done.append(f"host waits for step {step}")
        return event


class Part:
    """A tensor that writes down what is done with it."""

    def __init__(self, name, done):
        self.name = name
        self.done = done

    def to(self, device, non_blocking):
        assert non_blocking
        self.done.append(f"copy of {self.name} on {self.done[-1].split()[-1]}")
        return self

    def record_stream(self, stream):
        self.done.append(f"{self.name} kept for {stream.name}")


def test_on_cuda_the_computation_waits_for_the_copies(monkeypatch):
    """Copies run on their own stream."""
    done = []
    compute = Stream("compute", done)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: compute)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side", done))

    def use(stream):
        done.append(f"use {stream.name}")
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "stream", use)
    copy = DeviceCopy(torch.device("cuda"))
    copy([Part("image", done)])
    assert done == [
        "use side",
        "copy of image on side",
        "compute waits for side",
        "image kept for compute",
    ]


def test_the_host_is_few_steps_ahead(monkeypatch):
    done = []
    compute = Stream("compute", done)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: compute)
    pace = Pace(torch.device("cuda"))
    for _ in range(AHEAD + 2):
        pace.end_step()
    assert done == ["host waits for step 0", "host waits for step 1"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_copies_on_cuda_have_the_values_of_their_batch():
    """Also where the host runs ahead and the memory of earlier copies is used again."""
    device = torch.device("cuda")
    copy = DeviceCopy(device)
    busy = torch.rand(2000, 2000, device=device)
    sums = []
    for number in range(50):
        (image,) = copy([torch.full((64, 3, 64, 64), number, dtype=torch.uint8).pin_memory()])
        for _ in range(5):
            busy = (busy @ busy).clamp_(0, 1)
        sums.append(image.float().mean())
    assert [value.item() for value in sums] == list(range(50))
