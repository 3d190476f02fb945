"""The slice "processes": a run that torchrun starts, against one of a single process."""

import json
import math
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _gpu_record import Record
from _gpu_setting import Figures, Part, Setting, require, run_process

from edkd.engine.run_folder import run_folder

BENCHMARKS = Path(__file__).resolve().parent
METHODS = ("KD", "CRD", "DML")
LOSS = 0.02
"""Largest relative difference of a loss: only rounding differs, which training magnifies."""

TIMEOUT = 240.0
"""Seconds of a run."""


def processes_parts(setting: Setting, record: Record) -> list[Part]:
    """One part for each method."""
    methods = METHODS[:1] if setting.small else METHODS
    return [Part(name, partial(compare, name, setting)) for name in methods]


def compare(method: str, setting: Setting) -> Figures:
    """Train with two processes and with one."""
    number = 2
    if setting.device.type == "cuda" and torch.cuda.device_count() < number:
        return {"skipped": f"{torch.cuda.device_count()} GPU; NCCL needs two"}

    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    alone = trained([], method, setting, "alone")
    together = trained(torchrun, method, setting, "together")

    figures: dict[str, Any] = {"processes": number}
    for name in ("train_loss", "test_loss"):
        one, all_ = alone[name], together[name]
        require(math.isfinite(one), f"{name} of one process is {one}")
        require(abs(all_ - one) <= LOSS * abs(one), f"{name} is {all_}, of one process {one}")
        figures |= {f"{name} of one": one, f"{name} differs by": abs(all_ - one) / abs(one)}
    return figures | {"top-1 of one": alone["test_top1"], "top-1 of all": together["test_top1"]}


def trained(launcher: list[str], method: str, setting: Setting, name: str) -> dict[str, Any]:
    """Run the command `edkd train`; return the figures of its last epoch."""
    own = [f"EXPERIMENT.NAME={method}_processes_{name}", "SOLVER.AMP=off"]
    folder = run_folder(setting.config(method, *own))
    shutil.rmtree(folder, ignore_errors=True)

    words = ["-m", "edkd", "train", "--plugin", str(BENCHMARKS / "_gpu_data.py")]
    words += ["--device", setting.device.type, *setting.words(method), *own]
    done = run_process([sys.executable, *launcher, *words], TIMEOUT)
    require(done.returncode == 0, f"{name}: code {done.returncode}: {done.stderr.strip()[-800:]}")
    require((folder / "result.json").is_file(), f"{name}: no result.json in {folder}")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(lines[-1])
