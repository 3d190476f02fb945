"""The contract of a method: what it is given, what it returns, what it must leave alone."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edkd.distillers import (
    Distiller,
    distiller_dict,
    edkd_loss,
    find_method,
    method_names,
    register,
)
from edkd.distillers._math import mean_prediction, warmup_factor
from edkd.errors import UserError
from edkd.keys import flatten
from edkd.registry import METHODS
from edkd.types import Batch, Output
from tests.small import TinyNet, batch, config, info, make_distiller

METHOD_NAMES = sorted(method_names())
COHORTS = [name for name in METHOD_NAMES if find_method(name).is_cohort]
SINGLE = [name for name in METHOD_NAMES if not find_method(name).is_cohort]
TAUGHT = [name for name in SINGLE if find_method(name).needs_teacher]


def total(distiller) -> float:
    _, losses = distiller.train().training_step(batch())
    return sum(loss.item() for loss in losses.values())


@pytest.mark.parametrize("name", TAUGHT)
def test_a_step_trains_the_student_and_leaves_the_teacher(name):
    distiller = make_distiller(name).train()
    before = {key: value.clone() for key, value in distiller.teacher.state_dict().items()}
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.1)

    logits, losses = distiller.training_step(batch())
    assert logits.shape == (8, 4)
    assert all(loss.isfinite() and loss.requires_grad for loss in losses.values())
    assert {key[:7] for key in losses} == {"loss_ce", "loss_kd"}
    sum(losses.values()).backward()
    optimizer.step()

    assert all(parameter.grad is not None for parameter in distiller.student.parameters())
    assert not distiller.teacher.training
    after = distiller.teacher.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert not any(parameter.requires_grad for parameter in distiller.teacher.parameters())


@pytest.mark.parametrize("name", TAUGHT)
def test_each_network_runs_once(name):
    distiller = make_distiller(name).train()
    calls = []
    for network in (distiller.student, distiller.teacher):
        network.register_forward_hook(lambda module, *_: calls.append(module))
    distiller.training_step(batch())
    views = len(distiller.views)
    assert calls == [distiller.student] * views + [distiller.teacher] * views


@pytest.mark.parametrize("name", [name for name in SINGLE if find_method(name).views == ("weak",)])
def test_the_published_calls_work(name):
    distiller = make_distiller(name)
    about = batch()
    logits, losses = distiller.train()(
        image=about.image, target=about.target, index=about.index, epoch=1
    )
    assert logits.shape == (8, 4)
    assert "loss_ce" in losses
    distiller.eval()
    with torch.no_grad():
        expected = distiller.student(about.image)[0]
        assert torch.equal(distiller(image=about.image), expected)


def changes(method, node="", **values):
    """An entry of CHANGES for each key of a method's node."""
    prefix = f"{method}.{node}." if node else f"{method}."
    return [(method, f"{prefix}{key}", value) for key, value in values.items()]


