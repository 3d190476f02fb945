"""Checkpoints: read without running code, checked against the model, never half written."""

import errno
import os
import pickle
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from edkd.engine.checkpoint import load_checkpoint, save_checkpoint
from edkd.engine.weights import load_weights
from edkd.errors import StorageError, UserError
from edkd.models import get_model


@pytest.fixture
def model():
    return get_model("cifar", "resnet8", 10)


def same(a, b):
    return all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


def test_a_file_from_before_batches_were_counted_loads(tmp_path, model):
    """torchvision's published files: the older format, without the counters of the batch norms."""
    old = {
        key: value
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(old, tmp_path / "c", _use_new_zipfile_serialization=False)
    other = get_model("cifar", "resnet8", 10)
    load_weights(other, tmp_path / "c")
    assert same(model, other)


@pytest.mark.parametrize(
    "layout",
    [
        lambda state: {"model": state},
        lambda state: state,
        lambda state: {
            "model": {f"module.{key}": value for key, value in state.items()},
            "opt": Namespace(lr=0.1),
        },
        lambda state: {
            "epoch": 3,
            "model": {f"student.{key}": value for key, value in state.items()}
            | {"connector.weight": torch.ones(1)},
        },
        lambda state: {
            "model": {f"module.student.{key}": value for key, value in state.items()}
            | {f"module.teacher.{key}": value for key, value in state.items()}
        },
    ],
    ids=["published", "torchvision", "DataParallel", "a whole run", "mdistiller's whole run"],
)
def test_known_layouts_load(tmp_path, model, layout):
    torch.save(layout(model.state_dict()), tmp_path / "c")
    other = get_model("cifar", "resnet8", 10)
    assert not same(model, other)
    load_weights(other, tmp_path / "c")
    assert same(model, other)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Malicious()}, "zip")
    with open("pickle", "wb") as file:
        pickle.dump({"model": Malicious()}, file)
    for name in ("zip", "pickle"):
        with pytest.raises(
            UserError,
            match=f"{name} is (not a checkpoint of tensors alone|a pickle that torch.save did not)",
        ):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_damage_is_detected(tmp_path, model):
    path = tmp_path / "c"
    save_checkpoint({"model": model.state_dict()}, path)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:-1], whole[100:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is damaged"):
            load_checkpoint(path)
    for place in range(len(whole) // 20, len(whole), len(whole) // 20):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        try:
            again = load_checkpoint(path)["model"]
        except UserError:
            continue
        assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(tmp_path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds list"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("other", "classes", "message"),
    [
        ("resnet14", 10, "another architecture: it has layer1.1.bn1.bias"),
        ("resnet8", 100, r"number of classes: fc.weight is \(100, 64\) there but \(10, 64\) here"),
        ("vgg8", 10, "another architecture"),
    ],
)
def test_another_models_weights_are_refused(tmp_path, model, other, classes, message):
    save_checkpoint({"model": get_model("cifar", other, classes).state_dict()}, tmp_path / "c")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_weights(model, tmp_path / "c")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("content", [{"epoch": 1}, {"model": 3}, {"model": {}}])
def test_a_file_without_weights_is_refused(tmp_path, model, content):
    save_checkpoint(content, tmp_path / "c")
    with pytest.raises(UserError, match="holds no weights"):
        load_weights(model, tmp_path / "c")


class FullDisk:
    """A file that fails after some bytes, as a full disk does."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


@pytest.mark.parametrize("room", [0, 100, 10_000, 300_000])
def test_a_full_disk_leaves_the_old_file(tmp_path, model, monkeypatch, room):
    path = tmp_path / "latest"
    save_checkpoint({"model": model.state_dict()}, path)
    before = path.read_bytes()
    real_open = open
    monkeypatch.setattr(
        "builtins.open", lambda name, mode="r", **kw: FullDisk(real_open(name, mode, **kw), room)
    )
    with pytest.raises(StorageError, match=r"cannot write .*latest: No space left on device"):
        save_checkpoint({"model": get_model("cifar", "resnet8", 10).state_dict()}, path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["latest"]


def test_a_missing_folder_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        save_checkpoint({}, tmp_path / "gone" / "latest")


# A file that another program holds open, as on Windows or a network drive.


def hold_open(monkeypatch, name, times, code=errno.EACCES):
    """os.replace fails so often where a file of that name is involved."""
    replace = os.replace
    refused = []

    def refuse(source, target):
        if name in (Path(source).name, Path(target).name) and len(refused) < times:
            refused.append(name)
            raise OSError(code, "in use by another process")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    return refused


@pytest.mark.parametrize("code", [errno.EACCES, errno.EBUSY])
def test_a_checkpoint_in_use_for_a_moment_is_tried_again(tmp_path, monkeypatch, code):
    """A virus scanner or a backup reads each new file."""
    path = tmp_path / "latest"
    save_checkpoint({"epoch": 1}, path)
    refused = hold_open(monkeypatch, "latest", 2, code)
    save_checkpoint({"epoch": 2}, path)
    assert len(refused) == 2
    assert load_checkpoint(path) == {"epoch": 2}


@pytest.mark.parametrize("held", ["latest", "latest.previous", ".latest.partial"])
def test_a_checkpoint_in_use_for_long_is_an_error_that_keeps_the_old_one(
    tmp_path, monkeypatch, held
):
    monkeypatch.setattr("edkd.engine.checkpoint.PATIENCE", 0.2)
    path = tmp_path / "latest"
    keep = tmp_path / "latest.previous"
    save_checkpoint({"epoch": 1}, path, keep)
    save_checkpoint({"epoch": 2}, path, keep)
    hold_open(monkeypatch, held, 10**6)

    with pytest.raises(StorageError, match="in use by another process; close the program that has"):
        save_checkpoint({"epoch": 3}, path, keep)
    assert load_checkpoint(path) == {"epoch": 2}
    assert not (tmp_path / ".latest.partial").exists()


def test_an_error_that_does_not_pass_is_not_tried_again(tmp_path, monkeypatch):
    save_checkpoint({"epoch": 1}, tmp_path / "latest")
    refused = hold_open(monkeypatch, "latest", 10**6, errno.ENOSPC)
    with pytest.raises(StorageError, match="in use by another"):
        save_checkpoint({"epoch": 2}, tmp_path / "latest")
    assert len(refused) == 1
