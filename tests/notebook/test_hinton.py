"""HintonDistiller, BaseDistiller and KDLoss: loops that the user writes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from edkd.errors import StorageError, UserError
from edkd.models import get_model
from edkd.notebook import (
    MLP,
    BaseDistiller,
    HintonDistiller,
    KDLoss,
    PseudoDataset,
    evaluate_dml_models,
)
from edkd.notebook.figures import predictions_of

CE = nn.CrossEntropyLoss()
KL = nn.KLDivLoss(reduction="batchmean")


def weights(model):
    return [value.clone() for value in model.state_dict().values()]


def has_hooks(*models):
    return any(module._forward_hooks for model in models for module in model.modules())


def train(distiller, student, teacher, loader, objective=CE):
    return distiller.train_step(
        student=student,
        teacher=teacher,
        dataloader=loader,
        objective=objective,
        distillObjective=KL,
        optimizer=torch.optim.SGD(student.parameters(), 0.1),
    )


def test_the_published_example(tmp_path):
    torch.manual_seed(0)
    student, teacher = MLP(100, 10, 256), MLP(100, 10, 256)
    distiller = HintonDistiller(alpha=0.5, studentLayer=-2, teacherLayer=-2, logdir=tmp_path)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    loader = DataLoader(PseudoDataset(size=(100)), batch_size=512, shuffle=True)
    before = weights(teacher)

    distiller.init_tensorboard_logger()
    losses = []
    for epoch in range(distiller.load_state(None, student, teacher, optimizer), 6):
        metrics = distiller.train_step(
            student=student,
            teacher=teacher,
            dataloader=loader,
            optimizer=optimizer,
            objective=CE,
            distillObjective=KL,
        )
        metrics |= distiller.validate(student=student, dataloader=loader, objective=CE)
        distiller.log(epoch, metrics)
        path = distiller.save(epoch, student, teacher, optimizer)
        distiller.print_epoch(epoch, 5, metrics)
        losses.append(metrics["Train/Loss"])

    assert losses[-1] < losses[0]
    names = {
        f"{part}/{figure}" for part in ("Train", "Validation") for figure in ("Loss", "Accuracy")
    }
    assert set(metrics) == names | {"Train/Distillation", "Train/Objective"}
    assert student.training
    assert teacher.training
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, weights(teacher), strict=True))
    assert not has_hooks(student, teacher)
    assert list(tmp_path.glob("events.*"))

    again = MLP(100, 10, 256)
    assert distiller.load_state(path, again, None, None) == 6
    assert all(torch.equal(a, b) for a, b in zip(weights(student), weights(again), strict=True))
    with pytest.raises(UserError, match="has no student that fits"):
        distiller.load_state(path, MLP(100, 11, 256))


def test_the_loss_by_the_formula(tmp_path):
    torch.manual_seed(0)
    student, teacher = MLP(8, 3, 5), MLP(8, 3, 5)
    inputs, target = torch.randn(6, 8), torch.randint(3, (6,))
    middle = [nn.Sequential(*list(model.children())[:4])(inputs) for model in (student, teacher)]
    matched = KL(middle[0].log_softmax(1), middle[1].softmax(1)).item()
    labelled = F.cross_entropy(student(inputs), target).item()

    metrics = train(HintonDistiller(0.3, -2, 3, tmp_path), student, teacher, [(inputs, target)])
    assert metrics["Train/Loss"] == pytest.approx(0.7 * matched + 0.3 * labelled, rel=1e-5)
    assert metrics["Train/Distillation"] == pytest.approx(matched, rel=1e-5)
    assert metrics["Train/Objective"] == pytest.approx(labelled, rel=1e-5)


@pytest.mark.parametrize(
    ("layers", "message"), [((9, -2), "studentLayer is 9, but MLP has 5"), ((-2, -1), "that agree")]
)
def test_layers_that_cannot_be_matched(tmp_path, layers, message):
    student, teacher = MLP(8, 3, 5), MLP(8, 3, 5)
    loader = [(torch.randn(2, 8), torch.tensor([0, 1]))]
    with pytest.raises(UserError, match=message):
        train(HintonDistiller(0.5, *layers, tmp_path), student, teacher, loader)
    assert not has_hooks(student)


def test_stages_that_return_a_pair(tmp_path, images):
    """As those of this project's ResNets, with the default layers."""
    student, teacher = get_model("cifar", "resnet8", 4), get_model("cifar", "resnet14", 4)
    distiller = HintonDistiller(logdir=tmp_path)
    metrics = train(distiller, student, teacher, images[0], objective=nn.NLLLoss())
    assert metrics["Train/Distillation"] > 0