CHANGES = [
    ("KD", "KD.TEMPERATURE", 2),
    ("KD", "KD.LOSS.CE_WEIGHT", 0.5),
    ("KD", "KD.LOSS.KD_WEIGHT", 0.5),
    *[
        (method, f"{method}.{key}", value)
        for method in ("DKD", "EDKD")
        for key, value in [("CE_WEIGHT", 0.5), ("ALPHA", 3), ("BETA", 2), ("T", 1), ("WARMUP", 5)]
    ],
    ("EDKD", "EDKD.FORM", "reference"),
    *[
        ("DIST", f"DIST.{key}", value)
        for key, value in [
            ("CE_WEIGHT", 0.5),
            ("KD_WEIGHT", 0.5),
            ("BETA", 3),
            ("GAMMA", 3),
            ("T", 1),
        ]
    ],
    *[
        ("LUMINET", f"LUMINET.{key}", value)
        for key, value in [("CE_WEIGHT", 0.5), ("ALPHA", 3), ("T", 1), ("WARMUP", 5)]
    ],
    *[
        ("SKD", f"SKD.{key}", value)
        for key, value in [
            ("CE_WEIGHT", 0.5),
            ("KD_WEIGHT", 0.5),
            ("T", 1),
            ("TIKHONOV", 1),
            ("FORM", "paper"),
        ]
    ],
    *[
        ("WKD", f"WKD.{key}", value)
        for key, value in [
            ("LOSS.CE_WEIGHT", 0.5),
            ("LOSS.WKD_LOGIT_WEIGHT", 5),
            ("LOSS.COSINE_DECAY_EPOCH", 0),
            ("TEMPERATURE", 1),
            ("SINKHORN.LAMBDA", 0.5),
            ("SINKHORN.ITER", 1),
            ("COST_MATRIX", "logits"),
            ("COST_MATRIX_SHARPEN", 3),
            ("COST_MATRIX_SAMPLES", 2),
        ]
    ],
    *[
        ("SDD", f"SDD.{key}", value)
        for key, value in [
            ("BASE", "dkd"),
            ("M", "[1]"),
            ("CE_WEIGHT", 0.5),
            ("KD_WEIGHT", 0.5),
            ("T", 1),
            ("WARMUP", 5),
        ]
    ],
    *[
        (method, f"{method}.{key}", value)
        for method in COHORTS
        for key, value in [("CE_WEIGHT", 0.5), ("KD_WEIGHT", 0.5), ("T", 5)]
    ],
    ("DML", "DML.UPDATE", "alternating"),
    ("ONE", "ONE.WARMUP", 5),
    ("KDCL", "KDCL.ENSEMBLE", "naive"),
    ("KDCL", "KDCL.ENSEMBLE", "linear"),
    *[
        (method, f"{method}.LOSS.{key}", 0.5)
        for method in ("AT", "SP", "NST", "PKT", "RKD", "KDSVD")
        for key in ("CE_WEIGHT", "FEAT_WEIGHT")
    ],
    ("AT", "AT.P", 1),
    ("RKD", "RKD.DISTANCE_WEIGHT", 2),
    ("RKD", "RKD.ANGLE_WEIGHT", 2),
    ("RKD", "RKD.PDIST.EPSILON", 0.1),
    ("RKD", "RKD.PDIST.SQUARED", True),
    ("KDSVD", "KDSVD.K", 2),
    ("CC", "CC.CE_WEIGHT", 0.5),
    ("CC", "CC.FEAT_WEIGHT", 0.5),
    ("CC", "CC.EMBED_DIM", 5),
    *[
        (method, f"{method}.LOSS.{key}", value)
        for method in ("FITNET", "VID", "OFD")
        for key, value in [("CE_WEIGHT", 0.5), ("FEAT_WEIGHT", 0.5)]
    ],
    ("FITNET", "FITNET.HINT_LAYER", 1),
    ("FITNET", "FITNET.HINT_EPOCHS", 1),
    ("FITNET", "FITNET.LOSS.KD_WEIGHT", 0.5),
    ("VID", "VID.INIT_PRED_VAR", 2),
    ("OFD", "OFD.CONNECTOR.KERNEL_SIZE", 3),
    ("REVIEWKD", "REVIEWKD.CE_WEIGHT", 0.5),
    ("REVIEWKD", "REVIEWKD.REVIEWKD_WEIGHT", 0.5),
    ("REVIEWKD", "REVIEWKD.WARMUP_EPOCHS", 5),
    ("REVIEWKD", "REVIEWKD.MAX_MID_CHANNEL", 5),
    ("REVIEWKD", "REVIEWKD.STU_PREACT", True),
    ("NONE", "NONE.CE_WEIGHT", 2),
    *changes("NKD", CE_WEIGHT=0.5, GAMMA=3, T=4),
    *changes("TTM", CE_WEIGHT=0.5, KD_WEIGHT=3, GAMMA=0.5),
    *changes("WTTM", CE_WEIGHT=0.5, KD_WEIGHT=3, GAMMA=0.5),
    *changes("RLD", CE_WEIGHT=0.5, ALPHA=3, BETA=2, ALPHA_T=4, T=1, WARMUP=5),
    *changes("NORMKD", "LOSS", CE_WEIGHT=0.5, KD_WEIGHT=0.5),
    *changes("NORMKD", TEMPERATURE_NORM=1, BASE="dkd"),
    *[(*change, "NORMKD.BASE", "dkd") for change in changes("NORMKD", ALPHA=3, BETA=2, WARMUP=5)],
    *changes("CTKD", "LOSS", CE_WEIGHT=0.5, KD_WEIGHT=0.5),
    *changes("CTKD", T_START=2, T_END=10),
    *changes("USKD", CE_WEIGHT=0.5, ALPHA=3, BETA=2, MU=2),
    ("CRD", "CRD.MODE", "relax"),
    ("CRD", "CRD.FEAT.DIM", 16),
    ("CRD", "CRD.LOSS.CE_WEIGHT", 0.5),
    ("CRD", "CRD.LOSS.FEAT_WEIGHT", 0.5),
    ("CRD", "CRD.NCE.K", 8),
    ("CRD", "CRD.NCE.TEMPERATURE", 0.1),
    ("SRRL", "SRRL.CE_WEIGHT", 0.5),
    ("SRRL", "SRRL.FEAT_WEIGHT", 0.5),
    ("SRRL", "SRRL.LOGIT_WEIGHT", 0.5),
    ("ND", "ND.CE_WEIGHT", 0.5),
    ("ND", "ND.ND_WEIGHT", 0.5),
    ("ND", "ND.DROPOUT", 0.1),
    ("SIMKD", "SIMKD.CE_WEIGHT", 0.5),
    ("SIMKD", "SIMKD.FEAT_WEIGHT", 0.5),
    ("SIMKD", "SIMKD.FACTOR", 4),
    ("RSD", "RSD.CE_WEIGHT", 0.5),
    ("RSD", "RSD.FEAT_WEIGHT", 0.5),
    ("RSD", "RSD.KAPPA", 0.5),
    ("RSD", "RSD.GAMMA", 4),
    ("MLKD", "MLKD.TEMPERATURE", 2),
    ("MLKD", "MLKD.FURTHER_TEMPERATURES", "[]"),
    ("MLKD", "MLKD.LOSS.CE_WEIGHT", 0.5),
    ("MLKD", "MLKD.LOSS.KD_WEIGHT", 0.5),
    ("MLKD", "MLKD.FORM", "reference"),
    ("CRLD", "CRLD.CE_WEIGHT", 0.5),
    ("CRLD", "CRLD.WV_WEIGHT", 3, "CRLD.TAU_W", 0),
    ("CRLD", "CRLD.CV_WEIGHT", 1),
    ("CRLD", "CRLD.TEMPERATURE", 2),
    ("CRLD", "CRLD.TAU_W", 0),
    ("CRLD", "CRLD.TAU_S", 1.0),
    ("DEIT", "DEIT.FORM", "soft"),
    ("DEIT", "DEIT.ALPHA", 0.2),
    ("DEIT", "DEIT.T", 3, "DEIT.FORM", "soft"),
    ("OFAKD", "OFAKD.CE_WEIGHT", 0.5),
    ("OFAKD", "OFAKD.KD_WEIGHT", 0.5),
    ("OFAKD", "OFAKD.STAGE_WEIGHT", 0.5),
    ("OFAKD", "OFAKD.STAGES", "[4]"),
    ("OFAKD", "OFAKD.EPS", "[1.5]"),
    ("OFAKD", "OFAKD.T", 2),
]

