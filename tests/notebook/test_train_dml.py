"""train_dml(config), its files, and its parts."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from edkd.engine.checkpoint import load_checkpoint
from edkd.errors import UserError
from edkd.folder_lock import lock
from edkd.models import get_model
from edkd.notebook import (
    DEFAULT_CONFIG,
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
from edkd.notebook.model_files import files_of, refuse_used_name, restore_run


@pytest.fixture
def config(tmp_path):
    """Three epochs of two ResNet20; the rate falls after the second."""
    return create_dml_config(
        save_dir=str(tmp_path / "checkpoints"),
        log_dir=str(tmp_path / "logs"),
        device="cpu",
        model="ResNet20",
        epochs=3,
        lr=0.05,
        step_size=2,
        save_freq=1,
        num_classes=4,
        experiment_name="x",
    )


def weights(models):
    return [value for model in models for value in model.state_dict().values()]


def momenta(folder, name):
    state = torch.load(folder / f"{name}_model1_final.pth", weights_only=True)
    return [slot["momentum_buffer"] for slot in state["optimizer_state_dict"]["state"].values()]


def equal(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_the_documented_results_and_files(config, images, tmp_path, capsys):
    result = train_dml(config | {"print_freq": 3}, *images, images[1])
    printed = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert printed == ["epoch 1/3", "epoch 3/3"]

    # The result.
    assert set(result) == {
        "models",
        "best_accuracies",
        "avg_best_accuracy",
        "training_history",
        "test_results",
        "config",
        "experiment_name",
    }
    history = result["training_history"]
    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert [record["lr"] for record in history] == pytest.approx([0.05, 0.05, 0.005])
    keys = {"model_idx", "train_loss", "train_acc", "val_loss", "val_acc"}
    assert all([set(row) for row in record["models"]] == 2 * [keys] for record in history)
    best = [max(record["models"][i]["val_acc"] for record in history) for i in (0, 1)]
    assert result["best_accuracies"] == best
    assert result["avg_best_accuracy"] == pytest.approx(sum(best) / 2)
    test_results = result["test_results"]
    assert {"test_losses", "test_accs", "avg_test_acc"} < set(test_results)
    last = [row["val_acc"] for row in history[-1]["models"]]
    assert test_results["test_accs"] == pytest.approx(last)
    ensemble = history[-1]["ensemble"]
    assert test_results["ensemble_test_acc"] == pytest.approx(ensemble["val_acc"])
    assert test_results["ensemble_test_loss"] == pytest.approx(ensemble["val_loss"], rel=1e-4)

    # The files.
    folder = tmp_path / "checkpoints"
    tags = ("best", "final", "epoch_1", "epoch_2", "epoch_3")
    files = {f"x_model{i}_{tag}.pth" for i in (1, 2) for tag in tags}
    assert {path.name for path in folder.iterdir()} == files | {"runs"}
    assert (folder / "runs/x/result.json").is_file()
    logs = {path.name for path in (tmp_path / "logs").iterdir()}
    assert logs == {"x.log", "x_summary.json", "x"}
    assert list((tmp_path / "logs/x").glob("events.*"))
    assert len((tmp_path / "logs/x.log").read_text().splitlines()) == 3
    summary = json.loads((tmp_path / "logs/x_summary.json").read_text())
    assert summary["best_accuracies"] == best
    assert summary["training_history"] == history

    # The models from the files.
    files = [folder / f"x_model{i}_best.pth" for i in (1, 2)]
    models_data = load_dml_models(files)
    models, configs, device = (models_data[key] for key in ("models", "configs", "device"))
    assert configs[0]["model"] == "ResNet20"
    results = evaluate_dml_models(models, images[1], device, configs[0])
    assert [row["accuracy"] for row in results[:2]] == pytest.approx(best)
    assert [row["model_idx"] for row in results] == [0, 1, "ensemble"]
    assert {row["total_samples"] for row in results} == {16}
    assert not any(model.training for model in models)

    # The ensemble is the mean of the probabilities.
    models = load_dml_models(str(folder / "x_model1_final.pth"), "cpu")["models"]
    assert equal(weights(models), weights(result["models"][:1]))
    alone = evaluate_ensemble(models, images[1], "cpu")
    assert alone["accuracy"] == pytest.approx(last[0])
    inputs, targets = images[1].dataset.tensors
    both = [model.eval() for model in result["models"]]
    with torch.no_grad():
        mean = torch.stack([model(inputs)[0].softmax(1) for model in both]).mean(0)
    together = evaluate_ensemble(both, images[1], "cpu")
    assert together["loss"] == pytest.approx(F.nll_loss(mean.log(), targets).item(), rel=1e-4)


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_was_not_stopped(config, images, tmp_path):
    """Also where it continues from an earlier file, in another folder, with fewer files."""
    whole = train_dml(config, *images)
    folder = tmp_path / "checkpoints"
    parts = config | {"experiment_name": "parts"}
    train_dml(parts | {"epochs": 2}, *images)

    second = {"resume": str(folder / "parts_model2_epoch_2.pth")}
    first = {"resume": folder / "parts_model1_epoch_1.pth"}
    elsewhere = {"save_dir": tmp_path / "elsewhere", "log_dir": tmp_path / "elsewhere"}
    for more in (second, first, first | elsewhere):
        torch.rand(7)
        again = train_dml(parts | more, *images)
        assert again["training_history"] == whole["training_history"]
        assert again["best_accuracies"] == whole["best_accuracies"]
        assert equal(weights(whole["models"]), weights(again["models"]))
        assert equal(momenta(folder, "x"), momenta(more.get("save_dir", folder), "parts"))

    # From the final file, without numbered checkpoints of the engine.
    final = parts | {"resume": folder / "parts_model1_final.pth", "epochs": 4}
    for file in (folder / "runs/parts").glob("epoch_*"):
        file.unlink()
    assert len(train_dml(final, *images)["training_history"]) == 4


def test_files_and_settings_that_cannot_be_resumed(config, images, tmp_path):
    folder = tmp_path / "checkpoints"
    train_dml(config | {"epochs": 2}, *images)
    resume = config | {"resume": folder / "x_model2_epoch_2.pth"}
    for other, message in (
        ({"model": "ResNet32"}, "resume: model was 'ResNet20' and is 'ResNet32'; give the same"),
        ({"lr": 0.1}, "resume: lr was 0.05 and is 0.1"),
        ({"model_num": 3}, "resume: model_num was 2 and is 3"),
        ({"epochs": 1}, "resume: epochs is 1, but 2 are done"),
        ({"resume": folder / "x_model1_worst.pth"}, "is not <experiment>_model<i>_epoch_<n>.pth"),
        ({"resume": folder / "y_model1_epoch_2.pth"}, "no checkpoint at .*y_model1_epoch_2.pth"),
    ):
        with pytest.raises(UserError, match=message):
            train_dml(resume | other, *images)

    with pytest.raises(UserError, match="x_summary.json exists already; resume"):
        train_dml(config, *images)
    fewer = DataLoader(TensorDataset(*(part[:8] for part in images[0].dataset.tensors)), 8)
    with pytest.raises(UserError, match="resume: the training set was .*16.* and is .*8"):
        train_dml(resume, fewer, images[1])

    # A loader cannot be used, or another folder has files of that name; the last epoch is kept.
    inputs, targets = images[1].dataset.tensors
    strange = DataLoader(TensorDataset(inputs, targets + 50), 16)
    earlier = config | {"resume": folder / "x_model2_epoch_1.pth"}
    elsewhere = {"save_dir": tmp_path / "elsewhere"}
    shutil.copytree(folder, tmp_path / "elsewhere")
    for other, loaders, message in (
        ({}, (images[0], strange), "class number 5., but there are 4 classes"),
        ({}, (*images, strange), "class number 5., but there are 4 classes"),
        (elsewhere, images, "elsewhere/x_model1_best.pth exists already"),
    ):
        with pytest.raises(UserError, match=message):
            train_dml(earlier | other, *loaders)
    assert load_checkpoint(folder / "runs/x/latest")["epoch"] == 2

    # The engine's run has moved on, and the checkpoint of the file is gone or damaged.
    for file in ("epoch_1", "model1_best", "model2_best"):
        (folder / "runs/x" / file).unlink()
    with pytest.raises(UserError, match="runs/x has no checkpoint of epoch 1"):
        train_dml(config | {"resume": folder / "x_model2_epoch_1.pth"}, *images)
    (folder / "runs/x/epoch_2").write_bytes(b"PK\3\4 and no more")
    with pytest.raises(UserError, match="runs/x/epoch_2 is damaged"):
        train_dml(resume, *images)

    # The file itself is damaged, or another one.
    path = folder / "x_model1_epoch_1.pth"
    torch.save({"epoch": 1}, folder / "z_model1_epoch_1.pth")
    for file in (path, folder / "z_model1_epoch_1.pth"):
        if file is path:
            path.write_bytes(b"PK\3\4 and no more")
        with pytest.raises(UserError, match=file.name):
            train_dml(config | {"resume": file}, *images)
        with pytest.raises(UserError, match=file.name):
            load_dml_models([file], "cpu")


def test_the_last_checkpoint_is_kept_under_its_number(tmp_path):
    def checkpoint(epoch):
        return {"epoch": epoch, "config": "SOLVER: {LR_DECAY_STAGES: [9]}"}

    run = tmp_path / "run"
    for epoch in (5, 2, 3):
        restore_run(run, checkpoint(epoch), [7])
    assert {path.name for path in run.glob("[!.]*")} == {
        "latest",
        "config.yaml",
        "epoch_5",
        "epoch_2",
    }
    assert load_checkpoint(run / "epoch_5")["epoch"] == 5
    assert load_checkpoint(run / "latest")["epoch"] == 3
    assert "- 7" in (run / "config.yaml").read_text()

    (run / "latest").write_bytes(b"PK\3\4 and no more")
    restore_run(run, checkpoint(2), [7])
    assert load_checkpoint(run / "latest")["epoch"] == 2
    with lock(run), pytest.raises(UserError, match="in use"):
        restore_run(run, checkpoint(5), [7])
    assert load_checkpoint(run / "latest")["epoch"] == 2


@pytest.fixture
def files(tmp_path):
    """A folder with empty files of two models; the name of another experiment begins alike."""
    folder = tmp_path / "there/saved/here"
    folder.mkdir(parents=True)
    for name in ("x[1]_model1", "x[1]_model2", "x[1]_model1_wide_model1", "y_model1_wide_model1"):
        (folder / f"{name}_best.pth").write_bytes(b"")
    return folder


def test_the_models_of_another_experiment_are_kept(config, images, tmp_path, files):
    """Also where its logs are elsewhere."""
    settings = config | {"save_dir": str(files), "experiment_name": "x[1]"}
    with pytest.raises(UserError, match=r"x\[1\]_model1_best.pth exists already; resume that"):
        train_dml(settings, *images)
    assert (files / "x[1]_model1_best.pth").read_bytes() == b""
    assert not (tmp_path / "logs").exists()
    refuse_used_name(files, "y")


def test_a_summary_is_read_from_any_folder(tmp_path, monkeypatch, files):
    """Also after a move of both folders; one that was moved alone leads to the given folder."""
    summary = tmp_path / "there/logs/x[1]_summary.json"
    summary.parent.mkdir()
    settings = {"save_dir": "saved/here", "log_dir": "logs"}
    summary.write_text(json.dumps({"config": settings}))
    names = ["x[1]_model1_best.pth", "x[1]_model2_best.pth"]

    monkeypatch.chdir(tmp_path)
    assert files_of(Path("there/logs", summary.name)) == [files / name for name in names]
    there = tmp_path / "moved"
    files.parents[1].rename(there)
    assert files_of(there / "logs" / summary.name) == [
        there / "saved/here" / name for name in names
    ]

    alone = (there / "logs" / summary.name).rename(tmp_path / summary.name)
    monkeypatch.chdir(there)
    assert files_of(alone) == [Path("saved/here") / name for name in names]


def test_a_failed_first_epoch_does_not_block_the_name(config, images):
    """Here the rate is too high, or an image has a NaN."""
    with pytest.raises(ArithmeticError):
        train_dml(config | {"epochs": 1, "lr": 1e30}, *images)
    images[0].dataset.tensors[0][3] = math.nan
    with pytest.raises(UserError, match="values that are not finite"):
        train_dml(config | {"epochs": 1}, *images)
    images[0].dataset.tensors[0][3] = 0.0
    assert train_dml(config | {"epochs": 1}, *images)["experiment_name"] == "x"


def test_classes_that_are_not_there(config, images):
    with pytest.raises(UserError, match="class number 3, but there are 3 classes"):
        train_dml(config | {"num_classes": 3}, *images)
    with pytest.raises(UserError, match="names no classes; give num_classes"):
        train_dml(config | {"num_classes": None}, *images)
    with pytest.raises(UserError, match="needs a val_loader"):
        train_dml(config, images[0])


def test_settings_of_other_types_become_plain(config, images, tmp_path):
    """So that a checkpoint, which is read without running code, can hold them."""
    settings = dict(save_dir=tmp_path / "there", lr=np.float64(0.1), epochs=np.int64(1))
    result = train_dml(config | settings | {"num_classes": np.int64(4)}, *images)
    kinds = {type(value) for value in result["config"].values()}
    assert kinds <= {str, int, float, bool, type(None)}
    loaded = load_dml_models([tmp_path / "there/x_model1_final.pth"], "cpu")
    assert loaded["configs"] == [result["config"]]


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
    before = [value.clone() for value in weights(models)]
    losses, accuracies = train_epoch_dml(models, optimizers, images[0], "cpu", DEFAULT_CONFIG)
    assert len(losses) == len(accuracies) == 2
    assert all(0 <= accuracy.avg <= 100 for accuracy in accuracies)
    assert not equal(before, weights(models))

    losses, accuracies = validate_dml(models, images[1], "cpu", DEFAULT_CONFIG)
    assert all(loss.avg > 0 for loss in losses)
    assert all(model.training for model in models)

    with pytest.raises(UserError, match="models has 1 network"):
        compute_dml_loss([nn.Linear(2, 2)], torch.zeros(1, 2), torch.zeros(1).long(), 0)
    with pytest.raises(UserError, match="no models"):
        evaluate_dml_models([], images[1], "cpu")
    with pytest.raises(UserError, match="class number 3, but there are 3 classes"):
        validate_dml(models, images[1], "cpu", {"num_classes": 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modle": "ResNet20"}, "unknown setting modle, did you mean 'model'"),
        ({"model": "ResNet21"}, "model is 'ResNet21', not one of ResNet20"),
        ({"model_num": 1}, "model_num is 1, but must be at least 2"),
        ({"model": ["ResNet20", "ResNet2"]}, "model is 'ResNet2', not one of ResNet20"),
        ({"model": ["ResNet20"] * 2, "model_num": 3}, "model has 2 networks, but model_num is 3"),
        ({"model": ["ResNet20"]}, "model_num is 1, but must be at least 2"),
        ({"epochs": 0}, "epochs is 0, but must be at least 1"),
        ({"epochs": "many"}, "epochs is 'many', not of type int"),
        ({"epochs": 1.5}, "epochs is 1.5, not of type int"),
        ({"lr": "0.1"}, "lr is '0.1', not of type float"),
        ({"lr": [1]}, r"lr is \[1\], not of type float"),
        ({"seed": None}, "seed is None, not of type int"),
        ({"experiment_name": "../x"}, "experiment_name is '../x', but must be a name without"),
        ({"experiment_name": 300 * "x"}, "experiment_name is too long"),
        ({"lr": math.nan}, "lr is nan, but must be at least 0"),
        ({"num_workers": -1}, "num_workers is -1, but must be at least 0"),
    ],
)
def test_settings_that_are_rejected(settings, message):
    with pytest.raises(UserError, match=message):
        create_dml_config(**settings)


def test_the_default_configuration_is_the_published_one():
    published = dict(
        model="ResNet32",
        batch_size=32,
        num_workers=4,
        augment=False,
        epochs=200,
        lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        step_size=60,
        gamma=0.1,
        model_num=2,
        device="auto",
        print_freq=10,
        save_freq=10,
        save_dir="checkpoints",
        log_dir="logs",
        experiment_name=None,
        resume=None,
    )
    assert published.items() <= create_dml_config().items()
    assert create_dml_config() is not DEFAULT_CONFIG


def test_image_folders(tmp_path, config):
    from PIL import Image

    for part in ("train", "val", "test"):
        for i in range(6):
            folder = tmp_path / "images" / part / f"c{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 50), (40 * i, 0, 90)).save(folder / f"{i}.png")

    settings = dict(data_dir=str(tmp_path / "images"), num_workers=0, augment=True, epochs=1)
    result = train_dml(config | settings | {"num_classes": None})
    assert result["config"]["num_classes"] == 2
    assert result["test_results"]["avg_test_acc"] >= 0

    loaders = prepare_dataloaders(tmp_path / "images", 4, False, num_workers=0)
    assert next(iter(loaders[0]))[0].shape == (4, 3, 32, 32)
    (tmp_path / "images/test").rename(tmp_path / "images/other")
    assert prepare_dataloaders(tmp_path / "images", num_workers=0)[2] is None
    (tmp_path / "images/val").rename(tmp_path / "images/valid")
    assert len(prepare_dataloaders(tmp_path / "images", num_workers=0)[1].dataset) == 6
    (tmp_path / "images/valid").rename(tmp_path / "images/val")
    (tmp_path / "images/val/c1").rename(tmp_path / "images/val/c2")
    with pytest.raises(UserError, match="val has other classes than .*train"):
        prepare_dataloaders(tmp_path / "images")
    with pytest.raises(UserError, match="data_dir: no folder .*nowhere"):
        prepare_dataloaders(tmp_path / "nowhere")
