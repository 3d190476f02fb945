"""Every method: one process with a whole batch and several with a share each do the same.

Losses, gradients and the weights after an epoch are compared in float64, against steps of this
process alone. The tolerance is 1e-6 of the largest number: batch norm over three images divides by
small variances, which magnifies rounding.
"""

import os
import socket
import subprocess
import sys

import pytest
import torch

from tests.distributed import steps
from tests.runs import CHECKOUT
from tests.short_forms import slow_but

TOLERANCE = 1e-6
OF_FIGURES = 1e-5
"""Means of an epoch are added up in float32."""

SHORT = ("KD", "RKD", "CRD", "DML_alternating")
"""The short tests run these alone, in two processes."""


def in_processes(number, out, cases):
    """Run `tests.distributed.steps` in several processes; what it wrote."""
    command = [sys.executable, "-m", "tests.distributed.steps", str(out), *cases]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}
    environment |= {"WORLD_SIZE": str(number), "MASTER_PORT": str(free_port())}
    started = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, cwd=CHECKOUT)
        for rank in range(number)
    ]
    assert [each.wait(900) for each in started] == [0] * number
    return torch.load(out, weights_only=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def alone():
    """alone(case): its steps in this process."""
    found = {}

    def of(case):
        if case not in found:
            found.update(steps.run([case]))
        return found[case]

    return of


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """shared(number, case): its steps in that many processes, which run several cases in turn."""
    found = {}

    def of(number, case):
        if (number, case) not in found:
            out = tmp_path_factory.mktemp("shares") / "steps"
            of_one_start = [each for each in steps.CASES if (each in SHORT) == (case in SHORT)]
            results = in_processes(number, out, of_one_start)
            found.update({(number, each): result for each, result in results.items()})
        return found[number, case]

    return of


def assert_same(expected, found):
    assert len(expected["losses"]) == len(found["losses"]) == 3
    for step, (own, other) in enumerate(zip(expected["losses"], found["losses"], strict=True)):
        assert own.keys() == other.keys()
        assert other == pytest.approx(own, rel=TOLERANCE), f"losses of step {step}"

    for own, other in zip(expected["gradients"], found["gradients"], strict=True):
        assert_close(own, other, "gradient")
    weights = [expected["weights"], found["weights"]]
    assert weights[0].keys() == weights[1].keys()
    assert_close(*(list(each.values()) for each in weights), "weights")
    assert found["figures"] == pytest.approx(expected["figures"], rel=OF_FIGURES)


def assert_close(expected, found, what):
    """Compare tensors, some of which may be None, by the largest number of all."""
    present = [each for each in expected if each is not None and each.numel()]
    largest = max(each.double().nan_to_num().abs().max().item() for each in present)
    for number, (own, other) in enumerate(zip(expected, found, strict=True)):
        assert (own is None) == (other is None), f"{what} {number}"
        if own is not None and own.numel():
            difference = (own.double() - other.double()).nan_to_num().abs().max().item()
            assert difference <= TOLERANCE * largest, f"{what} {number}"


@pytest.mark.parametrize("case", slow_but(SHORT, steps.CASES))
def test_two_processes_do_what_one_does(shared, alone, case):
    assert_same(alone(case), shared(2, case))


@pytest.mark.slow
@pytest.mark.parametrize("case", steps.CASES)
def test_four_processes_do_what_one_does(shared, alone, case):
    """One of them has no image of the last batch."""
    assert_same(alone(case), shared(4, case))