CHANGED_IN_TEST_CONNECTORS = [
    "FITNET.TEMPERATURE",
    "VID.EPS",
    *[f"{method}.INPUT_SIZE" for method in ("FITNET", "VID")],
    *[f"REVIEWKD.{key}" for key in ("SHAPES", "OUT_SHAPES", "IN_CHANNELS", "OUT_CHANNELS")],
]

CHANGES_OF_GRADIENTS = [("CTKD", "CTKD.DECAY_LOOPS", 5)]
"""They change the gradients of the first step, not its loss."""


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(map(str, change)))
def test_every_hyper_parameter_changes_the_loss(change):
    name, key, value, *surroundings = change
    changed = make_distiller(name, key, value, *surroundings)
    assert total(changed) != unchanged_total(name, *surroundings)


@functools.cache
def unchanged_total(*words):
    """The loss with the defaults, which many changes are compared with."""
    return total(make_distiller(*words))


@pytest.mark.parametrize(("name", "key", "value"), CHANGES_OF_GRADIENTS)
def test_every_other_hyper_parameter_changes_a_gradient(name, key, value):
    gradients = []
    for opts in ((), (key, value)):
        distiller = make_distiller(name, *opts).train()
        _, losses = distiller.training_step(batch())
        sum(losses.values()).backward()
        gradients.append([p.grad.sum().item() for p in distiller.get_learnable_parameters()])
    assert gradients[0] != gradients[1]


