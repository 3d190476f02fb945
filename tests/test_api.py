"""edkd.distill: networks and data of the caller, the whole engine behind it."""

import copy
import importlib
import json
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edkd
from edkd import distillers
from edkd.distillers import Distiller
from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.given_optimizers import align_states
from edkd.errors import NonFiniteError, UserError
from tests.small import TinyNet, tiny_images


class Plain(nn.Module):
    """A user's network: logits alone, no features."""

    def __init__(self, channels=6):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.head = nn.Linear(channels, 4)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def loaders(batch_size=8):
    """Training and validation batches of a user's own data."""
    sets = []
    for number, seed in ((40, 0), (24, 1)):
        images = tiny_images(number, seed)
        sets.append(TensorDataset(images.image.float() / 128 - 1, images.target))
    return DataLoader(sets[0], batch_size, shuffle=True), DataLoader(sets[1], 12)


@pytest.fixture
def distil(tmp_path):
    """edkd.distill in a temporary folder, on the CPU, in float32."""

    def call(student, teacher, *args, **settings):
        given = {"output": tmp_path, "device": "cpu", "amp": "off", "epochs": 2} | settings
        data = args or loaders()
        return edkd.distill(student, teacher, *data, **given)

    return call


def test_any_module_and_any_loader(distil):
    torch.manual_seed(0)
    student, teacher = Plain(), Plain(12)
    before = copy.deepcopy(teacher)
    teacher.train()
    start = copy.deepcopy(student.state_dict())

    result = distil(student, teacher, method="DKD", lr=0.1, beta=2.0, warmup=0)
    folder = Path(result["folder"])
    assert result["method"] == "DKD"
    assert result["epochs"] == 2
    assert result["settings"]["DKD.BETA"] == 2.0
    assert result["settings"]["SOLVER.LR"] == 0.1
    assert any(not torch.equal(v, start[k]) for k, v in student.state_dict().items())

    # The teacher is as it was, mode and gradients included.
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(v, before.state_dict()[k]) for k, v in teacher.state_dict().items())

    # The files of a run, with the user's own keys in the student's.
    names = ["config.yaml", "metrics.jsonl", "result.json", "environment.json", "latest", "best"]
    assert all((folder / name).is_file() for name in names)
    saved = load_checkpoint(folder / "student_latest")
    assert saved["model"].keys() == student.state_dict().keys()
    assert (saved["architecture"], saved["num_classes"]) == ("Plain", 4)
    fresh = Plain()
    fresh.load_state_dict(saved["model"])
    image = next(iter(loaders()[1]))[0]
    torch.testing.assert_close(fresh.eval()(image), student.eval()(image))


@pytest.mark.parametrize("method", ["NONE", "KD", "EDKD", "KD+DKD"])
def test_methods(distil, method):
    teacher = None if method == "NONE" else TinyNet(12)
    result = distil(TinyNet(), teacher, method=method)
    assert result["method"] == method


def test_students_that_learn_from_one_another(distil):
    result = distil([Plain(), TinyNet()], None, method="DML")
    assert result["best_student"].endswith(("(Plain)", "(TinyNet)"))
    assert "last_test_ensemble_top1" in result


def test_several_teachers(distil):
    result = distil(Plain(), [Plain(12), TinyNet(9)], method="KD")
    assert result["teacher"] == ["Plain", "TinyNet"]


def test_a_resumed_run_equals_one_that_was_not_stopped(distil):
    """Stopped after the first of three epochs; the data order comes from the seed alone."""

    class Enough(Exception):
        pass

    def stop(record):
        if record["epoch"] == 1:
            raise Enough

    def networks():
        torch.manual_seed(0)
        return Plain(), Plain(12)

    whole, teacher = networks()
    distil(whole, teacher, method="KD", epochs=3, name="whole")

    part, teacher = networks()
    with pytest.raises(Enough):
        distil(part, teacher, method="KD", epochs=3, name="part", on_epoch=stop)
    again, teacher = networks()
    distil(again, teacher, method="KD", epochs=3, name="part", resume=True)
    resumed = again.state_dict()
    assert all(torch.equal(v, resumed[k]) for k, v in whole.state_dict().items())


def test_indices_belong_to_the_images(distil):
    """Although the loader shuffles: each image comes back with its own number."""
    images = tiny_images(40).image.float() / 128 - 1
    seen = []

    class Watches(Distiller):
        needs_index = True

        def losses(self, student, teacher, batch):
            seen.append((batch.index.clone(), batch.image.clone()))
            return {"loss_kd": (student.logits - teacher.logits).square().mean()}

    distil(TinyNet(), TinyNet(), method=Watches, epochs=1)
    assert sorted(torch.cat([index for index, _ in seen]).tolist()) == list(range(40))
    for index, image in seen:
        torch.testing.assert_close(image.contiguous(), images[index])


