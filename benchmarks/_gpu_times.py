"""The slice "times": a step, an epoch and the whole recipe against the plain loop."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _cells import Pair
from _common import in_turn, make_trainer, with_cache
from _gpu_data import SIZES
from _gpu_record import OK, Record
from _gpu_setting import CHECKOUT, Figures, Part, Setting, teacher_file
from _stepping import ignore
from step import Ours, PlainLoop, fill_store, pictures_class

from edkd.dataset.cores import cores_by_affinity
from edkd.engine.captured_step import CapturedStep
from edkd.engine.checkpoint import LATEST
from edkd.engine.config.load import load_config
from edkd.engine.run import train
from edkd.engine.run_folder import run_folder
from edkd.models import published_weights

PAIRS = (Pair("resnet32x4", "resnet8x4"), Pair("resnet56", "resnet20"))
METHOD = "KD"
RECIPE = 240
"""Epochs of the published recipe."""

VIEWS = 162
"""Of an image, see `edkd.dataset.augment.CropFlip`."""


def times_parts(setting: Setting, record: Record) -> list[Part]:
    """Steps and epochs of each pair; the whole recipe of the first one, and ratios."""
    first, *others = (setting.pair,) if setting.small else PAIRS
    parts = short_parts(first, setting)
    parts += [
        Part(f"recipe, {cache}, {first}", partial(recipe, cache, first, setting))
        for cache in ("cache empty at the start", "cache full")
    ]
    ratio = partial(ratios, first, setting, record)
    parts.append(Part(f"ratios, {first}", ratio, after=(f"step, {first}",)))
    for pair in others:
        parts += short_parts(pair, setting)
    return parts


def short_parts(pair: Pair, setting: Setting) -> list[Part]:
    """Those of a pair that take a minute or two."""
    epoch = partial(epoch_times, pair, setting)
    return [
        Part(f"step, {pair}", partial(step_times, pair, setting)),
        Part(f"epoch, captured, {pair}", partial(epoch, True)),
        Part(f"epoch, eager, {pair}", partial(epoch, False)),
    ]


def dataset(setting: Setting) -> str:
    """CIFAR-100 where it is there, otherwise random images of its shape."""
    if setting.small:
        return setting.dataset
    is_there = (CHECKOUT / "data" / "cifar-100-python").is_dir()
    return "cifar100" if is_there else "random_cifar100"


# A step.


def step_times(pair: Pair, setting: Setting) -> Figures:
    """Milliseconds of a step of each kind, measured in turn in one process."""
    device = setting.device
    opts = [f"DATASET.TYPE={dataset(setting)}", f"SOLVER.BATCH_SIZE={setting.batch_size}"]
    make = partial(make_trainer, pair.student, pair.teacher, device=device, opts=opts)

    cached = [make(method=METHOD) for _ in range(2)]
    caches = [with_cache(trainer) for trainer in cached]
    memo = caches[0].memos[0]
    fill_store(memo)
    for cache in caches:
        cache.prepare(1, ignore)

    loops = {
        "student alone": Ours(make(method="NONE")),
        "student alone, captured": Ours(captured(make(method="NONE"), device)),
        "teacher in the step": Ours(make(method=METHOD)),
        "cache": Ours(cached[0]),
        "cache, captured": Ours(captured(cached[1], device)),
    }
    plain = [make(method=METHOD) for _ in range(2)]
    for workers, trainer in zip(worker_numbers(setting), plain, strict=True):
        distiller = trainer.distiller.to(memory_format=torch.contiguous_format)
        loops[f"plain loop, {workers} workers"] = PlainLoop(distiller, trainer, workers)

    # Each loop reaches full speed first: workers have started, graphs are captured.
    steps = 2 if setting.small else 96  # whole batches of the teacher
    for loop in loops.values():
        loop.run(steps)

    runs: dict[str, Callable[[], Any]] = {
        name: partial(loop.run, steps) for name, loop in loops.items()
    }
    some = memo.keys(1)[: steps * setting.batch_size]
    runs["teacher, to fill the cache"] = lambda: memo.fill(some, ignore)
    seconds = in_turn(runs, 1 if setting.small else 5, device)
    figures: dict[str, Any] = {f"{name} ms": 1e3 * each / steps for name, each in seconds.items()}
    return figures | {"images": dataset(setting), "plain loop reads": pictures_class().__name__}


def worker_numbers(setting: Setting) -> tuple[int, int]:
    """Processes that prepare images for the plain loop: as published, and as many as help."""
    return (1, 2) if setting.small else (2, max(3, min(8, cores_by_affinity())))


def captured(trainer: Any, device: torch.device) -> Any:
    """A trainer whose steps are CUDA graphs."""
    trainer.step = CapturedStep(trainer.train_step, trainer.update.optimizer, device, ignore)
    return trainer


# An epoch.


def epoch_times(pair: Pair, setting: Setting, is_captured: bool) -> Figures:
    """Seconds of a whole epoch of real runs: training, evaluation, checkpoints, logs."""
    kind_of_step = "captured" if is_captured else "eager"
    own = f"{pair.teacher}_{kind_of_step}"
    cache = setting.folder / "caches" / f"{own}_{time.time_ns()}"
    common = [f"SOLVER.CUDA_GRAPH={is_captured}", f"TEACHER_MEMO.FOLDER={cache}"]
    kinds = {
        "student alone": ["DISTILLER.TYPE=NONE"],
        "teacher in the step": ["TEACHER_MEMO.ENABLED=False"],
        "cache empty": [],
        "cache full": [],
    }
    figures: dict[str, Any] = {}
    for kind, words in kinds.items():
        name = f"epoch_{own}_{kind}_{time.time_ns()}".replace(" ", "_")
        epochs = 2 if setting.small else 3
        cfg = config(pair, setting, epochs, *common, *words, f"EXPERIMENT.NAME={name}")
        figures[f"{kind} s"] = seconds_of_epoch(cfg, setting)

    full = figures["cache full s"]
    teacher = figures["cache empty s"] - full
    views = VIEWS * (1 - (1 - 1 / VIEWS) ** RECIPE)  # expected number of views of an image
    figures[f"{RECIPE} epochs from these, cache full, min"] = RECIPE * full / 60
    figures["the same, cache empty, min"] = (RECIPE * full + views * teacher) / 60
    return figures


def seconds_of_epoch(cfg: Any, setting: Setting) -> float:
    """Mean seconds of an epoch after the first, in which kernels are chosen."""
    moments: list[float] = []
    train(cfg, (), setting.device, on_epoch=lambda record: moments.append(time.perf_counter()))
    return (moments[-1] - moments[0]) / (len(moments) - 1)


def config(pair: Pair, setting: Setting, epochs: int, *opts: str) -> Any:
    """A run of a pair by the published recipe: stages at 5/8, 3/4 and 7/8 of the epochs."""
    name = dataset(setting)
    num_classes = SIZES[name][2] if name in SIZES else 100
    stages = sorted({max(1, epochs * part // 8) for part in (5, 6, 7)})
    words = [
        f"DATASET.TYPE={name}",
        f"DISTILLER.TYPE={METHOD}",
        f"DISTILLER.TEACHER={pair.teacher}",
        f"DISTILLER.STUDENT={pair.student}",
        "DISTILLER.CHECK_TEACHER=False",
        f"SOLVER.EPOCHS={epochs}",
        f"SOLVER.LR_DECAY_STAGES={stages}".replace(" ", ""),
        f"SOLVER.BATCH_SIZE={setting.batch_size}",
        "SOLVER.CHECKPOINT_MINUTES=1",
        "LOG.WANDB=False",
        "LOG.PRINT=False",
        f"LOG.PREFIX={setting.folder / 'times'}",
    ]
    if not has_published_teacher(pair, name):
        file = teacher_file(pair.teacher, num_classes, setting.folder)
        words.append(f"DISTILLER.TEACHER_CKPT={file}")
    return load_config(opts=[*words, *opts])


def has_published_teacher(pair: Pair, name: str) -> bool:
    """Whether the teacher's published weights are here and fit the images."""
    weights = published_weights("cifar", pair.teacher)
    return name == "cifar100" and weights is not None and Path(weights).is_file()


