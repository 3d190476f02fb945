"""Reports of people who wrote a method: groups of parameters, and what a step may return."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edkd.distillers import Distiller, checked_groups
from edkd.engine.optimizer import make_optimizer, make_plain_sgd, set_learning_rate
from edkd.engine.update import Update
from edkd.engine.updates.dot import DOT
from edkd.errors import UserError
from tests.small import CPU, batch, config, make_distiller, make_trainer


class Grouped(Distiller):
    """Returns what `given` makes of it."""

    given = staticmethod(lambda self: None)

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher)
        self.project = nn.Linear(6, 12)

    def forward_train(self, image, target, **kwargs):
        logits, features = self.student(image)
        loss = self.project(features["pooled_feat"]).square().mean()
        return logits, {"loss_ce": F.cross_entropy(logits, target), "loss_kd": loss}

    def get_learnable_parameters(self):
        return self.given()


def groups_of(given):
    cls = type("Grouped", (Grouped,), {"given": given})
    distiller = make_distiller(cls)
    return distiller, checked_groups(distiller)


def test_each_group_keeps_its_own_rate_under_the_schedule():
    """The report: groups from `get_learnable_parameters` ended in an AttributeError.

    As in katsura-jp/pytorch-cosine-annealing-with-warmup #14, a schedule must not give all groups
    one rate.

    A group's `lr` is absolute, as in torch, and falls with the schedule as SOLVER.LR does.
    """
    _, groups = groups_of(
        lambda self: [
            {"params": self.student.parameters()},
            {"params": self.project.weight, "lr": 0.5, "weight_decay": 0.0},
            {"params": [self.project.bias], "lr_mult": 10.0, "momentum": 0.0},
        ]
    )
    optimizer = make_optimizer(groups, config("SOLVER.LR", 0.1))
    set_learning_rate(optimizer, 0.01)  # a tenth of SOLVER.LR
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.01, 0.05, 0.1])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0001, 0.0, 0.0001]
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.9, 0.0]
    assert "momentum_buffer" not in optimizer.state[groups[2]["params"][0]]


@pytest.mark.parametrize("rule", [Update, DOT])
def test_groups_survive_a_resume(rule):
    _, groups = groups_of(
        lambda self: [
            {"params": self.student.parameters()},
            {"params": self.project.parameters(), "lr": 0.2},
        ]
    )
    update = rule(groups, config("SOLVER.LR", 0.1), CPU, None)
    update.load_state_dict(update.state_dict())
    update.set_learning_rate(0.05)
    rates = [group["lr"] for group in update.optimizer.param_groups]
    assert rates == pytest.approx([0.05, 0.1])


ACCEPTED = {
    "a generator": lambda self: self.student.parameters(),
    "names and parameters": lambda self: self.student.named_parameters(),
    "one parameter": lambda self: self.project.weight,
    "one group": lambda self: {"params": self.student.parameters()},
    "named group": lambda self: [{"params": self.student.named_parameters(), "name": "student"}],
    "twice in a list": lambda self: [*Distiller.get_learnable_parameters(self), self.project.bias],
    "twice in a group": lambda self: [{"params": [self.project.bias, self.project.bias]}],
    "an empty group": lambda self: [{"params": []}, {"params": self.project.parameters()}],
}


@pytest.mark.parametrize("form", ACCEPTED)
def test_forms_that_work(form):
    distiller, groups = groups_of(ACCEPTED[form])
    parameters = [parameter for group in groups for parameter in group["params"]]
    known = {id(parameter) for parameter in distiller.parameters()}
    assert parameters
    assert len(parameters) == len({id(parameter) for parameter in parameters})
    assert {id(parameter) for parameter in parameters} <= known
    make_optimizer(groups, config())


REFUSED = {
    "nothing": (lambda self: None, "returned NoneType, but must return parameters or parameter"),
    "a text": (lambda self: "all", "returned str, but must return"),
    "modules": (lambda self: [self.student, self.project], "returned TinyNet in the place of a"),
    "lists in a list": (
        lambda self: [list(self.student.parameters()), list(self.project.parameters())],
        "returned list in the place of a parameter",
    ),
    "mixed": (
        lambda self: [self.project.bias, {"params": [self.project.weight]}],
        "mixes parameters and groups",
    ),
    "no params": (lambda self: [{"lr": 0.1}], "a group without 'params', with lr"),
    "a state dict": (
        lambda self: dict(self.student.named_parameters()),
        "a group without 'params'",
    ),
    "the teacher": (lambda self: self.parameters(), "the teacher's parameter teacher.conv.weight"),
    "the teacher in a group": (
        lambda self: [{"params": self.teacher.fc.weight}],
        "the teacher's parameter teacher.fc.weight",
    ),
    "in two groups": (
        lambda self: [
            {"params": Distiller.get_learnable_parameters(self)},
            {"params": self.project.parameters(), "lr": 1.0},
        ],
        "has project.weight in two groups; .*self.student.parameters",
    ),
    "two rates": (
        lambda self: [{"params": self.project.weight, "lr": 1.0, "lr_mult": 2.0}],
        "both lr and lr_mult",
    ),
    "a negative rate": (lambda self: [{"params": self.project.weight, "lr": -1.0}], "lr -1.0"),
    "a text as rate": (lambda self: [{"params": self.project.weight, "lr": "1"}], "lr '1'"),
    "outside": (
        lambda self: [nn.Parameter(torch.ones(3))],
        r"a tensor of shape \(3,\) that is not a parameter of the method, so that no checkpoint",
    ),
    "none at all": (lambda self: [], "neither student nor method has a parameter"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_forms_that_are_refused_in_one_line(form):
    given, message = REFUSED[form]
    with pytest.raises(UserError, match=message) as caught:
        groups_of(given)
    assert "\n" not in str(caught.value)


def test_an_option_that_the_optimizer_never_reads_is_refused():
    """torch keeps unknown options of a group and ignores them without a word."""
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(UserError, match="has 'weight_decy', which SOLVER.TYPE SGD does not know, "):
        make_optimizer([{"params": [weight], "weight_decy": 0.1}], config())
    with pytest.raises(UserError, match="has 'betas', which SOLVER.TYPE SGD does not know"):
        make_optimizer([{"params": [weight], "betas": (0.9, 0.99)}], config())
    with pytest.raises(UserError, match="has 'momentum', which SOLVER.TRAINER dot does not know"):
        make_plain_sgd([{"params": [weight], "momentum": 0.1}], config("SOLVER.TRAINER", "dot"))
    with pytest.raises(UserError, match=r"learning rate 0.1, but SOLVER.LR, .* is 0"):
        make_optimizer([{"params": [weight], "lr": 0.1}], config("SOLVER.LR", 0))


# What a step may return.


class Returns(Distiller):
    """Returns what `made` makes of the logits and the task loss, in the published style."""

    made = staticmethod(lambda logits, loss: None)

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher)

    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        return self.made(logits, F.cross_entropy(logits, target))


class Computes(Distiller):
    """The same in `losses`."""

    made = staticmethod(lambda logits, loss: None)

    def losses(self, student, teacher, batch):
        return self.made(student.logits, F.mse_loss(student.logits, teacher.logits))


BROKEN = {
    "nothing": (lambda x, loss: None, "returned None from a training step"),
    "a dictionary alone": (lambda x, loss: {"loss_ce": loss}, "returned dict from"),
    "two terms": (lambda x, loss: {"loss_ce": loss, "loss_kd": loss}, "returned dict from"),
    "six values": (lambda x, loss: (x, {"a": loss}, 1, 2, 3, 4), "returned a tuple of 6 from"),
    "a loss": (lambda x, loss: (x, loss), r"a float32 tensor of shape \(\) as losses"),
    "a float": (lambda x, loss: (x, {"loss_ce": 0.5}), "the float 0.5 as 'loss_ce'"),
    "an integer": (lambda x, loss: (x, {"loss_ce": x.argmax()}), "a int64 tensor of shape"),
    "no term": (lambda x, loss: (x, {}), "returned {} as losses"),
    "no logits": (lambda x, loss: (None, {"loss_ce": loss}), "returned None as logits"),
    "flat logits": (lambda x, loss: (x[:, 0], {"loss_ce": loss}), r"shape \(16,\) as logits"),
    "detached": (
        lambda x, loss: (x, {"loss_ce": loss, "loss_kd": loss.detach()}),
        "returned loss_kd without a gradient",
    ),
    "all detached": (
        lambda x, loss: (x, {"loss_ce": 0 * loss.detach()}),
        "returned loss_ce without a gradient",
    ),
}

BROKEN_LOSSES = {
    "nothing": (lambda x, loss: None, "returned None as losses"),
    "a loss": (lambda x, loss: loss, r"returned a float32 tensor of shape \(\) as losses"),
    "a float": (lambda x, loss: 1.0, "returned the float 1.0 as losses"),
    "no term": (lambda x, loss: {}, "returned {} as losses"),
    "one per image": (
        lambda x, loss: {"loss_kd": x.sum(1)},
        r"tensor of shape \(16,\) as 'loss_kd'",
    ),
    "a number": (lambda x, loss: {"loss_kd": 0.5}, "the float 0.5 as 'loss_kd'"),
    "detached": (lambda x, loss: {"loss_kd": loss.detach()}, "loss_kd without a gradient"),
}


def first_step(tmp_path, cls, made, monkeypatch):
    from edkd.distillers import distiller_dict

    monkeypatch.setitem(distiller_dict, "TEST_BROKEN", type("Broken", (cls,), {"made": made}))
    trainer = make_trainer("TEST_BROKEN", tmp_path)
    return trainer.train_step(1, *next(trainer.data.train.inputs(1)))


def assert_names_contract_and_file(error):
    assert "must return" in str(error) or "nothing learns from it" in str(error)
    assert "test_methods.py" in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("method", "made", "message"),
    [
        *(pytest.param(Returns, *case, id=f"a step: {kind}") for kind, case in BROKEN.items()),
        *(pytest.param(Computes, *case, id=kind) for kind, case in BROKEN_LOSSES.items()),
    ],
)
def test_what_a_method_returns_is_checked(tmp_path, monkeypatch, method, made, message):
    """The report: a traceback within the engine that names neither the contract nor the method.

    In `losses`, a vector was averaged and a detached term ignored, both without a word.
    """
    with pytest.raises(UserError, match=message) as caught:
        first_step(tmp_path, method, staticmethod(made), monkeypatch)
    assert_names_contract_and_file(caught.value)


def test_a_placeholder_of_zero_and_a_published_vector_are_allowed(tmp_path, monkeypatch):
    """A term that begins in a later epoch is 0 until then; mdistiller averages a vector."""

    def zero(logits, loss):
        return {"loss_kd": torch.zeros(())}

    def vector(logits, loss):
        return logits, {"loss_ce": logits.square().sum(1)}

    first_step(tmp_path, Computes, staticmethod(zero), monkeypatch)
    losses, _, _ = first_step(tmp_path, Returns, staticmethod(vector), monkeypatch)
    assert losses["loss_ce"].dim() == 0


def test_features_of_losses_are_contiguous():
    """The preferred style can flatten features with `view`, too."""

    class Views(Distiller):
        teacher_needs = ("feats",)

        def losses(self, student, teacher, batch):
            maps = [output.features["feats"][-1] for output in (student, teacher)]
            flat = [each.view(len(each), -1).mean(1) for each in maps]
            return {"loss_kd": F.mse_loss(*flat)}

    distiller = make_distiller(Views).to(memory_format=torch.channels_last).train()
    given = batch()
    image = given.image.contiguous(memory_format=torch.channels_last)
    distiller.training_step(type(given)(image, given.target, given.index))[1]["loss_kd"].backward()
    assert distiller.student.convs[0].weight.grad.abs().sum() > 0


def test_features_first_read_without_gradients_keep_theirs():
    """They are converted when first looked at, which may be within `no_grad`."""

    class Reads(Distiller):
        def losses(self, student, teacher, batch):
            with torch.no_grad():
                student.features["feats"]
            return {"loss_kd": student.features["feats"][-1].mean()}

    distiller = make_distiller(Reads).train()
    distiller.training_step(batch())[1]["loss_kd"].backward()
    assert distiller.student.conv.weight.grad is not None
