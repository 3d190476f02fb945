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

TOLERANCE = 1e-6
OF_FIGURES = 1e-5
"""Means of an epoch are added up in float32."""

SHORT = ("KD", "RKD", "CRD", "KDCL_linear", "ND", "SIMKD", "DML_alternating")
"""In short tests, four processes run these alone."""


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
def two(tmp_path_factory):
    return in_processes(2, tmp_path_factory.mktemp("two") / "steps", list(steps.CASES))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return in_processes(4, tmp_path_factory.mktemp("four") / "steps", list(SHORT))


@pytest.fixture(scope="module")
def four_of_all(tmp_path_factory):
    return in_processes(4, tmp_path_factory.mktemp("four") / "steps", list(steps.CASES))


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


@pytest.mark.parametrize("case", steps.CASES)
def test_two_processes_do_what_one_does(two, alone, case):
    assert_same(alone(case), two[case])


@pytest.mark.parametrize("case", SHORT)
def test_four_processes_do_what_one_does(four, alone, case):
    """One of them has no image of the last batch."""
    assert_same(alone(case), four[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in steps.CASES if case not in SHORT])
def test_four_processes_do_what_one_does_in_all_methods(four_of_all, alone, case):
    assert_same(alone(case), four_of_all[case])