def test_all_hyper_parameters_are_tested_above():
    tested = {key for _, key, *_ in CHANGES + CHANGES_OF_GRADIENTS}
    counted = {f"{name}.{key}" for name in COHORTS for key in ("STUDENTS", "NUM_STUDENTS")}
    counted |= set(CHANGED_IN_TEST_CONNECTORS)
    # These only verify a width, or act from the second step on: see test_contrast.py.
    counted |= {"CRD.FEAT.STUDENT_DIM", "CRD.FEAT.TEACHER_DIM", "CRD.NCE.MOMENTUM"}
    declared = {
        key for name in METHOD_NAMES for key, _ in flatten(find_method(name).defaults, f"{name}.")
    }
    # They need another key, or another teacher, and are tested beside their method.
    elsewhere = {"SDD.ALPHA", "SDD.BETA", "SDD.GAMMA", "SDD.COMPLEMENTARY"}
    assert tested == declared - counted - elsewhere


def test_a_method_without_keys_is_set_up():
    """It has no node of the configuration."""

    class Projects(Distiller):
        def set_up(self, student, teacher, cfg):
            size = self.feature_shapes(student).pooled_feat[1]
            self.project = nn.Linear(size, self.facts().num_classes)

        def losses(self, student, teacher, batch):
            logits = self.project(student.features["pooled_feat"])
            return {"loss_kd": (logits - teacher.logits).square().mean()}

    distiller = make_distiller(Projects)
    assert distiller.get_extra_parameters() == 6 * 4 + 4
    assert distiller.train().training_step(batch())[1]["loss_kd"] > 0
    with pytest.raises(UserError, match="Projects needs facts about the training set"):
        Projects(TinyNet(), TinyNet(), config())


