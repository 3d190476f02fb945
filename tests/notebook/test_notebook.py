"""The loops that a person drives: the published examples, without the faults of what they come from."""

import json
import math
from collections import Counter
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nbclient import NotebookClient
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from edkd.distillers import dml_loss
from edkd.errors import NonFiniteError, StorageError, UserError
from edkd.models import get_model
from edkd.notebook import (
    DEFAULT_CONFIG,
    DML,
    MLP,
    BaseDistiller,
    HintonDistiller,
    KDLoss,
    PseudoDataset,
    compute_dml_loss,
    create_dml_config,
    evaluate_dml_models,
    evaluate_ensemble,
    load_dml_models,
    prepare_dataloaders,
    train_dml,
    train_epoch_dml,
    validate_dml,
)

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data():
    """Eighty inputs of 20 numbers whose class their largest of the first three tells; to train on, and to test on."""
    inputs = torch.randn(80, 20, generator=torch.Generator().manual_seed(0))
    pairs = TensorDataset(inputs, inputs[:, :3].argmax(1))
    return DataLoader(pairs, 16, shuffle=True), DataLoader(pairs, 40)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(24, 3, 32, 32, generator=generator), torch.randint(4, (24,), generator=generator)
    return DataLoader(TensorDataset(inputs, targets), 8, shuffle=True), DataLoader(TensorDataset(inputs, targets), 12)


def cohort(number=2):
    torch.manual_seed(0)
    students = [MLP(20, 3, 16) for _ in range(number)]
    return students, [torch.optim.SGD(student.parameters(), 0.05, momentum=0.9) for student in students]


def weights(models):
    return [value for model in models for value in model.state_dict().values()]


# --- DML(student_cohort, ...) -----------------------------------------------------------------------------------------


