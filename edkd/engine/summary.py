"""The first and the last line of a run, and its result: the last and the best epoch."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from edkd import world
from edkd.dataset import DataSet
from edkd.distillers import Distiller
from edkd.engine.best import best_record, leading_student, top1_key
from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.config.compare import identifying
from edkd.engine.config.scalars import as_list
from edkd.engine.log.background import Record
from edkd.engine.log.final import is_accuracy
from edkd.engine.run_state import RunState
from edkd.engine.weight_average import STATE

Evaluate = Callable[[str], dict[str, float]]
"""Figures of the distiller on a split, "val" or "test"."""


def headline(
    cfg: CfgNode,
    distiller: Distiller,
    data: DataSet,
    split: str,
    hardware: str,
    state: RunState,
    folder: Path,
) -> str:
    """The first line of a run."""
    names = " + ".join(distiller.student_names(cfg))
    if distiller.needs_teacher:
        teachers = " + ".join(as_list(cfg.DISTILLER.TEACHER))
        names = f"{teachers} -> {names}"

    done = state.epochs_done
    epochs = cfg.SOLVER.EPOCHS
    span = f"epochs {done + 1}-{epochs}" if done < epochs else f"all {epochs} epochs are done"
    if state.step_done:
        span += f" from step {state.step_done + 1}"
    if cfg.SOLVER.DETERMINISTIC:
        hardware += " deterministic"

    images = data.train.num_images
    chosen_by = getattr(data, split).num_images
    parts = [
        cfg.DISTILLER.TYPE,
        names,
        f"{cfg.DATASET.TYPE}: {images} training images, {data.num_classes} classes",
        f"best epoch chosen by {chosen_by} images ({split})",
        hardware,
        span,
        str(folder),
    ]
    return "  ".join(parts)


def last_line(result: dict[str, Any], folder: Path) -> str:
    """The last line of a run."""
    tops = [key for key in result if is_accuracy(key)]
    reached = "  ".join(f"{key} {result[key]:.2f}" for key in tops)
    best = f"epoch {result['best_epoch']}"
    if "best_student" in result:
        best += f", {result['best_student']}"
    return f"{reached}  (best: {best})  {folder}"


def identity(cfg: CfgNode, distiller: Distiller) -> dict[str, Any]:
    """What is trained: method, teacher ("" for none), students, data set, seed."""
    return {
        "method": cfg.DISTILLER.TYPE,
        "teacher": cfg.DISTILLER.TEACHER if distiller.needs_teacher else "",
        "student": distiller.student_names(cfg),
        "dataset": cfg.DATASET.TYPE,
        "seed": cfg.SOLVER.SEED,
    }


def summarise(
    cfg: CfgNode,
    distiller: Distiller,
    history: list[Record],
    split: str,
    folder: Path,
    evaluate: Evaluate,
) -> dict[str, Any]:
    """The content of `result.json`.

    With several students, each has its own best epoch. Where a held-out split chose the best epoch,
    the last and the best weights are evaluated on the test set here, for the first time; with
    DATASET.TEST.EVALUATE False they are not.
    """
    students = distiller.students()
    last = history[-1]
    best = best_record(history, top1_key(split))

    result: dict[str, Any] = {
        **identity(cfg, distiller),
        "parameters": sum(p.numel() for p in distiller.student.parameters()),
        "extra_parameters": distiller.get_extra_parameters(),
        "epochs": len(history),
        "best_epoch": best["epoch"],
    }
    if cfg.SOLVER.EMA:
        result["averaged_weights"] = cfg.SOLVER.EMA

    # Accuracies on the split that chose the best epoch.
    own_keys = {name: top1_key(split, name) for name in students}
    keys = [key for key in last if key.startswith(split) and key.endswith("top1")]
    result |= {f"last_{key}": last[key] for key in keys}
    if len(students) > 1:
        result["best_student"] = _best_student(cfg, distiller, history, own_keys)
    for key in keys:
        record = best_record(history, key) if key in own_keys.values() else best
        result[f"best_{key}"] = record[key]

    if split == "val" and cfg.DATASET.TEST.EVALUATE:
        result |= _test_figures(distiller, folder, evaluate)
    return result | {"settings": identifying(cfg)}


def _best_student(
    cfg: CfgNode, distiller: Distiller, history: list[Record], keys: dict[str, str]
) -> str:
    """The student whose weights are in `student_best`, with its architecture."""
    leader = leading_student(history, keys)
    names = dict(zip(distiller.students(), distiller.student_names(cfg), strict=True))
    return f"{leader} ({names[leader]})"


def _test_figures(distiller: Distiller, folder: Path, evaluate: Evaluate) -> dict[str, float]:
    """Top-1 accuracies on the test set: last_test_top1, best_test_top1, ..."""
    students = distiller.students()
    figures = {"last": evaluate("test")}

    # The ensemble is that of one epoch, the one with the best mean.
    together: dict[str, float] = {}
    if len(students) > 1:
        checkpoint = world.from_first(lambda: load_checkpoint(folder / "best"))
        trained = checkpoint["model"] | checkpoint.get(STATE, {})
        distiller.load_state_dict(distiller.state_dict() | trained)
        together = evaluate("test")

    for name, student in students.items():
        content = world.from_first(functools.partial(load_checkpoint, folder / f"{name}_best"))
        student.load_state_dict(content["model"])
    own = tuple(students)
    figures["best"] = evaluate("test")
    figures["best"] |= {key: value for key, value in together.items() if not key.startswith(own)}

    return {
        f"{which}_test_{key}": value
        for which, reached in figures.items()
        for key, value in reached.items()
        if key.endswith("top1")
    }
