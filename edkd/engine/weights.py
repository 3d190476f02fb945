"""Loading weights from published, student and whole-run checkpoints into a network."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edkd.engine.checkpoint import load_checkpoint
from edkd.errors import UserError

_PLAIN_TYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a checkpoint into a model with the same keys and shapes.

    Files from before 2018 lack the batch norms' counters of batches, which are not used here.

    Raises:
        UserError: the file cannot be read (see `load_checkpoint`), or its weights belong to
            another architecture or number of classes.
    """
    checkpoint = load_checkpoint(path)
    entries = checkpoint.get("model", checkpoint)
    wanted = model.state_dict()
    is_own = _is_state_of(entries, wanted)
    weights = entries if is_own else _model_weights(entries)

    if not is_own and weights and all(re.match(r"\d+\.", key) for key in weights):
        raise UserError(
            f"{path} holds several students; name the file of one beside it, as student1_best "
            "or student_best"
        )

    counters = {key: value for key, value in wanted.items() if _is_counter(key)}
    weights = counters | weights
    _check_keys(path, wanted, weights)
    for key, tensor in wanted.items():
        _check_tensor(path, key, tensor, weights[key])
    model.load_state_dict(weights)


def _is_state_of(entries: Any, wanted: dict[str, Tensor]) -> bool:
    """Whether the entries are tensors under exactly the model's keys."""
    if not isinstance(entries, dict) or entries.keys() != wanted.keys():
        return False
    return all(isinstance(value, Tensor) for value in entries.values())


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _check_keys(path: Path, wanted: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    misfits = sorted(wanted.keys() ^ weights.keys())
    if not misfits:
        return
    lacks = "lacks" if misfits[0] in wanted else "has"
    raise UserError(
        f"{path} is of another architecture: it {lacks} {misfits[0]} (and {len(misfits) - 1} "
        "more keys differ); name the model that it was trained with"
    )


def _check_tensor(path: Path, key: str, wanted: Tensor, given: Tensor) -> None:
    if wanted.shape != given.shape:
        raise UserError(
            f"{path} is of another architecture or number of classes: {key} is "
            f"{tuple(given.shape)} there but {tuple(wanted.shape)} here; name the model and the "
            "data set that it was trained with"
        )
    if not _is_plain(given) or given.is_floating_point() != wanted.is_floating_point():
        raise UserError(
            f"{path}: {key} is not a plain tensor like {wanted.dtype}; replace the file"
        )


def _is_plain(tensor: Tensor) -> bool:
    is_dense = tensor.layout == torch.strided and not tensor.is_meta
    return is_dense and tensor.dtype in _PLAIN_TYPES


def _model_weights(entries: Any) -> dict[str, Tensor]:
    """The model's own tensors; in a whole run's checkpoint these are the student's."""
    if not isinstance(entries, dict):
        return {}

    weights = {
        str(key).removeprefix("module."): value
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }
    student = {
        key.removeprefix("student."): value
        for key, value in weights.items()
        if key.startswith("student.")
    }
    return student or weights