def test_warmup():
    assert [warmup_factor(epoch, 4) for epoch in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert warmup_factor(1, 0) == 1.0
    assert warmup_factor(torch.tensor(1.0), 4) == 0.25


def test_an_unknown_form_is_refused():
    logits = torch.randn(4, 5)
    target = torch.zeros(4, dtype=torch.long)
    with pytest.raises(UserError, match=r"form is 'Paper'.*did you mean 'paper'"):
        edkd_loss(logits, logits, target, 1.0, 8.0, 4.0, form="Paper")


def test_a_name_is_registered_once():
    with pytest.raises(UserError, match="'KD'.*already registered by .*kd.py"):

        @register("KD")
        class Other(Distiller):
            def losses(self, student, teacher, batch):
                raise AssertionError

    assert distiller_dict["KD"].__name__ == "KD"


def test_a_class_that_defines_no_loss_is_refused():
    with pytest.raises(UserError, match="must be a Distiller that defines losses or forward_train"):
        METHODS.add("NOTHING", type("Nothing", (Distiller,), {}))
    with pytest.raises(UserError, match="must be a class derived from Distiller"):
        METHODS.add("NOTHING", TinyNet)


class Published(Distiller):
    """As in mdistiller: networks passed on, own modules, no `epoch` in the signature."""

    def __init__(self, student, teacher, cfg):
        super(Published, self).__init__(student, teacher)  # noqa: UP008
        self.connector = nn.Linear(6, 12)

    def forward_train(self, image, target, **kwargs):
        logits_student, features_student = self.student(image)
        with torch.no_grad():
            _, features_teacher = self.teacher(image)
        pooled = self.connector(features_student["pooled_feat"])
        loss = (pooled - features_teacher["pooled_feat"]).square().mean()
        return logits_student, {"loss_feat": loss}

    def get_learnable_parameters(self):
        return super().get_learnable_parameters() + list(self.connector.parameters())

    def get_extra_parameters(self):
        return sum(p.numel() for p in self.connector.parameters())


def test_a_method_in_the_published_style_works():
    distiller = make_distiller(Published).train()
    _, losses = distiller.training_step(batch())
    losses["loss_feat"].backward()
    assert distiller.connector.weight.grad is not None
    assert {key.split(".")[0] for key in distiller.trained_state()} == {"student", "connector"}

    (group,) = distiller.parameter_groups()
    assert len(group["params"]) == len({id(parameter) for parameter in group["params"]})
    assert len(group["params"]) == len(list(distiller.student.parameters())) + 2


class HoldsTheTeacherTwice(Distiller):
    """Keeps the teacher, and a part of it, under names of its own."""

    def __init__(self, student, teacher, cfg, data=None):
        super().__init__(student, teacher, cfg, data)
        self.guide = teacher
        self.head = teacher.fc
        self.project = nn.Linear(6, 12)

    def losses(self, student, teacher, batch):
        hint = self.head(self.project(student.features["pooled_feat"]))
        return {"loss_kd": F.mse_loss(hint, teacher.logits)}


def test_the_saved_state_is_without_the_teacher_under_whatever_name():
    """It was dropped by the name `teacher.` alone, so a second name was saved."""
    distiller = make_distiller(HoldsTheTeacherTwice)
    assert {key.split(".")[0] for key in distiller.trained_state()} == {"student", "project"}
    learnable = {id(p) for p in distiller.get_learnable_parameters()}
    assert not learnable & {id(p) for p in distiller.teacher.parameters()}
    assert distiller.get_extra_parameters() == 6 * 12 + 12


class WithFactor(Distiller):
    learning_rate_factors = {"project": 10.0}

    def __init__(self, student, teacher, cfg, data=None):
        super().__init__(student, teacher, cfg, data)
        size = self.feature_shapes(student).pooled_feat[1]
        self.project = nn.Linear(size, self.feature_shapes(teacher).pooled_feat[1])

    def losses(self, student, teacher, batch):
        hint = self.project(student.features["pooled_feat"])
        return {"loss_kd": F.mse_loss(hint, teacher.features["pooled_feat"])}


def test_a_child_can_have_a_factor_of_the_learning_rate():
    distiller = make_distiller(WithFactor)
    factors = {group["lr_factor"]: group["params"] for group in distiller.parameter_groups()}
    assert factors.keys() == {1.0, 10.0}
    assert {id(p) for p in factors[10.0]} == {id(p) for p in distiller.project.parameters()}


def test_feature_shapes_are_found_without_touching_the_network():
    distiller = make_distiller("KD")
    teacher = distiller.teacher
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    shapes = distiller.feature_shapes(teacher)
    assert shapes.feats == [(1, 12, 8, 8), (1, 12, 8, 8)]
    assert shapes.pooled_feat == (1, 12)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert not teacher.training


class TwoViews(Distiller):
    views = ("weak", "strong")

    def losses(self, student, teacher, batch):
        assert set(student) == set(teacher) == {"weak", "strong"}
        across = F.mse_loss(student["strong"].logits, teacher["weak"].logits)
        return {"loss_kd": across}


def test_a_method_may_read_several_views():
    from edkd.types import View

    distiller = make_distiller(TwoViews).train()
    weak, strong = batch(), batch(seed=2)
    views = {"weak": View(weak.image, None), "strong": View(strong.image, None)}
    logits, losses = distiller.training_step(Batch(weak.image, weak.target, views=views))
    with torch.no_grad():
        expected = [
            F.cross_entropy(distiller.student(v.image)[0], weak.target) for v in views.values()
        ]
    assert losses["loss_ce"].item() == pytest.approx(sum(expected).item(), rel=1e-4)
    assert logits.shape == (8, 4)


def test_methods_add_up():
    """KD+DKD: each network once, one task loss, the terms of both."""
    combined = make_distiller("KD+DKD", "COMBINED.WEIGHTS", "[0.5,2.0]").train()
    calls = []
    combined.student.register_forward_hook(lambda *_: calls.append(1))
    _, losses = combined.training_step(batch())
    assert calls == [1]
    assert list(losses) == ["loss_ce", "loss_kd_KD", "loss_kd_DKD"]

    alone = {name: make_distiller(name).train().training_step(batch())[1] for name in ("KD", "DKD")}
    assert losses["loss_ce"].item() == pytest.approx(alone["DKD"]["loss_ce"].item())
    assert losses["loss_kd_KD"].item() == pytest.approx(0.5 * alone["KD"]["loss_kd"].item())
    assert losses["loss_kd_DKD"].item() == pytest.approx(2 * alone["DKD"]["loss_kd"].item())
    assert {key.split(".")[0] for key in combined.trained_state()} == {"student"}


def test_parts_of_a_combination_keep_their_modules():
    METHODS.add("TEST_FACTOR", WithFactor)
    try:
        combined = make_distiller("KD+TEST_FACTOR").train()
        _, losses = combined.training_step(batch())
        sum(losses.values()).backward()
    finally:
        METHODS.remove("TEST_FACTOR")
    assert combined.parts[1].project.weight.grad is not None
    factors = {group["lr_factor"] for group in combined.parameter_groups()}
    assert factors == {1.0, 10.0}
    assert combined.get_extra_parameters() == 6 * 12 + 12


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("KD+DML", "DML trains several students and cannot be combined"),
        ("KD+KD", "names a method twice"),
        ("KD+TEST_PUBLISHED", "TEST_PUBLISHED runs the networks itself"),
        ("KD+DKDD", "unknown method 'DKDD', did you mean 'DKD'"),
    ],
)
def test_what_cannot_be_combined_is_named(name, message):
    METHODS.add("TEST_PUBLISHED", Published)
    try:
        with pytest.raises(UserError, match=message):
            find_method(name)
    finally:
        METHODS.remove("TEST_PUBLISHED")


