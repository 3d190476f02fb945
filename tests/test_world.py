"""Processes: nothing happens with one; several are refused in one line, and their parts agree."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from edkd import world
from edkd.errors import UserError


def test_one_process_changes_nothing():
    tensor = torch.tensor([1.0, 2.0])
    world.average([tensor])
    assert tensor.tolist() == [1.0, 2.0]
    assert (world.rank(), world.size(), world.is_first()) == (0, 1, True)
    assert world.any_of(torch.tensor(True)).item()


def test_a_launcher_of_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process, but the launcher started 2"):
        world.check_single_process()
    monkeypatch.setenv("WORLD_SIZE", "1")
    world.check_single_process()


def one_of_two(rank: int, file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    tensor = torch.tensor([float(rank)])
    world.average([tensor])
    assert tensor.item() == 0.5
    assert world.any_of(torch.tensor(rank == 1)).item()
    assert not world.any_of(torch.tensor(False)).item()
    assert (world.rank(), world.size()) == (rank, 2)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_agree(tmp_path):
    mp.spawn(one_of_two, (str(tmp_path / "store"),), nprocs=2)