# The recipe.


def recipe(cache: str, pair: Pair, setting: Setting) -> Figures:
    """Train by the whole recipe with captured steps; a run that was cut off is resumed."""
    epochs = 3 if setting.small else RECIPE
    title = f"recipe_{cache.replace(' ', '_')}"
    caches = setting.folder / "caches" / "recipe"
    words = ["SOLVER.CUDA_GRAPH=True", f"TEACHER_MEMO.FOLDER={caches}"]
    cfg = config(pair, setting, epochs, *words, f"EXPERIMENT.NAME={title}")
    folder = run_folder(cfg)
    if not (folder / "result.json").is_file():
        train(cfg, (), setting.device, resume=(folder / LATEST).is_file())

    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    training = sum(record["train_seconds"] for record in records)
    evaluation = sum(record["eval_seconds"] for record in records)
    return {
        "epochs": epochs,
        "minutes": (training + evaluation) / 60,
        "training, with the teacher's passes, min": training / 60,
        "evaluation, min": evaluation / 60,
        "last top-1": records[-1]["test_top1"],
        "teacher": "published" if has_published_teacher(pair, dataset(setting)) else "random",
    }


def ratios(pair: Pair, setting: Setting, record: Record) -> Figures:
    """How much longer the plain loop takes, from the parts before."""
    steps = record.parts[f"step, {pair}"]
    if steps["status"] != OK:
        return {"skipped": "the step was not measured"}

    names = [name for name in steps if name.startswith("plain loop") and name.endswith("ms")]
    figures = {}
    for name in names:
        for own in ("cache ms", "cache, captured ms"):
            figures[f"{name} / {own}"] = steps[name] / steps[own]
    best = min("cache ms", "cache, captured ms", key=lambda own: steps[own])
    alone = "student alone, captured ms" if "captured" in best else "student alone ms"
    figures["cache / student alone"] = steps[best] / steps[alone]

    full = record.parts.get(f"recipe, cache full, {pair}", {})
    if full.get("status") == OK and not setting.small:
        per_epoch = -(-50_000 // setting.batch_size)
        for name in names:
            minutes = steps[name] * per_epoch * RECIPE / 60_000
            figures[f"recipe, {name} / cache full"] = minutes / full["minutes"]
    return figures
