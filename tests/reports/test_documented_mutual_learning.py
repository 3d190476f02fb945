"""Mutual learning as another system documents it: results, files, TensorBoard, resuming."""

import json

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event
from torch.utils.data import DataLoader, TensorDataset

import edkd
from edkd.errors import UserError
from edkd.notebook import evaluate_dml_models, load_dml_models, train_dml
from tests.short_forms import slow_but
from tests.small import TinyNet


def images(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(16, 3, 32, 32, generator=generator)
    pairs = TensorDataset(inputs, torch.randint(4, (16,), generator=generator))
    return DataLoader(pairs, 8, shuffle=seed == 0)


DATA = (images(0), images(1))


@pytest.fixture
def config(tmp_path):
    """Two epochs of two ResNet20, without numbered checkpoints."""
    return dict(
        save_dir=str(tmp_path / "checkpoints"),
        log_dir=str(tmp_path / "logs"),
        device="cpu",
        model="ResNet20",
        epochs=2,
        lr=0.05,
        save_freq=0,
        num_classes=4,
        experiment_name="x",
    )


def curves(folder):
    """The names of the curves in TensorBoard's files, with their epochs."""
    found = {}
    for path in folder.glob("events.*"):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    return found


def test_the_documented_example(config, tmp_path):
    """Its README: `models_data["models"]`, files `..._model1_best.pth` and `..._model2_best.pth`.

    It also documents the ensemble in the test results, and in TensorBoard the learning rate, the
    ensemble and each model. Right: all of these.
    """
    results = train_dml(config, *DATA, images(2))
    folder = tmp_path / "checkpoints"
    paths = [str(folder / f"x_model{i}_best.pth") for i in (1, 2)]
    models_data = load_dml_models(paths)
    assert set(models_data) == {"models", "configs", "device"}
    assert len(models_data["models"]) == 2
    assert models_data["configs"][0]["model"] == "ResNet20"

    rows = evaluate_dml_models(models_data["models"], images(1))
    assert [row["model_idx"] for row in rows] == [0, 1, "ensemble"]
    assert f"{rows[2]['accuracy']:.4f}"
    assert 0 <= results["test_results"]["ensemble_test_acc"] <= 100

    found = curves(tmp_path / "logs/x")
    named = {
        f"model{i}/{part}_{what}"
        for i in (1, 2)
        for part in ("train", "val")
        for what in ("loss", "acc")
    }
    assert set(found) == named | {"lr", "ensemble/val_acc", "ensemble/val_loss"}
    assert found["lr"] == [1, 2]


@pytest.mark.parametrize("which", slow_but(["summary"], ["folder", "summary"]))
def test_an_experiment_is_loaded_by_its_folder_or_summary(which, config, tmp_path):
    train_dml(config | {"epochs": 1}, *DATA)
    folder = tmp_path / "checkpoints"
    path = folder if which == "folder" else tmp_path / "logs/x_summary.json"
    loaded = load_dml_models(path, "cpu")["models"]
    named = load_dml_models([folder / f"x_model{i}_best.pth" for i in (1, 2)], "cpu")["models"]
    for a, b in zip(loaded, named, strict=True):
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())

    train_dml(config | {"epochs": 1, "experiment_name": "y"}, *DATA)
    with pytest.raises(UserError, match=r"several experiments \(x, y\); name their files"):
        load_dml_models(folder, "cpu")
    with pytest.raises(UserError, match="has no files <experiment>_model<i>_best.pth"):
        load_dml_models(tmp_path / "logs", "cpu")


@pytest.mark.slow
def test_any_checkpoint_can_be_resumed_from(config, tmp_path, capsys):
    """Its README: "Training can be resumed from any checkpoint"; `_best` was refused.

    Right: the run goes on after the epoch of that file, which a line names, and ends as one that
    was not stopped.
    """
    whole = train_dml(config | {"epochs": 3}, *DATA)
    history = whole["training_history"]
    part = config | {"experiment_name": "part"}
    train_dml(part, *DATA)

    path = tmp_path / "checkpoints" / "part_model2_best.pth"
    epoch = torch.load(path, weights_only=True)["epoch"]
    accuracies = [record["models"][1]["val_acc"] for record in history[:2]]
    assert epoch == 1 + accuracies.index(max(accuracies))

    capsys.readouterr()
    again = train_dml(part | {"epochs": 3, "resume": str(path)}, *DATA)
    line = f"part_model2_best.pth was written after epoch {epoch}; it goes on there"
    assert line in capsys.readouterr().out
    assert again["training_history"] == history
    for model, other in zip(again["models"], whole["models"], strict=True):
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.slow
def test_files_numbered_from_0_still_load_and_resume(config, tmp_path):
    """Earlier versions of this project numbered them so. Right: a resumed experiment keeps that."""
    train_dml(config | {"epochs": 1}, *DATA)
    folder = tmp_path / "checkpoints"
    for number in (1, 2):
        for tag in ("best", "final"):
            path = folder / f"x_model{number}_{tag}.pth"
            state = torch.load(path, weights_only=True)
            del state["network"]
            torch.save(state, folder / f"x_model{number - 1}_{tag}.pth")
    for path in folder.glob("x_model2_*"):
        path.unlink()

    assert len(load_dml_models(folder, "cpu")["models"]) == 2
    train_dml(config | {"resume": folder / "x_model0_final.pth"}, *DATA)
    files = {path.name for path in folder.glob("*.pth")}
    assert files == {f"x_model{i}_{tag}.pth" for i in (0, 1) for tag in ("best", "final")}


def test_networks_of_different_kinds(config, tmp_path):
    """Its README trains identical networks. Right: any mix, by name or through `edkd.distill`."""
    result = train_dml(config | {"model": ["ResNet20", "ResNet32"], "epochs": 1}, *DATA)
    assert result["config"]["model_num"] == 2
    loaded = load_dml_models(tmp_path / "checkpoints", "cpu")
    sizes = [sum(p.numel() for p in model.parameters()) for model in loaded["models"]]
    assert sizes[0] < sizes[1]
    summary = json.loads((tmp_path / "logs/x_summary.json").read_text())
    assert summary["config"]["model"] == ["ResNet20", "ResNet32"]

    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 4))
    students = [plain, TinyNet(), TinyNet(12)]
    settings = dict(epochs=1, device="cpu", output=tmp_path)
    result = edkd.distill(students, None, *DATA, method="DML", **settings)
    assert {f"last_test_student{i}_top1" for i in (1, 2, 3)} <= set(result)
    assert "last_test_ensemble_top1" in result