def test_a_cohort_learns_and_its_best_student_is_saved(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    students, optimizers = cohort(3)
    distiller = DML(students, *data, optimizers, log=True, logdir="logs")
    distiller.train_students(epochs=6, plot_losses=False, save_model_path="models/student.pt")
    history = distiller.train_students(epochs=6, plot_losses=True, save_model=True, save_model_path="models/student.pt")
    assert [len(record) for record in history] == 12 * [3]
    assert min(distiller.evaluate()) > 80
    assert distiller.get_parameters() == 3 * [sum(p.numel() for p in students[0].parameters())]
    assert all(student.training for student in students)
    best = MLP(20, 3, 16)
    best.load_state_dict(torch.load("models/student.pt", weights_only=True)["model"])
    inputs, targets = data[1].dataset.tensors
    accuracy = 100 * (best.eval()(inputs).argmax(1) == targets).float().mean().item()
    assert accuracy == pytest.approx(max(row["test_top1"] for record in history for row in record), abs=0.01)
    assert Path("logs/losses.png").stat().st_size > 1000
    assert list(Path("logs").glob("events.*"))


def test_a_batch_costs_a_forward_pass_a_student_and_all_learn_from_the_same(data):
    """Against the engine's loss of all students together."""
    students, optimizers = cohort(3)
    twins, twin_optimizers = cohort(3)
    calls = Counter()
    for i, student in enumerate(students):
        student.register_forward_hook(lambda *args, i=i: calls.update([i]) if args[0].training else None)
    loader = DataLoader(data[1].dataset, 16)
    DML(students, loader, loader, optimizers).train_students(1, plot_losses=False, save_model=False)
    assert calls == {0: 5, 1: 5, 2: 5}
    for inputs, targets in loader:
        dml_loss([twin(inputs) for twin in twins], targets).backward()
        for optimizer in twin_optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for ours, theirs in zip(weights(students), weights(twins), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_another_divergence_and_networks_that_return_features(data):
    class WithFeatures(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = MLP(20, 3, 8)

        def forward(self, x):
            return self.net(x), {"feats": [x]}

    students = [WithFeatures(), MLP(20, 3, 8)]
    optimizers = [torch.optim.Adam(student.parameters()) for student in students]
    seen = []

    def mse(logits_student, logits_peer):
        seen.append(logits_peer.requires_grad)
        return F.mse_loss(logits_student, logits_peer)

    (record,) = DML(students, *data, optimizers, loss_fn=mse).train_students(1, plot_losses=False, save_model=False)
    assert not any(seen)
    assert all(row["loss_kd"] > 0 for row in record)


def test_the_best_student_is_the_one_of_the_best_epoch(data, tmp_path):
    """Later epochs that are worse do not change what is saved, nor do runs that go on without saving."""
    students, optimizers = cohort(2)
    distiller = DML(students, *data, optimizers)
    distiller.train_students(8, plot_losses=False, save_model=False)
    best = {key: value.clone() for key, value in distiller.best_state.items()}
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = 0.0
    distiller.train_students(1, plot_losses=False, save_model_path=tmp_path / "best.pt")
    saved = torch.load(tmp_path / "best.pt", weights_only=True)["model"]
    assert all(torch.equal(value, saved[key]) for key, value in best.items())


def test_an_empty_loader_is_named(data):
    students, optimizers = cohort(2)
    with pytest.raises(UserError, match="the loader yields nothing"):
        DML(students, [], data[1], optimizers).train_students(1, plot_losses=False, save_model=False)


def test_cohorts_that_cannot_be(data):
    students, optimizers = cohort(2)
    with pytest.raises(UserError, match="holds 1, but it takes two"):
        DML(students[:1], *data, optimizers[:1])
    with pytest.raises(UserError, match="2 students need as many optimizers, not 1"):
        DML(students, *data, optimizers[:1])
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = 1e30
    with pytest.raises(NonFiniteError, match="loss.* is not finite"):
        DML(students, *data, optimizers).train_students(3, plot_losses=False, save_model=False)


# --- train_dml(config) ------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    places = dict(save_dir=str(tmp_path / "checkpoints"), log_dir=str(tmp_path / "logs"), device="cpu")
    settings = dict(model="ResNet20", epochs=3, lr=0.05, step_size=2, save_freq=1, num_classes=4, experiment_name="x")
    return create_dml_config(**places, **settings)


def test_train_dml_leaves_what_is_documented(config, images, tmp_path):
    result = train_dml(config, *images, images[1])
    assert set(result) == {
        *("models", "best_accuracies", "avg_best_accuracy", "training_history", "test_results", "config"),
        "experiment_name",
    }
    assert [record["lr"] for record in result["training_history"]] == pytest.approx([0.05, 0.05, 0.005])
    for epoch, record in enumerate(result["training_history"], 1):
        assert record["epoch"] == epoch
        assert [set(row) for row in record["models"]] == 2 * [
            {"model_idx", "train_loss", "train_acc", "val_loss", "val_acc"}
        ]
    best = [max(record["models"][i]["val_acc"] for record in result["training_history"]) for i in (0, 1)]
    assert result["best_accuracies"] == best
    assert result["avg_best_accuracy"] == pytest.approx(sum(best) / 2)
    assert set(result["test_results"]) == {"test_losses", "test_accs", "avg_test_acc"}
    files = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    tags = ("best", "final", "epoch_1", "epoch_2", "epoch_3")
    assert files == {f"x_model{i}_{tag}.pth" for i in (0, 1) for tag in tags}
    assert {"x.log", "x_summary.json", "x"} == {path.name for path in (tmp_path / "logs").iterdir()}
    assert json.loads((tmp_path / "logs/x_summary.json").read_text())["best_accuracies"] == best
    paths = [tmp_path / f"checkpoints/x_model{i}_best.pth" for i in (0, 1)]
    models, configs, device = load_dml_models(paths, "cpu")
    assert (device.type, configs[0]["model"]) == ("cpu", "ResNet20")
    results = evaluate_dml_models(models, images[1], device, configs[0])
    assert [row["accuracy"] for row in results[:2]] == pytest.approx(best)
    assert [row["model_idx"] for row in results] == [0, 1, "ensemble"]
    assert {row["total_samples"] for row in results} == {24}
    assert evaluate_ensemble(models, images[1], "cpu") == results[-1]
    inputs, targets = images[1].dataset.tensors
    with torch.no_grad():
        mean = torch.stack([model(inputs)[0].softmax(1) for model in models]).mean(0)
    assert results[-1]["loss"] == pytest.approx(F.nll_loss(mean.log(), targets).item(), rel=1e-4)


def test_a_resumed_run_equals_one_that_was_not_stopped(config, images, tmp_path):
    whole = train_dml(config, *images)
    parts = config | {"experiment_name": "parts"}
    train_dml(parts | {"epochs": 2}, *images)
    torch.rand(7)
    again = train_dml(parts | {"resume": str(tmp_path / "checkpoints/parts_model1_epoch_2.pth")}, *images)
    assert again["training_history"] == whole["training_history"]
    assert again["best_accuracies"] == whole["best_accuracies"]
    assert all(torch.equal(a, b) for a, b in zip(weights(whole["models"]), weights(again["models"]), strict=True))
    states = [
        torch.load(tmp_path / f"checkpoints/{name}_model0_final.pth", weights_only=True) for name in ("x", "parts")
    ]
    momenta = [[slot["momentum_buffer"] for slot in s["optimizer_state_dict"]["state"].values()] for s in states]
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))
    for bad, message in (
        ("parts_model0_best.pth", "is no <experiment>_model<i>_epoch_<n>.pth"),
        ("gone_model0_epoch_2.pth", "no checkpoint at .*gone_model0_epoch_2.pth"),
    ):
        with pytest.raises(UserError, match=message):
            train_dml(parts | {"resume": str(tmp_path / "checkpoints" / bad)}, *images)


def test_what_cannot_be_gone_on_with_is_refused(config, images, tmp_path):
    folder = tmp_path / "checkpoints"
    train_dml(config | {"epochs": 2}, *images)
    resume = config | {"resume": folder / "x_model1_epoch_2.pth"}
    for other, message in (
        ({"model": "ResNet32"}, "resume: model was 'ResNet20' and is 'ResNet32'; give the same"),
        ({"lr": 0.1}, "resume: lr was 0.05 and is 0.1"),
        ({"model_num": 3}, "resume: model_num was 2 and is 3"),
    ):
        with pytest.raises(UserError, match=message):
            train_dml(resume | other, *images)
    with pytest.raises(UserError, match="x_summary.json tells of such a run; resume it"):
        train_dml(config, *images)
    fewer = DataLoader(TensorDataset(*(part[:16] for part in images[0].dataset.tensors)), 8)
    with pytest.raises(UserError, match="resume: the training set was .*24.* and is .*16"):
        train_dml(resume, fewer, images[1])
    (folder / "x_model1_epoch_2.pth").write_bytes((folder / "x_model1_epoch_1.pth").read_bytes())
    with pytest.raises(UserError, match="are of different epochs"):
        train_dml(resume, *images)
    (tmp_path / "logs/x_summary.json").unlink()
    with pytest.raises(UserError, match="x_summary.json cannot be read"):
        train_dml(config | {"resume": folder / "x_model1_epoch_1.pth"}, *images)
    for content in (b"", b"PK\3\4 and no more"):
        (folder / "x_model0_epoch_1.pth").write_bytes(content)
        with pytest.raises(UserError, match="x_model0_epoch_1.pth"):
            train_dml(config | {"resume": folder / "x_model0_epoch_1.pth"}, *images)
        with pytest.raises(UserError, match="x_model0_epoch_1.pth"):
            load_dml_models([folder / "x_model0_epoch_1.pth"], "cpu")


def test_a_class_that_is_not_there_is_named(config, images):
    with pytest.raises(UserError, match="an image has class 3, but num_classes is 3"):
        train_dml(config | {"num_classes": 3}, *images)
    with pytest.raises(UserError, match="models holds 1"):
        compute_dml_loss([nn.Linear(2, 2)], torch.zeros(1, 2), torch.zeros(1).long(), 0)
    with pytest.raises(UserError, match="no models"):
        evaluate_dml_models([], images[1], "cpu")


def test_settings_of_other_types_are_kept_as_a_checkpoint_can_hold_them(config, images, tmp_path):
    settings = dict(save_dir=tmp_path / "there", lr=np.float64(0.1), epochs=np.int64(1), num_classes=np.int64(4))
    result = train_dml(config | settings, *images)
    assert {type(value) for value in result["config"].values()} <= {str, int, float, bool, type(None)}
    _, configs, _ = load_dml_models([tmp_path / "there/x_model0_final.pth"], "cpu")
    assert configs[0] == result["config"]


def test_the_parts_of_train_dml(images):
    models = [get_model("cifar", "resnet8", 4) for _ in range(2)]
    x, y = next(iter(images[0]))
    loss, numbers = compute_dml_loss(models, x, y, 1)
    assert numbers["total_loss"] == pytest.approx(numbers["ce_loss"] + numbers["kl_loss"])
    assert loss.item() == numbers["total_loss"]
    loss.backward()
    assert all(p.grad is None for p in models[0].parameters())
    assert all(p.grad is not None for p in models[1].parameters())
    optimizers = [torch.optim.SGD(model.parameters(), 0.1) for model in models]
    losses, accuracies = train_epoch_dml(models, optimizers, images[0], "cpu", DEFAULT_CONFIG)
    assert len(losses) == len(accuracies) == 2
    assert all(0 <= accuracy.avg <= 100 for accuracy in accuracies)
    losses, accuracies = validate_dml(models, images[1], "cpu", DEFAULT_CONFIG)
    assert all(loss.avg > 0 for loss in losses)
    assert all(model.training for model in models)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modle": "ResNet20"}, "unknown setting modle, did you mean 'model'"),
        ({"model": "ResNet21"}, "model is 'ResNet21', not one of ResNet20"),
        ({"model_num": 1}, "model_num is 1, but must be at least 2"),
        ({"epochs": 0}, "epochs is 0, but must be at least 1"),
        ({"epochs": "many"}, "epochs is 'many', not of type int"),
        ({"epochs": 1.5}, "epochs is 1.5, not of type int"),
        ({"lr": "0.1"}, "lr is '0.1', not of type float"),
        ({"lr": [1]}, r"lr is \[1\], not of type float"),
        ({"seed": None}, "seed is None, not of type int"),
        ({"experiment_name": "../x"}, "experiment_name is '../x', but must be a name without folders"),
        ({"lr": math.nan}, "lr is nan, but must be at least 0"),
        ({"num_workers": -1}, "num_workers is -1, but must be at least 0"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        create_dml_config(**settings)


def test_the_default_configuration_is_the_published_one():
    published = dict(model="ResNet32", batch_size=32, num_workers=4, augment=False, epochs=200, lr=0.1, momentum=0.9)
    published |= dict(weight_decay=5e-4, step_size=60, gamma=0.1, model_num=2, device="auto", print_freq=10)
    published |= dict(save_freq=10, save_dir="checkpoints", log_dir="logs", experiment_name=None, resume=None)
    assert published.items() <= create_dml_config().items()
    assert create_dml_config() is not DEFAULT_CONFIG


def test_image_folders(tmp_path, config):
    from PIL import Image

    for part in ("train", "val", "test"):
        for i in range(6):
            folder = tmp_path / "images" / part / f"c{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 50), (40 * i, 0, 90)).save(folder / f"{i}.png")
    settings = dict(data_dir=str(tmp_path / "images"), num_workers=0, augment=True, num_classes=None, epochs=1)
    result = train_dml(config | settings)
    assert result["config"]["num_classes"] == 2
    assert result["test_results"]["avg_test_acc"] >= 0
    loaders = prepare_dataloaders(tmp_path / "images", 4, False, num_workers=0)
    assert next(iter(loaders[0]))[0].shape == (4, 3, 32, 32)
    with pytest.raises(UserError, match="no images in .*nowhere"):
        prepare_dataloaders(tmp_path / "nowhere")


# --- HintonDistiller --------------------------------------------------------------------------------------------------


def test_the_published_example_of_the_hinton_distiller(tmp_path):
    torch.manual_seed(0)
    student, teacher = MLP(100, 10, 256), MLP(100, 10, 256)
    distiller = HintonDistiller(alpha=0.5, studentLayer=-2, teacherLayer=-2, logdir=tmp_path)
    objective, distill_objective = nn.CrossEntropyLoss(), nn.KLDivLoss(reduction="batchmean")
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    loader = DataLoader(PseudoDataset(size=(100)), batch_size=512, shuffle=True)
    before = [value.clone() for value in weights([teacher])]
    distiller.init_tensorboard_logger()
    losses = []
    for epoch in range(distiller.load_state(None, student, teacher, optimizer), 6):
        metrics = distiller.train_step(
            student=student,
            teacher=teacher,
            dataloader=loader,
            optimizer=optimizer,
            objective=objective,
            distillObjective=distill_objective,
        )
        metrics |= distiller.validate(student=student, dataloader=loader, objective=objective)
        distiller.log(epoch, metrics)
        path = distiller.save(epoch, student, teacher, optimizer)
        distiller.print_epoch(epoch, 5, metrics)
        losses.append(metrics["Train/Loss"])
    assert losses[-1] < losses[0]
    assert set(metrics) >= {"Train/Loss", "Train/Accuracy", "Validation/Loss", "Validation/Accuracy"}
    assert student.training
    assert teacher.training
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, weights([teacher]), strict=True))
    assert not any(module._forward_hooks for model in (student, teacher) for module in model.modules())
    again = MLP(100, 10, 256)
    assert distiller.load_state(path, again, None, None) == 6
    assert all(torch.equal(a, b) for a, b in zip(weights([student]), weights([again]), strict=True))
    with pytest.raises(UserError, match="holds no such student"):
        distiller.load_state(path, MLP(100, 11, 256))


