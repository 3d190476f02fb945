"""Checkpoints that other training scripts left, after public reports."""

import argparse
import collections
import gzip
import io
import pickle
import struct
import sys
import tarfile
import types
import warnings
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from torch import nn
from yacs.config import CfgNode

from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.weights import load_weights
from edkd.errors import UserError
from tests.reliability.files import older, picture, saved, zipped
from tests.small import TinyNet


@pytest.fixture
def trained():
    """A network with weights unlike any new one's."""
    torch.manual_seed(7)
    network = TinyNet()
    network(torch.randn(4, 3, 8, 8))
    return network


def prefixed(state, prefix):
    return collections.OrderedDict((prefix + key, value) for key, value in state.items())


def halved(state):
    return {key: value / 2 for key, value in state.items()}


def loaded(tmp_path, content):
    """A new network with the weights of a file with this content."""
    path = tmp_path / "c.pth"
    torch.save(content, path)
    network = TinyNet()
    load_weights(network, path)
    return network


def is_same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def reason(tmp_path, content, model=None):
    """The message with which a file of these bytes is refused, without its path."""
    path = tmp_path / "c.pth"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_weights(model or TinyNet(), path)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(tmp_path), "")


# Dictionaries and prefixes.

OUTER = ("state_dict", "net", "model_state_dict", "student", "params", "weights", "ema", "teacher")


@pytest.mark.parametrize("outer", OUTER)
def test_weights_under_any_key(tmp_path, trained, outer):
    """Scripts save weights under names of their own, with an epoch and an optimizer beside them.

    Such files were called "of another architecture". They load.
    """
    optimizer = torch.optim.SGD(trained.parameters(), 0.1, momentum=0.9)
    content = {outer: trained.state_dict(), "epoch": 3, "optimizer": optimizer.state_dict()}
    assert is_same(loaded(tmp_path, content), trained)


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model._orig_mod.",
        "backbone.",
        "net.0.",
        "_fsdp_wrapped_module.",
        "my_own_wrapper.",
    ],
)
def test_any_uniform_prefix(tmp_path, trained, prefix):
    """karpathy/nanoGPT #325, Lightning-AI/pytorch-lightning #20233: compiling adds `_orig_mod.`.

    A prefix that all weights share is not part of their names, whatever wrappers made it.
    """
    state = prefixed(trained.state_dict(), prefix)
    assert is_same(loaded(tmp_path, state), trained)
    assert is_same(loaded(tmp_path, {"state_dict": state}), trained)


def test_wrapped_parts(tmp_path, trained):
    """A part of a network was compiled or wrapped alone, as the published VGGs of ImageNet."""
    state = trained.state_dict()
    wrapped = {key.replace("conv.", "conv.module._orig_mod."): state[key] for key in state}
    assert is_same(loaded(tmp_path, {"model": prefixed(wrapped, "module.")}), trained)


def test_a_dictionary_that_contains_itself(tmp_path, trained):
    """A file can hold one dictionary in many places, and within itself. The search ends."""
    content = {"net": trained.state_dict()}
    content |= {str(number): content for number in range(50)}
    content["again"] = {"net": content["net"]}
    assert is_same(loaded(tmp_path, content), trained)


def test_several_levels_deep(tmp_path, trained, capsys):
    """Frameworks nest the state of a network in the state of a trainer. The weights are found."""
    content = {
        "trainer": {"modules": {"net": prefixed(trained.state_dict(), "module.")}},
        "step": 1,
    }
    assert is_same(loaded(tmp_path, content), trained)
    assert capsys.readouterr().err == ""


def test_the_whole_run_of_the_published_system(tmp_path, trained):
    """megvii-research/mdistiller #20: a teacher that was trained alone is given by its whole run.

    Its keys begin with `module.student.`; a teacher of the same architecture lies beside them.
    """
    state = trained.state_dict()
    alone = {"model": prefixed(state, "module.student."), "epoch": 240}
    assert is_same(loaded(tmp_path, alone), trained)

    both = alone["model"] | prefixed(halved(state), "module.teacher.")
    both["module.connector.weight"] = torch.ones(3, 3)
    assert is_same(loaded(tmp_path, {"model": both}), trained)


@pytest.mark.parametrize("copy", ["model_ema", "state_dict_ema", "best_model", "ema.shadow"])
def test_the_plain_copy_of_two(tmp_path, trained, capsys, copy):
    """sming256/OpenTAD #44: a file has the trained weights and their moving average.

    The plain copy is loaded, wherever it stands, and a line says so.
    """
    average = prefixed(halved(trained.state_dict()), "module.")
    content = {copy: average, "state_dict": trained.state_dict()}
    assert is_same(loaded(tmp_path, content), trained)

    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"several networks fit (state_dict, {copy}); state_dict is used" in error


def test_a_copy_in_another_precision_without_counters(tmp_path, trained):
    """The average is kept in half precision, or without the batch norms' counters."""
    state = trained.state_dict()
    average = {key: value.half() for key, value in state.items() if "tracked" not in key}
    assert is_same(loaded(tmp_path, {"model_ema": average, "model": state}), trained)


