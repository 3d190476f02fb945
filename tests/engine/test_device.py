"""Devices, on a machine without them."""

import pytest
import torch
from torch import nn

import edkd
from edkd.engine.device import as_current_gpu
from edkd.errors import UserError
from edkd.notebook import evaluate_dml_models


@pytest.fixture
def current(monkeypatch):
    """The number of the current one of two GPUs that torch seems to have, in a list."""
    numbers = [0]

    class Guard:
        """As torch.cuda.device."""

        def __init__(self, number):
            self.number = number

        def __enter__(self):
            numbers.append(self.number)

        def __exit__(self, *error):
            del numbers[1:]

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", Guard)
    return numbers


def test_a_gpu_is_the_current_one_within_the_block_alone(current):
    with as_current_gpu("cuda:1"):
        assert current[-1] == 1
    assert current == [0]

    for name in ("cuda:2", "cuda:one", "cuda", "auto", "cpu"):
        with as_current_gpu(name):
            assert current == [0]


def test_functions_of_the_interface_keep_the_current_gpu(current, monkeypatch, tmp_path):
    def pick(name):
        assert name == "cuda:1"
        assert current[-1] == 1
        raise UserError("it is picked within the block")

    monkeypatch.setattr("edkd.api.pick_device", pick)
    monkeypatch.setattr("edkd.notebook.passes.pick_device", pick)
    calls = [
        lambda: evaluate_dml_models([nn.Linear(2, 2)], [], "cuda:1"),
        lambda: edkd.distill(
            nn.Linear(2, 2), None, [], [], "NONE", device="cuda:1", output=tmp_path
        ),
    ]
    for call in calls:
        with pytest.raises(UserError, match="within the block"):
            call()
        assert current == [0]
