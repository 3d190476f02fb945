"""R5: damaged and foreign files are refused as checkpoints."""

import random
from contextlib import suppress

import pytest
import torch

from edkd.engine.checkpoint import load_checkpoint, save_checkpoint
from edkd.engine.weights import load_weights
from edkd.errors import UserError
from edkd.models import get_model
from tests.reliability.files import FOREIGN, write
from tests.runs import plain


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run's checkpoint with few numbers: damage meets its directory, names and structure."""
    network = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    state = {
        "epoch": 1,
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": {},
        "history": [{"epoch": 1, "test_top1": 0.5}],
        "config": "SOLVER:\n  LR: 0.1\n",
    }
    path = tmp_path_factory.mktemp("small") / "latest"
    save_checkpoint(state, path)
    return path


def damaged(whole, flips, cuts):
    """Copies of some bytes, each with a bit flipped or cut short."""
    draw = random.Random(len(whole))
    for _ in range(flips):
        copy = bytearray(whole)
        copy[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        yield copy
    for _ in range(cuts):
        yield whole[: draw.randrange(len(whole))]


def test_a_damaged_checkpoint_is_refused_or_the_same(tmp_path, teacher, small, extent, figure):
    flips, cuts = extent((125, 25), (500, 100), all_=(500, 100))
    accepted = 0
    tried = 0
    for original in (teacher, small):
        expected = plain(load_checkpoint(original))
        for content in damaged(original.read_bytes(), flips, cuts):
            (tmp_path / "c").write_bytes(content)
            tried += 1
            with suppress(UserError):
                accepted += plain(load_checkpoint(tmp_path / "c")) != expected
    figure("R5", f"{accepted} of {tried} damaged checkpoints silently accepted with other content")
    assert not accepted


def test_a_foreign_file_is_no_checkpoint(tmp_path, figure):
    model = get_model("cifar", "resnet8", 10)
    before = plain(model.state_dict())
    accepted = []
    for number, (name, content) in enumerate(FOREIGN.items()):
        path = tmp_path / str(number)
        write(path, content(model.state_dict()))
        with suppress(UserError):
            load_weights(model, path)
            accepted.append(name)
        assert plain(model.state_dict()) == before, name
    figure("R5", f"{len(accepted)} of {len(FOREIGN)} foreign files accepted as a checkpoint")
    assert accepted == []