def test_two_networks_of_equal_standing_are_refused(tmp_path, trained):
    """A file with two networks must not load one of them by chance."""
    content = {"net_a": trained.state_dict(), "net_b": halved(trained.state_dict())}
    message = reason(tmp_path, saved(content))
    assert "holds several networks that fit (net_a, net_b)" in message

    same = {"net_a": trained.state_dict(), "net_b": trained.state_dict()}
    assert is_same(loaded(tmp_path, same), trained)


def test_tensors_that_tools_add(tmp_path, trained, capsys):
    """Lyken17/pytorch-OpCounter #82: counting operations adds tensors to the state dict.

    torch's averaged models add `n_averaged`, others the number of updates or the average itself.
    What is not the network's is ignored, and one line says so.
    """
    state = trained.state_dict()
    state["total_ops"] = torch.zeros(1, dtype=torch.float64)
    state["conv.total_params"] = torch.zeros(1, dtype=torch.float64)
    state["num_updates"] = torch.tensor(9)
    state["ema_conv_weight"] = torch.ones(6, 3, 3, 3)
    assert is_same(loaded(tmp_path, state), trained)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "ignored weights that the network does not have: total_ops, conv.total_params" in error

    averaged = torch.optim.swa_utils.AveragedModel(trained).state_dict()
    assert is_same(loaded(tmp_path, {"model": averaged}), trained)
    assert "n_averaged" in capsys.readouterr().err


def test_counters_of_another_type(tmp_path, trained):
    """Averaging a state dict turns the batch norms' counters into floats. They load."""
    state = trained.state_dict()
    state["bn.num_batches_tracked"] = torch.tensor([1.0])
    network = loaded(tmp_path, state)
    assert is_same(network, trained)
    assert network.bn.num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(tmp_path, trained, dtype):
    """Files in half precision or float64 load, in the network's own type."""
    state = {key: value.to(dtype) for key, value in trained.state_dict().items()}
    network = loaded(tmp_path, state)
    assert torch.allclose(network.conv.weight, trained.conv.weight, atol=0.01)
    assert network.conv.weight.dtype == torch.float32


def test_weights_that_are_views_of_others(tmp_path, trained):
    """A file may hold transposed views; their values count, not their place in memory."""
    state = trained.state_dict()
    state["fc.weight"] = state["fc.weight"].t().contiguous().t()
    assert is_same(loaded(tmp_path, state), trained)


# What stands beside the weights.

