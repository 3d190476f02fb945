"""Reads the golden values, see README.md."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent

BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


class LossCase(NamedTuple):
    """A loss for fixed inputs."""

    loss: str
    params: dict[str, Any]
    inputs: dict[str, Any]
    """Tensors, or lists of them, by name."""
    value: float
    grads: list[Tensor]
    """With respect to the student's inputs, in their order."""


@cache
def architectures() -> dict[str, dict[str, Any]]:
    """Family -> name -> values of a published architecture."""
    return json.loads((FOLDER / "models.json").read_text(encoding="utf-8"))


def state_dict_shapes(layers: list[str]) -> list[tuple[str, tuple[int, ...]]]:
    """The keys and shapes of a state dict, in order, from its `layers`."""
    found = []
    for layer in layers:
        module, kind, *rest = layer.split()
        if kind == "norm":
            found += [(f"{module}.{name}", (int(rest[0]),)) for name in BATCH_NORM]
            found.append((f"{module}.num_batches_tracked", ()))
            continue

        shape = tuple(int(size) for size in kind.split("x"))
        found.append((f"{module}.weight", shape))
        if rest == ["bias"]:
            found.append((f"{module}.bias", shape[:1]))
    return found


def loss_cases(loss: str) -> list[LossCase]:
    """The cases of a loss, as "kd"; all tensors in float64, labels in int64."""
    text = (FOLDER / "losses.json").read_text(encoding="utf-8")
    with np.load(FOLDER / "losses.npz") as arrays:
        return [
            LossCase(
                case["loss"],
                {name: value for name, value in case["params"].items() if name != "note"},
                {name: _tensors(arrays, value) for name, value in case["inputs"].items()},
                case["value"],
                _tensors(arrays, case["grads"]),
            )
            for case in json.loads(text)
            if case["loss"] == loss
        ]


def _tensors(arrays: Any, names: Any) -> Any:
    if isinstance(names, str):
        return torch.from_numpy(arrays[names])
    return [_tensors(arrays, name) for name in names]
