"""Processes: nothing happens with one; several are refused in one line, and their parts agree."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from edkd import world
from edkd.errors import ProcessError, UserError
from edkd.shared_layers import shared


def test_one_process_changes_nothing():
    tensor = torch.tensor([1.0, 2.0])
    world.average([tensor])
    assert tensor.tolist() == [1.0, 2.0]
    assert (world.rank(), world.size(), world.is_first()) == (0, 1, True)
    assert world.largest([1, 2]) == [1, 2]
    assert world.gather_objects("own") == ["own"]
    assert world.counts_of(5) == ()
    assert world.own_rows((), 5) == slice(0, 5)


def test_a_launcher_of_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        UserError, match="an evaluation runs in one process, but the launcher started 2"
    ):
        world.check_single_process("an evaluation")
    monkeypatch.setenv("WORLD_SIZE", "1")
    world.check_single_process("an evaluation")


def test_the_first_process_is_known_after_the_end(monkeypatch):
    assert world.is_first_launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert world.is_first_launched()
    monkeypatch.setenv("RANK", "1")
    assert not world.is_first_launched()


def one_of_two(rank: int, file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    tensor = torch.tensor([float(rank)])
    world.average([tensor])
    assert tensor.item() == 0.5
    assert world.largest([rank, -rank]) == [1, 0]
    assert world.from_first(lambda: "first") == "first"

    # Three images: one for the first process, two for the second.
    counts = world.counts_of(3)
    assert counts == (1, 2)
    whole = torch.tensor([[1.0], [2.0], [3.0]])
    assert torch.equal(world.gather_rows(whole[world.own_rows(counts, 3)], counts), whole)

    # One image: the first process runs it too, and it counts once.
    counts = world.counts_of(1)
    assert counts == (0, 1)
    assert world.own_rows(counts, 1) == slice(0, 1)
    assert torch.equal(world.gather_rows(whole[:1], counts), whole[:1])

    with pytest.raises(UserError, match=r"process 1 has another seed than process 0 \(1, not 0\)"):
        world.agree({"data": "same", "seed": rank})
    assert (world.rank(), world.size()) == (rank, 2)
    dist.destroy_process_group()


def layers_of_one_of_two(rank: int, file: str) -> None:
    """Batch norm of tokens and of two views in one batch, dropout, stochastic depth."""
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    whole = torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = world.counts_of(5)
    own = whole[world.own_rows(counts, 5)]
    norm = torch.nn.BatchNorm1d(4).double()

    def tokens(x):
        return norm(x.flatten(0, 1)).view(x.shape)

    def views(x):
        return norm(torch.cat([x[:, 0], 2 * x[:, 1]])).view(2, -1, 4).transpose(0, 1)

    def dropped(x):
        return torch.nn.functional.dropout(x, 0.5)

    def depth(x):
        return x * x.new_empty(len(x), 1, 1).bernoulli_(0.5)

    for layer in (tokens, views, dropped, depth):
        torch.manual_seed(1)
        expected = layer(whole)[world.own_rows(counts, 5)]
        torch.manual_seed(1)
        with shared(counts):
            found = layer(own)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    dist.destroy_process_group()


def test_layers_see_the_whole_batch(tmp_path):
    mp.spawn(layers_of_one_of_two, (str(tmp_path / "store"),), nprocs=2)


def errors_of_one_of_two(rank: int, file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)

    def refuse():
        raise UserError("no such folder")

    with pytest.raises(UserError, match="no such folder"):
        world.from_first(refuse)
    assert world.from_first(lambda: 3) == 3
    dist.destroy_process_group()


@pytest.mark.slow
def test_an_error_of_the_first_process_is_that_of_all(tmp_path):
    mp.spawn(errors_of_one_of_two, (str(tmp_path / "store"),), nprocs=2)


@pytest.mark.slow
def test_two_processes_agree(tmp_path):
    mp.spawn(one_of_two, (str(tmp_path / "store"),), nprocs=2)


def test_the_reason_of_a_backend_is_told():
    def call():
        raise dist.DistBackendError("NCCL error: unhandled system error")

    with pytest.raises(ProcessError, match=r"another process .*\(NCCL error: unhandled system"):
        world._together(call)