def test_the_loss_of_the_hinton_distiller_by_the_formula(tmp_path):
    torch.manual_seed(0)
    student, teacher = MLP(8, 3, 5), MLP(8, 3, 5)
    inputs, target = torch.randn(6, 8), torch.randint(3, (6,))
    middle = [nn.Sequential(*list(model.children())[:4])(inputs) for model in (student, teacher)]
    matched = F.kl_div(middle[0].log_softmax(1), middle[1].softmax(1), reduction="batchmean").item()
    labelled = F.cross_entropy(student(inputs), target).item()
    metrics = HintonDistiller(0.3, -2, 3, tmp_path).train_step(
        student=student,
        teacher=teacher,
        dataloader=[(inputs, target)],
        objective=nn.CrossEntropyLoss(),
        distillObjective=nn.KLDivLoss(reduction="batchmean"),
        optimizer=torch.optim.SGD(student.parameters(), 0.1),
    )
    assert metrics["Train/Loss"] == pytest.approx(0.7 * matched + 0.3 * labelled, rel=1e-5)


@pytest.mark.parametrize(
    ("layers", "message"), [((9, -2), "studentLayer is 9, but MLP has 5"), ((-2, -1), "that agree")]
)
def test_layers_that_cannot_be_matched(tmp_path, layers, message):
    student, teacher = MLP(8, 3, 5), MLP(8, 3, 5)
    with pytest.raises(UserError, match=message):
        HintonDistiller(0.5, *layers, tmp_path).train_step(
            student=student,
            teacher=teacher,
            dataloader=[(torch.randn(2, 8), torch.tensor([0, 1]))],
            objective=nn.CrossEntropyLoss(),
            distillObjective=nn.KLDivLoss(reduction="batchmean"),
            optimizer=torch.optim.SGD(student.parameters(), 0.1),
        )
    assert not any(module._forward_hooks for module in student.modules())