def test_an_error_leaves_modes_and_hooks_as_they_were(tmp_path):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)
            self.unused = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x)

    student, teacher = Unused(), MLP(8, 3, 5)
    distiller = HintonDistiller(0.5, -1, -2, tmp_path)
    loader = [(torch.randn(2, 8), torch.tensor([0, 1]))]
    with pytest.raises(UserError, match="a layer that its network does not call"):
        train(distiller, student, teacher, loader)

    wider = [(torch.randn(2, 9), torch.tensor([0, 1]))]
    with pytest.raises(RuntimeError):
        distiller.validate(student=student, dataloader=wider, objective=CE)
    with pytest.raises(UserError, match="training: batch 1 is a dictionary"):
        train(distiller, student, teacher, [{"image": 1, "target": 2}])
    assert teacher.training
    assert student.training
    assert not has_hooks(student, teacher)


def test_each_module_keeps_its_mode(tmp_path):
    """As a frozen batch norm within a network in training mode, also after an error."""

    def frozen():
        model = nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
        model[1].eval()
        return model

    model, teacher = frozen(), frozen()
    good = (torch.randn(4, 8), torch.arange(4) % 3)
    distiller = HintonDistiller(logdir=tmp_path)
    train(distiller, MLP(8, 3, 5), teacher, [good], objective=nn.NLLLoss())
    distiller.validate(model, [good], nn.NLLLoss())
    evaluate_dml_models([model, teacher], [good], "cpu")
    predictions_of(model, [good])
    with pytest.raises(UserError, match="prediction: batch 2"):
        predictions_of(model, [good, 1])
    for network in (model, teacher):
        assert [layer.training for layer in network] == [True, False, True]
        assert network.training


def test_checkpoints_that_cannot_be_used(tmp_path):
    student = MLP(6, 3, 8)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot create the folder"):
        BaseDistiller(tmp_path / "file").save(1, student, student, None)
    torch.save({"student": student.state_dict()}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="has no epoch"):
        BaseDistiller(tmp_path).load_state(tmp_path / "other.pt", student)


@pytest.mark.parametrize("role", ["student", "teacher", "optimizer"])
def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path, role):
    """Neither the parts before the one that does not fit, nor the first layers of that one."""
    saved = MLP(6, 3, 8)
    optimizer = torch.optim.SGD(saved.parameters(), 0.1, momentum=0.9)
    path = BaseDistiller(tmp_path).save(1, saved, saved, optimizer)

    student, teacher = (MLP(6, 3 + (role == name), 8) for name in ("student", "teacher"))
    groups = [student.parameters()]
    if role == "optimizer":
        groups = [[parameter] for parameter in student.parameters()]
    optimizer = torch.optim.SGD([{"params": group} for group in groups], 0.5)
    before = weights(student) + weights(teacher)

    with pytest.raises(UserError, match=f"has no {role} that fits"):
        BaseDistiller(tmp_path).load_state(path, student, teacher, optimizer)
    after = weights(student) + weights(teacher)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_the_base_is_easily_extended(tmp_path):
    class LogitDistiller(BaseDistiller):
        """Matches logits."""

        def train_step(self, student, teacher, dataloader, optimizer):
            for x, _ in dataloader:
                with torch.no_grad():
                    logits_teacher = teacher(x)
                loss = F.mse_loss(student(x), logits_teacher)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            return {"Train/Loss": loss.item()}

    torch.manual_seed(0)
    student, teacher = MLP(6, 3, 8), MLP(6, 3, 8)
    loader = DataLoader(PseudoDataset(6, 64, 3), 16)
    distiller = LogitDistiller(tmp_path)
    optimizer = torch.optim.Adam(student.parameters(), 0.01)
    steps = [distiller.train_step(student, teacher, loader, optimizer) for _ in range(5)]
    assert steps[-1]["Train/Loss"] < steps[0]["Train/Loss"]

    path = distiller.save(5, student, teacher, optimizer)
    assert distiller.load_state(path, student, teacher, optimizer) == 6
    with pytest.raises(NotImplementedError, match="BaseDistiller must define train_step"):
        BaseDistiller(tmp_path).train_step()


def test_kd_loss_by_the_formula():
    torch.manual_seed(0)
    student = torch.randn(5, 4).double().requires_grad_()
    teacher = torch.randn(5, 4).double().requires_grad_()
    target = torch.randint(4, (5,))
    loss = KDLoss(T=3.0, alpha=0.4)(student, target, teacher)

    loss_kd = 9 * KL((student / 3).log_softmax(1), (teacher / 3).softmax(1))
    torch.testing.assert_close(loss, 0.4 * loss_kd + 0.6 * F.cross_entropy(student, target))
    loss.backward()
    assert teacher.grad is None


@pytest.mark.parametrize("settings", [{"T": 0.0}, {"T": -1}, {"T": math.nan}, {"alpha": 3}])
def test_settings_out_of_their_range(settings):
    ((name, value),) = settings.items()
    with pytest.raises(UserError, match=f"KDLoss: {name} is {value}, but must be"):
        KDLoss(**settings)
    if name == "alpha":
        with pytest.raises(UserError, match="HintonDistiller: alpha is 3, but must be from 0 to 1"):
            HintonDistiller(alpha=value)
