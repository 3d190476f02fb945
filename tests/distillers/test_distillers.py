"""The contract of a method: what it is given, what it returns, what it must leave alone."""

import pytest
import torch
from torch import nn

from edkd.distillers import Distiller, distiller_dict, edkd_loss, register
from edkd.distillers._common import warmup_factor
from edkd.engine.load_cfg import load_cfg
from edkd.errors import UserError
from edkd.models import get_model

METHODS = sorted(distiller_dict)
COHORTS = [name for name in METHODS if distiller_dict[name].is_cohort]
TAUGHT = [name for name in METHODS if not distiller_dict[name].is_cohort]


def make(name, *opts):
    torch.manual_seed(0)
    cfg = load_cfg(opts=["DISTILLER.TYPE", name, *opts])
    method, student = distiller_dict[name], get_model("cifar", "resnet8", 10)
    if method.is_cohort:
        names = ["resnet8"] * (len(method.student_names(cfg)) - 1)
        return method(nn.ModuleList([student, *(get_model("cifar", name, 10) for name in names)]), None, cfg)
    return method(student, get_model("cifar", "resnet14", 10), cfg)


def batch():
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(8, 3, 32, 32, generator=generator)
    target = torch.randint(10, (8,), generator=generator)
    return dict(image=image, target=target, index=torch.arange(8), epoch=1)


@pytest.mark.parametrize("name", TAUGHT)
def test_a_step_trains_the_student_and_leaves_the_teacher(name):
    distiller = make(name).train()
    before = {key: value.clone() for key, value in distiller.teacher.state_dict().items()}
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.1)
    logits, losses = distiller(**batch())
    assert logits.shape == (8, 10)
    assert all(loss.isfinite() and loss.requires_grad for loss in losses.values())
    sum(losses.values()).backward()
    optimizer.step()
    assert all(parameter.grad is not None for parameter in distiller.student.parameters())
    assert not distiller.teacher.training
    assert all(torch.equal(value, before[key]) for key, value in distiller.teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in distiller.teacher.parameters())
    assert isinstance(distiller.get_extra_parameters(), int)


@pytest.mark.parametrize("name", TAUGHT)
def test_eval_gives_logits_alone(name):
    distiller = make(name).eval()
    image = batch()["image"]
    with torch.no_grad():
        assert torch.equal(distiller(image=image), distiller.student(image)[0])


def test_the_state_to_save_is_without_the_teacher():
    distiller = make("KD")
    assert {key.split(".")[0] for key in distiller.trained_state()} == {"student"}


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("KD", "KD.TEMPERATURE", 2),
        ("KD", "KD.LOSS.CE_WEIGHT", 0.5),
        ("KD", "KD.LOSS.KD_WEIGHT", 0.5),
        *[(m, f"{m}.{k}", v) for m in ("DKD", "EDKD") for k, v in [("CE_WEIGHT", 0.5), ("ALPHA", 3), ("BETA", 2)]],
        *[(m, f"{m}.{k}", v) for m in ("DKD", "EDKD") for k, v in [("T", 1), ("WARMUP", 5)]],
        ("EDKD", "EDKD.FORM", "reference"),
        *[(m, f"{m}.{k}", v) for m in COHORTS for k, v in [("CE_WEIGHT", 0.5), ("KD_WEIGHT", 0.5), ("T", 5)]],
        *[(m, f"{m}.{k}", v) for m in COHORTS for k, v in [("NUM_STUDENTS", 3), ("STUDENTS", 3 * ["resnet8"])]],
        ("DML", "DML.UPDATE", "alternating"),
        ("ONE", "ONE.WARMUP", 5),
        ("KDCL", "KDCL.ENSEMBLE", "naive"),
        ("KDCL", "KDCL.ENSEMBLE", "linear"),
    ],
)
def test_every_hyper_parameter_changes_the_loss(name, key, value):
    def total(distiller):
        return sum(loss.item() for loss in distiller.train()(**batch())[1].values())

    assert total(make(name)) != total(make(name, key, str(value)))


def test_all_hyper_parameters_are_tested_above():
    marks = test_every_hyper_parameter_changes_the_loss.pytestmark
    tested = {key for _, key, _ in marks[0].args[1]}

    def leaves(node, prefix):
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}") if isinstance(value, dict) else [f"{prefix}.{key}"]

    assert tested == {leaf for name in METHODS for leaf in leaves(distiller_dict[name].defaults, name)}


def test_warmup():
    assert [warmup_factor(epoch, 4) for epoch in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert warmup_factor(1, 0) == 1.0


def test_an_unknown_form_is_refused():
    logits, target = torch.randn(4, 5), torch.zeros(4, dtype=torch.long)
    with pytest.raises(UserError, match=r"form is 'Paper'.*did you mean 'paper'"):
        edkd_loss(logits, logits, target, 1.0, 8.0, 4.0, form="Paper")


def test_a_name_is_registered_once():
    with pytest.raises(UserError, match="'KD'.*already registered by .*kd.py"):

        @register("KD")
        class Other(Distiller):
            def forward_train(self, image, target, **kwargs):
                raise AssertionError

    assert distiller_dict["KD"].__name__ == "KD"


def test_a_method_in_the_published_style_works(monkeypatch):
    """super().__init__(student, teacher), a list of its own modules, no `epoch` in its signature."""

    class Published(Distiller):
        def __init__(self, student, teacher, cfg):
            super(Published, self).__init__(student, teacher)  # noqa: UP008
            self.connector = nn.Linear(64, 64)

        def forward_train(self, image, target, **kwargs):
            logits_student, features_student = self.student(image)
            with torch.no_grad():
                _, features_teacher = self.teacher(image)
            pooled = self.connector(features_student["pooled_feat"])
            return logits_student, {"loss_feat": (pooled - features_teacher["pooled_feat"]).square().mean()}

        def get_learnable_parameters(self):
            return super().get_learnable_parameters() + list(self.connector.parameters())

        def get_extra_parameters(self):
            return sum(p.numel() for p in self.connector.parameters())

    distiller = Published(get_model("cifar", "resnet8", 10), get_model("cifar", "resnet14", 10), None).train()
    _, losses = distiller(**batch())
    losses["loss_feat"].backward()
    assert distiller.connector.weight.grad is not None
    assert {key.split(".")[0] for key in distiller.trained_state()} == {"student", "connector"}
