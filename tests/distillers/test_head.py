"""Heads that learn alone, or at another rate than the rest of the student."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edkd
from edkd.distillers import checked_groups
from edkd.distillers._head import head_layers
from edkd.engine.checkpoint import load_checkpoint
from edkd.errors import UserError
from edkd.models import as_network, get_model
from tests.runs import assert_refused, plain
from tests.small import TinyNet, make_distiller, make_trainer, tiny_images

ONLY_HEAD = ("SOLVER.TRAIN_ONLY", "head")
HEAD = {"fc.weight", "fc.bias"}


class Plain(nn.Module):
    """Two heads of one shape, after a layer with as many outputs."""

    def __init__(self, num_classes=4):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, num_classes)
        self.head_dist = nn.Linear(4, num_classes)

    def forward(self, image):
        feature = self.body(image)
        return self.head(feature) + self.head_dist(feature)


def shares(groups):
    """The factor of each parameter, by its shape."""
    return {
        tuple(p.shape): group.get("lr_factor", 1.0) for group in groups for p in group["params"]
    }


def test_the_head_of_networks():
    assert [m.out_features for m in head_layers(get_model("cifar", "resnet8", 10), 10, "")] == [10]
    mobile = get_model("cifar", "MobileNetV2", 10)
    assert head_layers(mobile, 10, "")[0] is [*mobile.modules()][-1]
    two = Plain()
    assert head_layers(as_network(two), 4, "") == [two.head, two.head_dist]
    squeeze = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 10, 1), nn.ReLU(), nn.Flatten())
    assert head_layers(squeeze, 10, "") == [squeeze[1]]


def test_another_rate_of_the_head():
    distiller = make_distiller("KD", "SOLVER.HEAD_LR_FACTOR", "10")
    factors = shares(checked_groups(distiller))
    assert factors == {
        tuple(p.shape): 10.0 if name in HEAD else 1.0
        for name, p in distiller.student.named_parameters()
    }
    assert all(p.requires_grad for p in distiller.student.parameters())


def test_the_head_alone(tmp_path):
    trainer = make_trainer("KD", tmp_path, *ONLY_HEAD, "SOLVER.HEAD_LR_FACTOR", "3")
    (group,) = trainer.update.optimizer.param_groups
    student = trainer.distiller.student
    assert {id(p) for p in group["params"]} == {id(p) for p in student.fc.parameters()}
    assert group["lr_factor"] == 3.0
    assert not any(module.training for module in student.modules())

    before = plain(student.state_dict())
    for inputs in trainer.data.train.inputs(1):
        trainer.step(1, *inputs)
    after = plain(student.state_dict())
    assert {name for name in after if after[name] != before[name]} == HEAD


def test_parameters_of_the_method_learn_all_the_same():
    def change(distiller):
        distiller.project = nn.Linear(3, 2)
        distiller.learning_rate_factors = {"project": 5.0}

    distiller = make_distiller("KD", *ONLY_HEAD)
    change(distiller)
    assert shares(checked_groups(distiller)) == {
        (2, 3): 5.0,
        (2,): 5.0,
        (4, 6): 1.0,
        (4,): 1.0,
    }


@pytest.mark.parametrize("opts", [ONLY_HEAD, ("SOLVER.HEAD_LR_FACTOR", "4")])
def test_a_run_that_is_resumed_is_the_same(assert_resumes, train_tiny, tiny_folder, opts):
    words = ["DISTILLER.TYPE", "DML", *opts]
    assert_resumes(*words)

    still = ["SOLVER.EPOCHS", 1, "SOLVER.SCHEDULE", "step", "SOLVER.LR", 0]
    assert train_tiny("still", *words, *still).code == 0
    folders = [tiny_folder / name for name in ("still", "whole")]
    states = [load_checkpoint(folder / "latest")["model"] for folder in folders]
    changed = {key for key in states[0] if not torch.equal(states[0][key], states[1][key])}
    own = {key for key in changed if not key.endswith(tuple(HEAD))}
    assert bool(own) == (opts != ONLY_HEAD)


def test_a_head_that_cannot_be_found(tmp_path):
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 192))

        def forward(self, image):
            return image.flatten(1) @ self.weight.T

    for key, value in (("SOLVER.TRAIN_ONLY", "head"), ("SOLVER.HEAD_LR_FACTOR", 2.0)):
        with pytest.raises(UserError, match=rf"{key}.*: the head of Norm was not found: .* with 4"):
            distil(tmp_path, Norm(), **{key: value})


def distil(folder, student, **settings):
    images = tiny_images(24)
    loader = DataLoader(TensorDataset(images.image.float() / 64, images.target), batch_size=8)
    return edkd.distill(
        student, TinyNet(), loader, loader, "KD", 1, output=folder, device="cpu", **settings
    )


def test_networks_of_the_caller_get_their_flags_back(tmp_path):
    student = Plain()
    body = plain(student.body.state_dict())
    head = plain(student.head.state_dict())
    distil(tmp_path, student, **{"SOLVER.TRAIN_ONLY": "head"})
    assert plain(student.body.state_dict()) == body
    assert plain(student.head.state_dict()) != head
    assert all(p.requires_grad for p in student.parameters())

    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with pytest.raises(UserError, match="SOLVER.TRAIN_ONLY does not change an optimizer of your"):
        distil(tmp_path, student, name="b", optimizer=optimizer, **{"SOLVER.TRAIN_ONLY": "head"})


def test_other_values_are_refused(train_tiny):
    assert_refused(train_tiny("a", "SOLVER.TRAIN_ONLY", "tail"), "not one of all, head")
    assert_refused(train_tiny("a", "SOLVER.HEAD_LR_FACTOR", "-1"), "must be at least 0")
