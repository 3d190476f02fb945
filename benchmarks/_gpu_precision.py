"""The slice "precision": types of mixed precision; resume and repetition bit for bit."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from _cells import CellError, check_equal, stopped_after
from _gpu_data import SIZES
from _gpu_record import Record
from _gpu_setting import Figures, Part, Setting, require

from edkd.engine.run import train
from edkd.engine.run_folder import run_folder
from edkd.errors import UserError
from edkd.signals import Stopped

METHODS = ("KD", "DKD", "CRD", "REVIEWKD", "DML")
CLOSE = 0.2
"""Largest relative difference of the training loss to float32, after some epochs of few steps."""

EPOCHS = 4


def precision_parts(setting: Setting, record: Record) -> list[Part]:
    """For each method: precisions, repetition, resume."""
    methods = METHODS[:1] if setting.small else METHODS
    kinds = {"precisions": precisions, "repetition": repetition}
    kinds |= {"resume": partial(resume, "False"), "resume, captured": partial(resume, "True")}
    return [
        Part(f"{title}, {method}", partial(check, method, setting))
        for method in methods
        for title, check in kinds.items()
    ]


def precisions(method: str, setting: Setting) -> Figures:
    """The training loss in float32, bfloat16 and float16."""
    amps = ["off", "bf16"]
    if setting.device.type != "cpu":
        amps.append("fp16")
    found = {}
    for amp in amps:
        folder = run(method, setting, f"precision_{amp}", f"SOLVER.AMP={amp}")
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        found[amp] = json.loads(lines[-1])["train_loss"]

    for amp, loss in found.items():
        difference = abs(loss - found["off"]) / found["off"]
        require(difference <= CLOSE, f"the loss in {amp} is {loss}, in float32 {found['off']}")
    return found


def repetition(method: str, setting: Setting) -> Figures:
    """Two runs with SOLVER.DETERMINISTIC must be identical; without it they may differ."""
    figures: dict[str, Any] = {}
    for value in ("True", "False"):
        words = [f"SOLVER.DETERMINISTIC={value}"]
        try:
            folders = [run(method, setting, f"again_{value}_{n}", *words) for n in (1, 2)]
        except UserError as error:
            figures[f"DETERMINISTIC {value}"] = f"refused: {error}"
            continue
        difference = difference_of(*folders)
        figures[f"DETERMINISTIC {value}"] = difference or "identical"
        require(value == "False" or not difference, f"SOLVER.DETERMINISTIC: {difference}")
    return figures


def resume(captured: str, method: str, setting: Setting) -> Figures:
    """A run that is stopped within an epoch and resumed, against one that is not."""
    words = ["SOLVER.DETERMINISTIC=True", f"SOLVER.CUDA_GRAPH={captured}"]
    name = f"resume_{captured}"
    try:
        whole = run(method, setting, f"{name}_whole", *words)
    except UserError as error:
        return {"skipped": str(error)}

    steps = steps_of(setting) * EPOCHS // 2 + 1
    with stopped_after(steps):
        parts = run(method, setting, f"{name}_parts", *words)
    require(not (parts / "result.json").exists(), f"the run did not stop after {steps} steps")
    run(method, setting, f"{name}_parts", *words, is_resumed=True)

    difference = difference_of(whole, parts)
    require(not difference, f"the resumed run differs: {difference}")
    return {"stopped after steps": steps, "identical": True, "captured": captures(whole)}


# Parts.


def run(method: str, setting: Setting, name: str, *words: str, is_resumed: bool = False) -> Path:
    """Train, or resume; return the folder of the run. A run that was made before is replaced."""
    opts = [f"EXPERIMENT.NAME={method}_{name}", f"SOLVER.EPOCHS={EPOCHS}", *words]
    cfg = setting.config(method, *opts)
    folder = run_folder(cfg)
    if not is_resumed:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        train(cfg, (), setting.device, is_resumed)
    except Stopped as stopped:
        if type(stopped) is Stopped:  # a signal, not the stop of `stopped_after`
            raise
    return folder


def difference_of(one: Path, other: Path) -> str:
    """The first difference of two runs; "" where they are identical."""
    try:
        check_equal(one, other)
    except CellError as error:
        return str(error)
    return ""


def steps_of(setting: Setting) -> int:
    """Steps of an epoch."""
    return -(-SIZES[setting.dataset][0] // setting.batch_size)


def captures(folder: Path) -> bool:
    """Whether the steps of a run were those of a CUDA graph."""
    log = (folder / "worklog.txt").read_text(encoding="utf-8")
    settings = (folder / "config.yaml").read_text(encoding="utf-8")
    return "CUDA_GRAPH: true" in settings and "SOLVER.CUDA_GRAPH: off" not in log
