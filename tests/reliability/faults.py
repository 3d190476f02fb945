"""Faults to inject, and what is looked at afterwards."""

import json
import os
import signal
from pathlib import Path

import torch

from edkd.engine.checkpoint import load_checkpoint

STEPS = 9  # in an epoch of the run on digits
TRAIN = str(Path(__file__).resolve().parents[2] / "tools" / "train.py")


def outcome(folder: Path):
    """What two runs must have in common, bit by bit: figures, weights and the state of the optimizer."""
    state = load_checkpoint(folder / "latest")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figures = [{key: value for key, value in record.items() if "seconds" not in key} for record in records]
    slots = [value for slot in state["optimizer"]["state"].values() for value in slot.values()]
    tensors = [*state["model"].values(), *slots]
    return figures, [tensor.tolist() if isinstance(tensor, torch.Tensor) else tensor for tensor in tensors]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and what it holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill_at(monkeypatch, owner, name, call, number=signal.SIGTERM):
    """Send this process a signal within a call of a method, counted from 1."""
    method, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)