BESIDE = {
    "a NumPy number": np.float64(91.2),
    "a NumPy integer": np.int64(3),
    "an array": np.arange(4),
    "an array of objects": np.array([{"a": 1}], dtype=object),
    "a path": Path("x/y"),
    "a path of Windows": PureWindowsPath("c:/x"),
    "arguments": argparse.Namespace(lr=0.1, out=Path("o")),
    "settings": CfgNode({"SOLVER": CfgNode({"LR": 0.1})}),
    "a namespace": types.SimpleNamespace(lr=0.1),
    "lists by name": collections.defaultdict(list, {"loss": [1.0]}),
    "a queue": collections.deque([1.0, 2.0], maxlen=5),
    "the state of a generator": np.random.get_state(),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", BESIDE)
def test_harmless_objects_beside_weights(tmp_path, trained, name, legacy):
    """nerfstudio-project/nerfstudio #3702, CAREamics/careamics #563: a number of NumPy or a path
    beside the weights makes torch refuse the whole file.

    Such a file was called damaged. It loads, and nothing of it runs.
    """
    content = {"model": trained.state_dict(), "beside": BESIDE[name]}
    path = tmp_path / "c"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    network = TinyNet()
    load_weights(network, path)
    assert is_same(network, trained)


def test_numbers_of_numpy_keep_their_value(tmp_path):
    """A best accuracy that was a number of NumPy is that number."""
    values = [np.float64(91.25), np.float32(0.5), np.int64(-3), np.uint8(200), np.bool_(True)]
    torch.save({"values": values}, tmp_path / "c")
    assert load_checkpoint(tmp_path / "c")["values"] == [91.25, 0.5, -3, 200, True]


class Config:
    """A class of a training script."""


def test_the_class_that_is_not_allowed_is_named(tmp_path, trained):
    """An object of the script's own class is beside the weights: the message names the class."""
    for content in (saved, older):
        message = reason(tmp_path, content({"model": trained.state_dict(), "cfg": Config()}))
        assert "Config, and loading that could run code; save the state dict without it" in message
        assert "damaged" not in message


def test_a_whole_pickled_model(tmp_path, trained):
    """Comfy-Org/ComfyUI #7425: a file holds a pickled model of a class, not weights.

    It was called damaged. The message says what it is, names the class, and how to save it.
    """
    for content in (saved(trained), older(trained), saved({"model": trained, "epoch": 3})):
        message = reason(tmp_path, content)
        assert "a whole pickled model of the class tests.small.TinyNet" in message
        assert "save model.state_dict()" in message


# Other files.


def tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("weights.pth")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    return buffer.getvalue()


def torchscript():
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, its files are not gone
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def safetensors():
    header = b'{"fc.bias":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return struct.pack("<Q", len(header)) + header + bytes(4)


OTHERS = {
    "nothing": (lambda: b"", "is damaged: it is empty"),
    "zeros": (lambda: bytes(5000), "is damaged: it begins with 4096 zeros"),
    "cut short": (lambda: saved({"x": torch.ones(999)})[:-300], "is damaged: its end is missing"),
    "a Git LFS pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "is a Git LFS pointer, not the file itself; run `git lfs pull`",
    ),
    "a web page": (lambda: b"\n<!DOCTYPE html><title>Sign in</title>", "is a web page"),
    "text": (lambda: "Größe: 3\n".encode(), "is a text file ('Größe: 3')"),
    "a picture": (picture, "is a picture"),
    "gzip": (lambda: gzip.compress(saved({})), "is compressed with gzip; unpack it"),
    "tar": (tar, "is a tar archive; unpack it"),
    "zip": (lambda: zipped(**{"a/w.pth": b"1"}), "is a zip archive (a/w.pth); unpack it"),
    "NumPy": (lambda: zipped(**{"fc.npy": b"1"}), "holds arrays of NumPy"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file"),
    "TorchScript": (torchscript, "is a TorchScript program"),
    "ONNX": (lambda: b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(99), "is an ONNX graph"),
    "a byte": (lambda: b"\x80", "is a pickle that torch.save did not write"),
    "a pickle": (lambda: pickle.dumps({"fc": [0.5]}), "is a pickle that torch.save did not write"),
    "safetensors": (safetensors, "needs the package safetensors"),
    "a list": (lambda: saved([1, 2]), "holds list, not a dictionary of tensors"),
    "no weights": (lambda: saved({"epoch": 3}), "holds no weights, as it has no tensors"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, monkeypatch, name):
    """mit-han-lab/smoothquant #13, YBIGTA/pytorch-hair-segmentation #38: what was downloaded is a
    pointer, a page, an archive or the file of another library.

    All of them were called damaged. The message says what the file is, and what to do.
    """
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    content, named = OTHERS[name]
    message = reason(tmp_path, content())
    assert named in message
    assert ("damaged" in message) == ("damaged" in named)


def test_safetensors_load_with_their_package(tmp_path, trained):
    """Hubs give weights as safetensors. They load where that package is installed."""
    from safetensors.torch import save_file

    path = tmp_path / "c.safetensors"
    save_file(trained.state_dict(), path)
    network = TinyNet()
    load_weights(network, path)
    assert is_same(network, trained)


# True reasons.


def test_a_missing_key_is_named_with_what_is_there(tmp_path, trained):
    """A weight is missing: the message has the place that fits best, and the keys at the top."""
    state = trained.state_dict()
    del state["fc.bias"]
    message = reason(tmp_path, saved({"epoch": 1, "net": prefixed(state, "module.")}))
    assert "another architecture: it lacks fc.bias (and 0 more keys differ; in net," in message
    assert "top-level keys: epoch, net" in message


def test_a_larger_network_is_another_architecture(tmp_path, trained):
    """A file with all of the network's names and further weights is of another network."""
    state = trained.state_dict() | {"scale": torch.ones(1)}
    assert "it has scale" in reason(tmp_path, saved(state))
    state = trained.state_dict() | {"conv2.weight": torch.ones(3, 3)}
    assert "it has conv2.weight" in reason(tmp_path, saved({"model": state}))


def test_transposed_weights_are_named(tmp_path, trained):
    """Weights that came from a library with the other layout: the message says so."""
    state = trained.state_dict()
    state["fc.weight"] = state["fc.weight"].t().contiguous()
    assert "transposed" in reason(tmp_path, saved(state))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda value: value.to(torch.complex64), "torch.complex64"),
        (lambda value: value.to_sparse(), "torch.sparse_coo"),
        (lambda value: value.to("meta"), "without content"),
        (lambda value: value.to(torch.int32), "torch.int32"),
    ],
)
def test_what_are_no_weights_is_named(tmp_path, trained, change, named):
    """Complex, sparse or integer tensors in the place of weights: the message names their type."""
    state = trained.state_dict()
    state["conv.weight"] = change(state["conv.weight"])
    assert named in reason(tmp_path, saved(state))


def test_our_own_notebook_files(tmp_path, trained):
    """The files of mutual learning and of the Hinton system load where the network fits."""
    config = {"model": "TinyNet", "lr": 0.1}
    mutual = {"epoch": 2, "model_state_dict": trained.state_dict(), "config": config, "run": "a"}
    assert is_same(loaded(tmp_path, mutual), trained)

    teacher = TinyNet(channels=12).state_dict()
    hinton = {"epoch": 2, "student": trained.state_dict(), "teacher": teacher}
    assert is_same(loaded(tmp_path, hinton), trained)