def test_an_optimizer_of_ones_own(distil):
    student = Plain()
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.01)
    distil(student, Plain(12), method="KD", optimizer=optimizer)
    assert optimizer.state[student.head.weight]["step"] == 10  # two epochs of five batches


def test_a_value_that_is_not_finite_ends_the_run(distil, tmp_path):
    student = Plain()
    with torch.no_grad():
        student.head.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="not finite in epoch 1, step 1"):
        distil(student, Plain(12), method="KD", name="bad")
    about = json.loads((tmp_path / "distill" / "bad" / "nonfinite.json").read_text())
    assert len(about["index"]) == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.1}, "distill: unknown setting learning_rate"),
        ({"betta": 2}, "unknown setting betta, did you mean 'beta'"),
        ({"method": "DKDD"}, "unknown method 'DKDD', did you mean 'DKD'"),
        ({"lr": -1.0}, "SOLVER.LR is -1.0, but must be at least 0"),
        ({"epochs": 0}, "SOLVER.EPOCHS is 0, but must be at least 1"),
        ({"method": "NONE"}, "distill: NONE does not use a teacher; give None"),
        ({"method": None}, "method is None, but must be a name, as 'DKD', or a class"),
        ({"method": Plain}, "method is .*Plain.*, but must be .* derived from Distiller"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_written(distil, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        distil(Plain(), Plain(), **settings)
    assert list(tmp_path.iterdir()) == []


def test_wrong_networks_are_named(distil):
    student = Plain()
    with pytest.raises(UserError, match="give a student"):
        distil([], Plain(), method="KD")
    with pytest.raises(UserError, match="KD needs a teacher"):
        distil(student, None, method="KD")
    with pytest.raises(UserError, match="KD trains one student, not 2"):
        distil([student, Plain()], Plain(), method="KD")
    with pytest.raises(UserError, match="DML takes 2 students or more, not 1"):
        distil(student, None, method="DML")
    with pytest.raises(UserError, match="one network is given twice"):
        distil(student, student, method="KD")


@pytest.mark.parametrize(
    ("method", "settings", "key", "value"),
    [
        ("KD", {"T": 8.0}, "KD.TEMPERATURE", 8.0),
        ("KD", {"ce_weight": 0.5}, "KD.LOSS.CE_WEIGHT", 0.5),
        ("KD+DKD", {"ce_weight": 0.5}, "COMBINED.CE_WEIGHT", 0.5),
        ("KD+DKD", {"beta": 2.0}, "DKD.BETA", 2.0),
    ],
)
def test_a_setting_reaches_the_method_that_runs(distil, method, settings, key, value):
    """Names of other methods that begin alike (KDCL) are not meant."""
    result = distil(Plain(), Plain(12), method=method, epochs=1, **settings)
    assert result["settings"][key] == value


def test_a_registered_class_keeps_its_name(distil):
    from edkd.distillers import register
    from edkd.registry import METHODS

    temperatures = []
    try:

        @register("TEST_NAMED")
        class Named(Distiller):
            defaults = dict(T=1.0)

            def losses(self, student, teacher, batch):
                temperatures.append(self.hp.T)
                return {"loss_kd": (student.logits - teacher.logits).square().mean()}

        distil(Plain(), Plain(12), method=Named, epochs=1, T=7.0)
    finally:
        METHODS.remove("TEST_NAMED")
    assert set(temperatures) == {7.0}


@pytest.mark.parametrize("kind", ["sequential", "named student", "bool buffer"])
def test_the_best_weights_of_any_module_are_evaluated(distil, kind):
    """With a test loader they are read back from `student_best`."""
    student = Plain()
    if kind == "sequential":
        layers = [nn.Flatten(), nn.Linear(3 * 64, 8), nn.ReLU(), nn.Linear(8, 4)]
        student = nn.Sequential(*layers)
    if kind == "named student":
        student.student = nn.Linear(4, 4)
        inner = student.forward
        student.forward = lambda x: student.student(inner(x))
    if kind == "bool buffer":
        student.register_buffer("mask", torch.ones(3, dtype=torch.bool))

    student.train()
    result = distil(student, Plain(12), method="KD", test_loader=loaders()[1])
    assert "best_test_top1" in result
    assert student.training


def test_networks_without_a_logit_for_each_class_are_named(distil, tmp_path):
    wide = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5))
    with pytest.raises(UserError, match="the teacher .* returns 5 logits, but .* 4 classes"):
        distil(Plain(), wide, method="KD")
    with pytest.raises(UserError, match="the student .* returns 5 logits, but .* 4 classes"):
        distil(wide, Plain(), method="KD")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, "SGD", lambda: None])
