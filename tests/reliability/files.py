"""Files that a user, a server or a damaged disk may hand over, as bytes."""

import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edkd.models import get_model
from tests.runs import CHECKOUT

State = dict[str, Tensor]


def write(path: Path, content: Any) -> None:
    """A file with some bytes or text; or a folder with the entries of a dictionary."""
    if isinstance(content, dict):
        path.mkdir(parents=True, exist_ok=True)
        for name, inner in content.items():
            write(path / name, inner)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def saved(content: Any) -> bytes:
    """As torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def older(content: Any) -> bytes:
    """The same in the format of torch before 1.6."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def zipped(**members: Any) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def picture() -> bytes:
    """A PNG of 64x64."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    return buffer.getvalue()


def arrays(state: State) -> bytes:
    """Weights in NumPy's format."""
    buffer = io.BytesIO()
    np.savez(buffer, **{key: value.numpy() for key, value in state.items()})
    return buffer.getvalue()


def model(state: Any) -> bytes:
    """A file of a student."""
    return saved({"model": state})


def of_type(change: Callable[[Tensor], Tensor]) -> Callable[[State], bytes]:
    """A file whose weights, not its counters, are changed."""

    def make(state: State) -> bytes:
        return model(
            {
                key: change(value) if value.is_floating_point() else value
                for key, value in state.items()
            }
        )

    return make


def weights(name: str, num_classes: int = 10) -> State:
    """New weights of a network."""
    return get_model("cifar", name, num_classes).state_dict()


FOREIGN: dict[str, Callable[[State], Any]] = {
    "nothing": lambda state: b"",
    "text": lambda state: b"the weights are elsewhere",
    "zeros": lambda state: bytes(4096),
    "a picture": lambda state: picture(),
    "a page of a server": lambda state: b"<!DOCTYPE html><html><title>404 Not Found</title></html>",
    "a pointer of Git LFS": lambda state: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    ),
    "JSON": lambda state: json.dumps({"model": {"conv1.weight": [0.0]}}).encode(),
    "YAML": lambda state: (CHECKOUT / "configs/cifar100/kd.yaml").read_bytes(),
    "a folder": lambda state: {},
    "a zip of something else": lambda state: zipped(readme="nothing of torch"),
    "arrays of NumPy": arrays,
    "a checkpoint in gzip": lambda state: gzip.compress(model(state)),
    "a pickled list": lambda state: pickle.dumps([1, 2], protocol=2),
    "a pickled dictionary": lambda state: pickle.dumps({"model": {"fc.bias": 10 * [0.0]}}),
    "a list": lambda state: saved(list(state.values())),
    "a tensor": lambda state: saved(state["fc.bias"]),
    "a number": lambda state: saved(3),
    "numbers in place of tensors": lambda state: model(dict.fromkeys(state, 0.0)),
    "the older format, cut short": lambda state: older({"model": state})[:-1000],
    "another architecture": lambda state: model(weights("vgg8")),
    "another depth": lambda state: model(weights("resnet14")),
    "another number of classes": lambda state: model(weights("resnet8", 100)),
    "complex numbers": of_type(lambda value: value.to(torch.complex64)),
    "floats of 8 bits": of_type(lambda value: value.to(torch.float8_e4m3fn)),
    "integers": of_type(lambda value: value.to(torch.int32)),
    "sparse tensors": of_type(lambda value: value.to_sparse()),
    "tensors without content": of_type(lambda value: value.to("meta")),
}
"""Name -> the bytes of a file that is no checkpoint of a network, from the network's weights.

{} is a folder.
"""
