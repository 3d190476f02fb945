"""Hashes that tell one data set from another, for `DataInfo.identity`.

They are the same on every machine and in every folder, and quick to compute.
"""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from edkd.dataset.inspection import dataset_targets
from edkd.dataset.listing import combined, in_threads, portable

SAMPLED = 4096
"""Rows of a tensor that are hashed, evenly spaced; of a smaller tensor all."""

MEASURED = 100_000
"""Files of a data set of the user whose sizes are read."""


def tensor_hash(tensor: Tensor) -> str:
    """A hash of a tensor's form and of some of its rows."""
    step = max(1, len(tensor) // SAMPLED) if tensor.dim() else 1
    sample = tensor[::step] if tensor.dim() else tensor
    values = sample.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()

    form = f"{tuple(tensor.shape)} {tensor.dtype}"
    return hashlib.sha256(form.encode() + values.tobytes()).hexdigest()


def dataset_hash(dataset: Any) -> str:
    """A hash of what is known about a data set of the user without reading images; "" if nothing.

    Covered are the tensors of a TensorDataset, the indices of a Subset, and attributes `targets`
    and `samples`, which has the paths of files, as in torchvision's data sets.
    """
    parts = []
    while isinstance(dataset, Subset):
        parts.append(tensor_hash(torch.as_tensor(dataset.indices)))
        dataset = dataset.dataset

    if isinstance(dataset, TensorDataset):
        strided = [each for each in dataset.tensors if each.layout == torch.strided]
        parts += [tensor_hash(tensor) for tensor in strided]
    else:
        targets = dataset_targets(dataset)
        parts += [] if targets is None else [tensor_hash(targets)]
        parts += _files_hash(dataset)
    return combined(*parts) if parts else ""


def _files_hash(dataset: Any) -> list[str]:
    """A hash of the paths below `root` and of the sizes, if a data set has `samples` and `root`."""
    root = getattr(dataset, "root", None)
    samples = getattr(dataset, "samples", None)
    if not isinstance(root, (str, os.PathLike)) or not isinstance(samples, Sequence):
        return []

    try:
        names = [os.path.relpath(path, root) for path, _ in samples]
    except (TypeError, ValueError):  # samples of another form, or on another drive
        return []
    sizes = in_threads(_size, [path for path, _ in samples[:MEASURED]])
    return [hashlib.sha256(portable(names)).hexdigest(), combined(sizes)]


def _size(path: str) -> int:
    """Of a file in bytes; -1 where there is none."""
    try:
        return os.path.getsize(path)
    except OSError:
        return -1