def test_stages_that_return_a_pair_are_matched(tmp_path, images):
    """Those of this project's ResNets, with the default layers."""
    student, teacher = get_model("cifar", "resnet8", 4), get_model("cifar", "resnet14", 4)
    metrics = HintonDistiller(logdir=tmp_path).train_step(
        student=student,
        teacher=teacher,
        dataloader=images[0],
        objective=nn.NLLLoss(),
        distillObjective=nn.KLDivLoss(reduction="batchmean"),
        optimizer=torch.optim.SGD(student.parameters(), 0.01),
    )
    assert metrics["Train/Distillation"] > 0


def test_places_that_cannot_be_written_to(data, tmp_path):
    (tmp_path / "file").write_text("")
    student = MLP(6, 3, 8)
    with pytest.raises(StorageError, match="cannot make the folder"):
        BaseDistiller(tmp_path / "file").save(1, student, student, None)
    torch.save({"student": student.state_dict()}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="tells no epoch"):
        BaseDistiller(tmp_path).load_state(tmp_path / "other.pt", student)
    students, optimizers = cohort(2)
    with pytest.raises(UserError, match="save_model_path is .*, a folder"):
        DML(students, *data, optimizers).train_students(1, False, True, tmp_path)
    with pytest.raises(StorageError, match="cannot make the folder"):
        DML(students, *data, optimizers, logdir=tmp_path / "file").train_students(1, True, False)


