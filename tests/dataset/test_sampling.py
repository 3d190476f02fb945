"""The order of an epoch depends on the seed and the epoch alone."""

import random

import numpy as np
import pytest
import torch

from edkd.dataset.sampling import (
    RandomStream,
    epoch_order,
    hold_out,
    random_state,
    seed_everything,
    seed_for,
    set_random_state,
    stratified_split,
)
from edkd.errors import UserError


def draw_all() -> list[float]:
    return [torch.rand(1).item(), float(np.random.rand()), random.random()]


def test_the_order_is_the_published_one():
    """The numbers that the first version drew: cached logits and golden curves depend on them."""
    index, (views,) = epoch_order(torch.arange(6), 6, [162], 1, 1)
    generator = torch.Generator().manual_seed(seed_for(1, 1))
    expected = torch.randint(162, (6,), generator=generator)
    assert torch.equal(index, torch.randperm(6, generator=generator))
    assert torch.equal(views, expected[index])
    assert index.tolist() == [2, 1, 4, 5, 0, 3]
    assert views.tolist() == [100, 135, 158, 85, 51, 132]


def test_a_held_out_split_leaves_the_views_of_others_alone():
    order, (all_views,) = epoch_order(torch.arange(100), 100, [162], 1, 1)
    members = torch.arange(10, 100)
    some, (some_views,) = epoch_order(members, 100, [162], 1, 1)
    assert torch.equal(all_views[order.argsort()][members], some_views[some.argsort()])


def test_further_views_change_neither_the_order_nor_the_first_view():
    alone = epoch_order(torch.arange(50), 50, [162], 3, 2)
    index, (first, second, third) = epoch_order(torch.arange(50), 50, [162, 50, 50], 3, 2)
    assert torch.equal(index, alone[0])
    assert torch.equal(first, alone[1][0])
    assert second.max() < 50
    assert not torch.equal(second, third)


def test_views_are_uniform():
    _, (views,) = epoch_order(torch.arange(50_000), 50_000, [162], 1, 1)
    counts = views.bincount(minlength=162)
    assert counts.min() > 200
    assert counts.max() < 420


def test_seeds_differ_in_their_low_bits():
    """A CPU generator uses 32 bits: seeds that differ in higher ones would draw the same."""
    assert len({seed_for(seed, epoch) for seed in range(50) for epoch in range(50)}) == 2500
    assert 0 <= seed_for(1, 2) < 2**32


def test_random_state_is_restored():
    seed_everything(3)
    state = random_state()
    first = draw_all()
    set_random_state(state)
    assert draw_all() == first


def test_a_random_stream_is_apart_from_the_others():
    seed_everything(3)
    expected = [draw_all(), draw_all()]

    seed_everything(3)
    stream = RandomStream(7)
    with stream.active():
        inside = draw_all()
    assert draw_all() == expected[0]
    with stream.active():
        inside += draw_all()
    assert draw_all() == expected[1]

    with RandomStream(7).active():
        assert draw_all() + draw_all() == inside


def test_stratified_split():
    target = torch.tensor([0] * 10 + [1] * 20 + [2] * 30)
    rest, held_out = stratified_split(target, 0.2)
    assert target[held_out].bincount().tolist() == [2, 4, 6]
    assert sorted(torch.cat([rest, held_out]).tolist()) == list(range(60))
    assert torch.equal(held_out, stratified_split(target, 0.2)[1])
    assert len(stratified_split(target, 0.0)[1]) == 0


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_an_empty_part_is_refused(fraction):
    with pytest.raises(UserError, match="DATASET.VAL_SPLIT"):
        hold_out(torch.arange(10) % 2, fraction)
