"""Reports on calls in notebooks: small batches, precision, schedulers, repeated cells."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edkd
from edkd.errors import UserError
from edkd.notebook import DML, MLP, HintonDistiller, train_dml
from tests.runs import records

IMAGE = torch.randn(17, 20, generator=torch.Generator().manual_seed(0))
TARGET = IMAGE[:, :3].argmax(1)
PAIRS = TensorDataset(IMAGE, TARGET)


def net():
    return nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def sgd(network, lr=0.1):
    return torch.optim.SGD(network.parameters(), lr)


@pytest.fixture
def distil(tmp_path):
    """distil(student, teacher, **settings): KD for two epochs, 17 images in batches of 16."""

    def call(student, teacher, **settings):
        train = DataLoader(PAIRS, 16)
        val = DataLoader(TensorDataset(IMAGE[:9] + 1, TARGET[:9]), 9)
        defaults = dict(method="KD", epochs=2, device="cpu", output=tmp_path)
        return edkd.distill(student, teacher, train, val, **defaults | settings)

    return call


def by_distill(distil):
    distil(net(), net())


def by_cohort(distil):
    students = [net(), net()]
    loader = DataLoader(PAIRS, 16)
    distiller = DML(students, loader, loader, [sgd(student) for student in students])
    distiller.train_students(1, plot_losses=False, save_model=False)


def by_hinton(distil):
    student = net()
    functions = nn.NLLLoss(), nn.KLDivLoss(reduction="batchmean")
    HintonDistiller().train_step(student, net(), DataLoader(PAIRS, 16), *functions, sgd(student))


@pytest.mark.parametrize("way", [by_distill, by_cohort, by_hinton])
def test_a_last_batch_of_one_image_is_named(way, distil):
    """A frequent report on training loops: "Expected more than 1 value per channel" from torch.

    The message names the batch and the remedy, drop_last.
    """
    with pytest.raises(UserError, match="a batch has one image, .* set drop_last=True"):
        way(distil)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_networks_of_another_precision_are_named(role, dtype, distil, tmp_path):
    """A kind of report: a teacher that was loaded with .half() ends within a layer of torch.

    A student with bfloat16 weights trained, but small updates were rounded away.
    """
    networks = {"student": MLP(20, 3, 8), "teacher": MLP(20, 3, 8)}
    networks[role].to(dtype)
    with pytest.raises(UserError, match=rf"{role} MLP has .* not float32; .* \.float\(\)"):
        distil(**networks)
    assert list(tmp_path.iterdir()) == []


def test_the_record_has_the_rate_of_a_given_optimizer(distil):
    """A kind of report: the log shows the default learning rate, not that of the optimizer."""
    student = MLP(20, 3, 8)
    groups = [{"params": [weight]} for weight in student.parameters()]
    groups[1]["lr"] = 0.5
    optimizer = torch.optim.SGD(groups, lr=0.01)
    result = distil(student, MLP(20, 3, 8), optimizer=optimizer, lr_decay_stages=[1])

    rates = [record["lr"] for record in records(Path(result["folder"]))]
    assert rates == pytest.approx([0.01, 0.001])
    assert [group["lr"] for group in optimizer.param_groups[:2]] == [0.01, 0.5]


@pytest.mark.parametrize("has_scheduler", [True, False])
def test_a_scheduler_of_ones_own_is_named(has_scheduler, distil, capsys):
    """A kind of report: a scheduler that the caller steps changes nothing, without a word."""
    student = MLP(20, 3, 8)
    optimizer = sgd(student)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    step = (lambda record: scheduler.step()) if has_scheduler else None
    distil(student, MLP(20, 3, 8), optimizer=optimizer, on_epoch=step, epochs=3)

    warnings = capsys.readouterr().err.count("learning rate of an optimizer was changed")
    assert warnings == has_scheduler


def test_messages_name_arguments_not_options(distil):
    """A cell that runs twice, or resumes too early: the message must name what Python takes."""
    networks = MLP(20, 3, 8), MLP(20, 3, 8)
    with pytest.raises(UserError, match="^resume=True: no run at .*; leave resume=True out"):
        distil(*networks, name="first", resume=True)

    distil(*networks, name="first", epochs=1)
    with pytest.raises(UserError, match="continue it with resume=True, or .* another name$"):
        distil(*networks, name="first", epochs=1)


@pytest.mark.parametrize("epochs", ["2", 1.5, None])
def test_epochs_of_another_type_are_named(epochs, distil):
    """A kind of report: a number that came from a form or a file as text ends in a traceback."""
    with pytest.raises(UserError, match=r"epochs is .*, but must be an integer"):
        distil(MLP(20, 3, 8), MLP(20, 3, 8), epochs=epochs)


def test_an_experiment_name_fits_every_file_system(tmp_path):
    """A kind of report: files with a colon in their name cannot be copied to Windows."""
    config = {
        "save_dir": tmp_path / "models",
        "log_dir": tmp_path / "logs",
        "experiment_name": "lr:0.1?",
        "model": "ResNet20",
        "num_classes": 3,
        "epochs": 1,
        "device": "cpu",
    }
    images = TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 3)
    result = train_dml(config, DataLoader(images, 4), DataLoader(images, 8))
    assert result["experiment_name"] == "lr_0.1_"
    assert not [path for path in tmp_path.rglob("*") if set(path.name) & set(":?")]
    with pytest.raises(UserError, match="give another experiment_name|exists already"):
        train_dml(config, DataLoader(images, 4), DataLoader(images, 8))