def test_an_error_on_the_way_leaves_modes_and_hooks_as_they_were(tmp_path):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.unused = nn.Linear(8, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x)

    student, teacher = Unused(), MLP(8, 3, 5)
    about = dict(student=student, dataloader=[(torch.randn(2, 8), torch.tensor([0, 1]))])
    about |= dict(objective=nn.CrossEntropyLoss())
    distiller = HintonDistiller(0.5, -1, -2, tmp_path)
    with pytest.raises(UserError, match="a layer that its network does not call"):
        distiller.train_step(
            **about,
            teacher=teacher,
            distillObjective=nn.KLDivLoss(reduction="batchmean"),
            optimizer=torch.optim.SGD(student.parameters(), 0.1),
        )
    with pytest.raises(RuntimeError):
        distiller.validate(student=student, dataloader=[(torch.randn(2, 9), torch.tensor([0, 1]))], objective=print)
    assert teacher.training
    assert student.training
    assert not any(module._forward_hooks for model in (student, teacher) for module in model.modules())


def test_the_base_is_easily_extended(tmp_path):
    class LogitDistiller(BaseDistiller):
        """Matches logits."""

        def train_step(self, student, teacher, dataloader, optimizer):
            for x, _ in dataloader:
                with torch.no_grad():
                    wanted = teacher(x)
                loss = F.mse_loss(student(x), wanted)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            return {"Train/Loss": loss.item()}

    torch.manual_seed(0)
    student, teacher, loader = MLP(6, 3, 8), MLP(6, 3, 8), DataLoader(PseudoDataset(6, 64, 3), 16)
    distiller = LogitDistiller(tmp_path)
    optimizer = torch.optim.Adam(student.parameters(), 0.01)
    losses = [distiller.train_step(student, teacher, loader, optimizer)["Train/Loss"] for _ in range(5)]
    assert losses[-1] < losses[0]
    path = distiller.save(5, student, teacher, optimizer)
    assert distiller.load_state(path, student, teacher, optimizer) == 6
    with pytest.raises(NotImplementedError, match="BaseDistiller must define train_step"):
        BaseDistiller(tmp_path).train_step()