def test_several_teachers_are_averaged_after_softening():
    """The target is the weighted mean of softmax(z / T), at the method's own temperature."""
    teachers = ["DISTILLER.TEACHER", "[TinyNet,TinyNet]", "DISTILLER.TEACHER_WEIGHTS", "[1.0,3.0]"]
    cfg = config("DISTILLER.TYPE", "KD", *teachers)
    torch.manual_seed(0)
    teachers = nn.ModuleList([TinyNet(), TinyNet(channels=12)])
    distiller = find_method("KD")(TinyNet(), teachers, cfg, info()).train()
    assert not any(p.requires_grad for p in teachers.parameters())
    assert not teachers[0].training

    about = batch()
    merged = distiller.run_teachers(about)
    with torch.no_grad():
        z = [teacher(about.image)[0] for teacher in teachers]
    expected = 0.25 * (z[0] / 4).softmax(1) + 0.75 * (z[1] / 4).softmax(1)
    torch.testing.assert_close((merged.logits / 4).softmax(1), expected)
    with pytest.raises(UserError, match="several teachers have no common features"):
        merged.features["pooled_feat"]


def test_the_mean_prediction_of_equal_networks_is_theirs():
    logits = torch.randn(5, 7)
    merged = mean_prediction([logits, logits], [1.0, 2.0], 3.0)
    torch.testing.assert_close((merged / 3).softmax(1), (logits / 3).softmax(1))


def test_features_of_an_output_are_computed_once():
    from edkd.types import LazyFeatures

    calls = []
    output = Output(torch.zeros(1), LazyFeatures(lambda: calls.append(1) or {"a": 1, "b": 2}))
    _, features = output
    assert calls == []
    assert (features["a"], features["b"], list(features), len(features)) == (1, 2, ["a", "b"], 2)
    assert calls == [1]