def test_optimizers_that_cannot_be_used_are_named(distil, optimizer):
    with pytest.raises(UserError, match="must be a torch optimizer object"):
        distil(Plain(), Plain(12), method="KD", optimizer=optimizer)


def test_the_rates_of_given_optimizers_are_given_back(distil):
    student, teacher = Plain(), Plain(12)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    distil(student, teacher, method="KD", optimizer=optimizer, epochs=4)
    assert optimizer.param_groups[0]["lr"] == 0.1
    with pytest.raises(UserError, match="SOLVER.TRAINER dot makes its own optimizer"):
        distil(student, teacher, method="KD", optimizer=optimizer, trainer="dot", name="dot")


def test_the_memory_layout_is_given_back(distil):
    """As `view` needs it; a layer in two places and a network in channels_last are no exception."""
    student, teacher = Plain(), Plain(12)
    student.again = student.body[0]
    teacher.register_buffer("mean", torch.zeros(1, 3, 2, 2))
    other = Plain(12).to(memory_format=torch.channels_last)
    strides = [p.stride() for p in other.parameters()]

    distil(student, [teacher, other], method="KD", epochs=1)
    for network in (student, teacher):
        nn.utils.parameters_to_vector(network.parameters())
        assert all(value.is_contiguous() for value in network.state_dict().values())
    assert student.again.weight is student.body[0].weight
    assert [p.stride() for p in other.parameters()] == strides


def test_the_states_of_a_given_optimizer_have_the_device_of_the_weights():
    weight = torch.zeros(2, 3, device="meta")
    states = {"momentum_buffer": torch.ones(2, 3), "step": torch.ones(())}
    align_states([types.SimpleNamespace(state={weight: states})])
    assert states["momentum_buffer"].device == weight.device
    assert states["step"].device.type == "cpu"


def test_the_states_of_a_given_optimizer_have_the_layout_of_the_weights(distil):
    """A fused update would mix their values, in a second run and in a loop of the caller."""
    students = []
    for fused in (True, False):
        torch.manual_seed(0)
        student, teacher = Plain(), Plain(12)
        optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9, fused=fused)
        for number in (1, 2):
            run = {"name": f"{fused}{number}", "method": "KD", "epochs": 1}
            distil(student, teacher, optimizer=optimizer, **run)
            student(tiny_images(8).image.float() / 128).square().mean().backward()
            optimizer.step()
        students.append(student)

    fused, plain = (student.state_dict() for student in students)
    for key, value in fused.items():
        torch.testing.assert_close(value, plain[key])


def test_a_run_can_be_extended(distil):
    student, teacher = Plain(), Plain(12)
    distil(student, teacher, method="KD", epochs=2, name="longer")
    result = distil(student, teacher, method="KD", epochs=4, name="longer", resume=True)
    assert result["epochs"] == 4
    with pytest.raises(UserError, match="SOLVER.LR_DECAY_STAGES was"):
        distil(
            student, teacher, method="KD", epochs=5, name="longer", resume=True, lr_decay_stages=[4]
        )


def test_a_used_folder_is_kept(distil):
    distil(Plain(), Plain(12), method="KD", epochs=1)
    with pytest.raises(UserError, match="already holds a run"):
        distil(Plain(), Plain(12), method="KD", epochs=1)


def test_the_public_names_are_there():
    for name in edkd.__all__:
        assert callable(getattr(edkd, name)), name
    assert set(edkd.__all__) <= set(dir(edkd))
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        edkd.distil  # noqa: B018


def test_the_loss_of_each_method_is_public():
    folder = Path(distillers.__file__).parent
    modules = [
        importlib.import_module(f"edkd.distillers.{file.stem}") for file in folder.glob("[a-z]*.py")
    ]

    losses = {f"{module.__name__.split('.')[-1]}_loss": module for module in modules}
    own = {name: getattr(module, name) for name, module in losses.items() if hasattr(module, name)}
    assert len(own) > 30
    for name, loss in own.items():
        assert name in edkd.__all__
        assert name in distillers.__all__
        assert getattr(edkd, name) is getattr(distillers, name) is loss