def test_kd_loss_by_the_formula():
    student, teacher = torch.randn(5, 4).double().requires_grad_(), torch.randn(5, 4).double().requires_grad_()
    target = torch.randint(4, (5,))
    loss = KDLoss(T=3.0, alpha=0.4)(student, target, teacher)
    divergence = F.kl_div((student / 3).log_softmax(1), (teacher / 3).softmax(1), reduction="batchmean")
    torch.testing.assert_close(loss, 0.4 * 9 * divergence + 0.6 * F.cross_entropy(student, target))
    loss.backward()
    assert teacher.grad is None


@pytest.mark.parametrize("path", sorted((CHECKOUT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path):
    """In Jupyter, twice in the same folder; what they write lies below output/, which git ignores."""
    for _ in range(2):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert {entry.name for entry in tmp_path.iterdir()} == {"output"}
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    kinds = Counter(kind for output in shown for kind in output.get("data", ()))
    assert kinds["application/vnd.jupyter.widget-view+json"]  # progress bars
    assert kinds["image/png"] == (path.stem == "mutual_learning")
    assert not any("Warning" in output.get("text", "") for output in shown)
    for result in tmp_path.glob("output/*/distill/*/result.json"):
        assert json.loads(result.read_text())["last_test_top1"] > 60


def test_there_are_notebooks():
    assert {path.stem for path in (CHECKOUT / "notebooks").glob("*.ipynb")} == {
        *("mutual_learning", "hinton_distiller", "your_own_method"),
    }