def test_the_published_style_may_use_any_attribute():
    """mdistiller's methods keep hyper-parameters as attributes, learned ones as parameters."""

    class Keeps(Distiller):
        def __init__(self, student, teacher, cfg):
            super().__init__(student, teacher)
            self.temperature = nn.Parameter(torch.tensor(4.0))
            self.ce_weight = cfg.KD.LOSS.CE_WEIGHT
            self.kd_loss_weight = cfg.KD.LOSS.KD_WEIGHT

        def forward_train(self, image, target, **kwargs):
            logits, _ = self.student(image)
            loss = self.ce_weight * F.cross_entropy(logits / self.temperature, target)
            return logits, {"loss_ce": loss}

    distiller = make_distiller(Keeps).train()
    _, losses = distiller.training_step(batch())
    losses["loss_ce"].backward()
    assert distiller.temperature.grad is not None
    assert distiller.get_extra_parameters() == 1


@pytest.mark.parametrize("name", ["DKD", "EDKD", "KDCL"])
def test_soft_targets_are_refused_where_a_single_class_is_needed(name):
    """They were compared with class numbers, without an error."""
    hard = batch()
    soft = Batch(hard.image, F.one_hot(hard.target, 4).float(), hard.index)
    with pytest.raises(UserError, match="needs class numbers"):
        make_distiller(name).train().training_step(soft)
    make_distiller("KD").train().training_step(soft)


@pytest.mark.parametrize("returned", [torch.zeros(1), None, 1.0])
def test_losses_that_are_no_dictionary_are_named(returned):
    distiller = make_distiller("KD").train()
    distiller.losses = lambda *args: returned
    with pytest.raises(UserError, match="KD returned .* but must return a dictionary"):
        distiller.training_step(batch())


def test_groups_in_torchs_own_form():
    """Generators, one parameter alone, own rates."""

    class Groups(Published):
        def get_learnable_parameters(self):
            return [
                {"params": self.student.parameters()},
                {"params": self.connector.weight, "lr": 0.1},
                {"params": [self.connector.bias]},
            ]

    distiller = make_distiller(Groups)
    sizes = [len(group["params"]) for group in distiller.parameter_groups()]
    assert sizes == [len(list(distiller.student.parameters())), 1, 1]


def test_a_constructor_that_passes_only_the_networks_on_gets_the_rest():
    class OnlyNetworks(Distiller):
        defaults = dict(T=2.0)

        def __init__(self, student, teacher, cfg, **kwargs):
            super().__init__(student, teacher)

        def losses(self, student, teacher, batch):
            return {"loss_kd": self.hp.T * student.logits.square().mean()}

    METHODS.add("TEST_ONLY", OnlyNetworks)
    try:
        distiller = make_distiller("TEST_ONLY").train()
        distiller.training_step(batch())
        assert distiller.data.num_classes == 4
    finally:
        METHODS.remove("TEST_ONLY")


def test_a_method_with_own_groups_cannot_be_combined():
    class OwnGroups(Distiller):
        def losses(self, student, teacher, batch):
            raise AssertionError

        def get_learnable_parameters(self):
            return []

    METHODS.add("TEST_OWN", OwnGroups)
    try:
        with pytest.raises(UserError, match="overrides get_learnable_parameters and cannot be"):
            find_method("KD+TEST_OWN")
    finally:
        METHODS.remove("TEST_OWN")


def test_a_combination_uses_a_class_that_was_defined_again():
    first = type("Again", (WithFactor,), {"__module__": __name__, "__qualname__": "Again"})
    second = type("Again", (WithFactor,), {"__module__": __name__, "__qualname__": "Again"})
    METHODS.add("TEST_AGAIN", first)
    try:
        assert find_method("KD+TEST_AGAIN").methods["TEST_AGAIN"] is first
        METHODS.add("TEST_AGAIN", second)
        assert find_method("KD+TEST_AGAIN").methods["TEST_AGAIN"] is second
    finally:
        METHODS.remove("TEST_AGAIN")
