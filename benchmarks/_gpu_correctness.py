"""The slice "correctness": a device against the CPU, part by part."""

import copy
import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from _gpu_packages import is_installed
from _gpu_record import Record
from _gpu_setting import (
    Figures,
    Part,
    Setting,
    full_float32,
    relative,
    require,
    run_process,
)
from _stepping import ignore, ready_trainer
from torch import Tensor

from edkd.dataset.randaugment import FORMS
from edkd.dataset.sampling import seed_everything
from edkd.distillers import Distiller, prepare_batch
from edkd.engine.build import build_data, build_distiller, build_trainer
from edkd.engine.captured_step import host_random_states
from edkd.engine.collection import collect
from edkd.engine.evaluate import evaluate
from edkd.engine.memo.cache import attach
from edkd.errors import UserError
from edkd.types import Batch

CPU = torch.device("cpu")

LOSS = 1e-3
"""Largest relative difference of a loss in float32 to the same in float64 on the CPU."""

GRADIENT = 2e-2
"""The same of the gradient of all parameters, as |difference| / |gradient|."""

ROUNDING = 4.0
"""Largest multiple of the difference that float32 on the CPU has, where that is larger."""

LOGITS = 1e-4
"""The same between the logits of batches of different sizes, in float32."""

TESTS = ("tests/engine/test_captured_step.py", "tests/commands/test_train.py")
"""Files of the tests that need CUDA."""

CHOSEN = "cuda_trains or captured_and_eager or after_a_capture"
"""Parts of the names of these tests."""


def correctness_parts(setting: Setting, record: Record) -> list[Part]:
    """Views, cache and accuracy; the losses of each method; the tests."""
    methods = [variant for variant in setting.methods() if "SOLVER.TRAINER" not in variant]
    return [
        Part("views", partial(views, setting)),
        Part("teacher cache", partial(teacher_cache, setting)),
        Part("accuracy", partial(accuracy, setting)),
        *(Part(f"losses of {name}", partial(losses, name, setting)) for name in methods),
        Part("tests", partial(tests, setting)),
    ]


# Data, cache, evaluation.


def views(setting: Setting) -> Figures:
    """Each kind of view on the device and on the CPU, for the same numbers."""
    figures = {}
    for form in FORMS:
        cfg = setting.config("MLKD", f"DATASET.STRONG_FORM={form}")
        batches = []
        for device in (CPU, setting.device):
            loader = build_data(cfg, device).train
            batches.append(loader.batch(*next(loader.inputs(1))))

        for name, view in batches[0].views.items():
            difference = (view.image - batches[1].views[name].image.cpu()).abs().amax((1, 2, 3))
            share = (difference > 0).double().mean().item()
            figures[f"share of images that differ, {name}, {form}"] = share
            require(name != "weak" or share == 0, "weak views differ from those of the CPU")
            require(share <= 0.05, f"{share:.0%} of the {name} views differ from those of the CPU")
    return figures


def teacher_cache(setting: Setting) -> Figures:
    """Fill the cache on the device, read it back, and compare with the teacher in the step."""
    with full_float32():
        cfg = setting.config("KD", "SOLVER.AMP=off", f"TEACHER_MEMO.FOLDER={fresh(setting)}")
        trainer = ready_trainer(cfg, setting.folder / "unused", setting.device)
        assert trainer.train_step.cache is not None
        (memo,) = trainer.train_step.cache.memos
        first = memo.tables["logits"].clone()

        # Another process would find the rows in the store.
        again = attach(
            trainer.distiller,
            trainer.data.train,
            cfg,
            setting.device,
            trainer.amp,
            range(1, 2),
            ignore,
        )
        assert again is not None
        found = again.memos[0].store.contains().sum().item()
        again.prepare(1, ignore)
        replayed = again.memos[0].tables["logits"]

        inputs = next(trainer.data.train.inputs(1))
        batch = trainer.data.train.batch(*inputs)
        with torch.no_grad():
            live, _ = trainer.distiller.teachers()[0](batch.image)
        difference = relative(replayed[batch.index], live)

    require(torch.equal(first, replayed), "the logits that were read are not those stored")
    require(difference <= LOGITS, f"cached logits differ from the teacher's by {difference:.1e}")
    return {"rows": int(found), "replay identical": True, "cache against teacher": difference}


def fresh(setting: Setting) -> Path:
    """A folder for a teacher cache that is empty."""
    number = len(list(setting.folder.glob("cache*")))
    folder = setting.folder / f"cache{number}"
    folder.mkdir(parents=True)
    return folder


def accuracy(setting: Setting) -> Figures:
    """Top-1, top-5 and loss of the same network on the device and on the CPU."""
    cfg = setting.config("KD", "SOLVER.AMP=off")
    found = []
    with full_float32():
        for device in (CPU, setting.device):
            data = build_data(cfg, device)
            network = build_distiller(cfg, data).teachers()[0].to(device).eval()
            found.append(evaluate(lambda image, n=network: n(image)[0], data.test))

    expected, reached = found
    difference = abs(reached["loss"] - expected["loss"]) / expected["loss"]
    images = 100 / data.test.num_images
    require(difference <= LOSS, f"the loss is {reached['loss']}, on the CPU {expected['loss']}")
    for name in ("top1", "top5"):
        is_near = abs(reached[name] - expected[name]) <= 1.01 * images
        require(is_near, f"{name} is {reached[name]}, on the CPU {expected[name]}")
    return {"top1": reached["top1"], "on the CPU": expected["top1"], "loss differs by": difference}


