"""Looking at runs: their figures and files, and what two of them must have in common."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edkd.engine.checkpoint import load_checkpoint

CHECKOUT = Path(__file__).resolve().parents[1]

Record = dict[str, Any]


TINY_OPTIONS = {
    "DEIT": ["DISTILLER.STUDENT", "cifar/deit_micro_p8", "SOLVER.LR", "0.001"],
    "FITNET": ["FITNET.HINT_LAYER", "1"],
    "OFAKD": ["OFAKD.STAGES", "[3,4]"],
}
"""Options with which methods run with `narrow` and `wide` of tests/tiny_data.py."""

NEED_STAGES = ("KDSVD", "OFD")
"""Methods that need more stages than these networks have; tests/test_matrix.py runs them."""


def records(run: Path) -> list[Record]:
    """The lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def untimed(run: Path) -> list[Record]:
    """The same without seconds."""
    return [
        {key: value for key, value in record.items() if "seconds" not in key}
        for record in records(run)
    ]


def outcome(run: Path) -> tuple[list[Record], dict[str, Any], dict[str, Any]]:
    """What equal runs have in common, bit for bit: figures, weights, state of the optimizer."""
    state = load_checkpoint(run / "latest")
    return untimed(run), plain(state["model"]), plain(state["optimizer"])


def plain(value: Any) -> Any:
    """A nested value with the bytes of tensors in their places, so that == compares bits."""
    if isinstance(value, Tensor):
        bits = value.contiguous().flatten().view(torch.uint8)
        return str(value.dtype), tuple(value.shape), bits.numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return type(value), value


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, and a hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_refused(done: Any, message: str, code: int = 2) -> None:
    """An error in one line that has a pattern.

    Args:
        done: an Outcome of the fixture `tool`.
        message: a regular expression.
    """
    assert done.code == code, done
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("edkd: error: "), done.err
    assert re.search(message, done.err), done.err