# Losses and gradients.


class Terms(NamedTuple):
    """The result of a forward and a backward pass."""

    losses: dict[str, Tensor]
    gradient: Tensor
    """Of all parameters, (P,), float64 on the CPU."""
    draws: bool
    """Whether random numbers were drawn."""


def losses(variant: str, setting: Setting) -> Figures:
    """Each term and the gradient of one batch: float32 on the device, float64 on the CPU."""
    try:
        distiller, batch = on_cpu(variant, setting)
    except UserError as error:  # as of a method that cannot use these networks
        return {"skipped": str(error)}

    with full_float32():
        reached = terms(distiller, batch, setting.device, torch.float32)
    own = terms(distiller, batch, CPU, torch.float32)
    expected, kind = reference(distiller, batch, own)
    require(reached.losses.keys() == expected.losses.keys(), "the terms have other names")
    require(bool(reached.gradient.isfinite().all()), "the gradient is not finite")
    if expected.draws or reached.draws:
        return {"compared": "no, random numbers are drawn; finite"}

    # The rounding of float32 on the CPU is allowed on the device, too.
    found = differences(reached, expected)
    rounding = differences(own, expected)
    figures = {"against": kind, "losses differ by": found[0], "gradient by": found[1]}
    figures |= {"float32 on the CPU": rounding[0], "its gradient": rounding[1]}
    for value, other, limit in zip(found, rounding, (LOSS, GRADIENT), strict=True):
        require(value <= max(limit, ROUNDING * other), f"too large: {figures}")
    return figures


def differences(found: Terms, expected: Terms) -> tuple[float, float]:
    """The largest relative difference of a term, and that of the gradient.

    Terms that are 0 to rounding, as those that begin in a later epoch, are left out.
    """
    names = [name for name, loss in expected.losses.items() if loss.abs() > 1e-6]
    of_losses = [relative(found.losses[name], expected.losses[name]) for name in names]
    return max(of_losses, default=0.0), relative(found.gradient, expected.gradient)


def on_cpu(variant: str, setting: Setting) -> tuple[Distiller, Batch]:
    """A method on the CPU in training mode, and the first batch of the first epoch."""
    cfg = setting.config(variant, "SOLVER.AMP=off")
    data = build_data(cfg, CPU)
    distiller = build_distiller(cfg, data)
    build_trainer(cfg, data, distiller, setting.folder / "unused", CPU)
    if distiller.collects:
        collect(distiller, data.train, None, None, CPU, ignore)

    distiller.train()
    distiller.start_epoch(1)
    batch = data.train.batch(*next(data.train.inputs(1)))
    return distiller, dataclasses.replace(batch, epoch=1)


def reference(distiller: Distiller, batch: Batch, own: Terms) -> tuple[Terms, str]:
    """The terms on the CPU in float64; those in float32 where parts of a method have that type."""
    try:
        return terms(distiller, batch, CPU, torch.float64), "float64"
    except RuntimeError:
        return own, "float32"


def terms(distiller: Distiller, batch: Batch, device: torch.device, dtype: torch.dtype) -> Terms:
    """Run a copy of a method once, forward and backward."""
    distiller = copy.deepcopy(distiller).to(device).to(dtype)
    batch = moved(batch, device, dtype)
    batch = prepare_batch(distiller, batch)
    seed_everything(0)
    before = random_states(device)
    _, found = distiller.training_step(batch)
    draws = random_states(device) != before

    named = {name: loss.mean() for name, loss in found.items()}
    torch.stack(list(named.values())).sum().backward()
    reached = [p.grad for p in distiller.parameters() if p.grad is not None]
    gradients = [gradient.flatten().double().cpu() for gradient in reached]
    values = {name: loss.detach().double().cpu() for name, loss in named.items()}
    return Terms(values, torch.cat(gradients), draws)


def moved(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """A batch on a device in a floating type."""
    views = {
        name: view._replace(image=view.image.to(device, dtype), number=view.number.to(device))
        for name, view in batch.views.items()
    }
    first = next(iter(views.values()))
    return dataclasses.replace(
        batch,
        image=first.image,
        target=batch.target.to(device),
        index=batch.index.to(device),
        views=views,
    )


def random_states(device: torch.device) -> bytes:
    """The states of all generators, to compare."""
    own = b""
    if device.type == "cuda":
        own = bytes(torch.cuda.get_rng_state(device).tolist())
    return host_random_states() + own


# The tests of the suite.


def tests(setting: Setting) -> Figures:
    """Run those tests that need CUDA."""
    if setting.device.type != "cuda":
        return {"skipped": f"the device is {setting.device}"}
    absent = [name for name in ("pytest", "PIL", "sklearn") if not is_installed(name)]
    if absent:
        return {"skipped": f"no {', '.join(absent)} here"}

    command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider"]
    done = run_process([*command, *TESTS, "-k", CHOSEN], seconds=400)
    summary = done.stdout.strip().splitlines()[-1:] or [done.stderr.strip()[-200:]]
    require(done.returncode == 0, f"pytest: {summary[0]}: {done.stdout[-1500:]}")
    return {"pytest": summary[0]}
