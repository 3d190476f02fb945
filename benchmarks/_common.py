"""What the benchmarks share: a trainer on real images, a stopwatch, the machine in words."""

import atexit
import functools
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from edkd.dataset import get_dataset
from edkd.distillers import distiller_dict
from edkd.engine.checkpoint import load_weights
from edkd.engine.load_cfg import load_cfg
from edkd.engine.run import build_student
from edkd.engine.teacher_memo import TeacherMemo, remember
from edkd.engine.trainer import Trainer
from edkd.models import get_model, published_weights


def machine(device: torch.device) -> str:
    """Hardware and versions, in a line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    threads = f"{torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return ", ".join(filter(None, [name, threads, f"torch {torch.__version__}", f"Python {platform.python_version()}"]))


def make_trainer(student: str, teacher: str, method: str, device: torch.device, opts: Sequence[str] = ()) -> Trainer:
    """A trainer on CIFAR-100 in a temporary folder; the teacher has its published weights where they are there."""
    folder = temporary_folder()
    words = ["DISTILLER.TYPE", method, "DISTILLER.TEACHER", teacher, "DISTILLER.STUDENT", student]
    cfg = load_cfg(opts=[*words, "LOG.WANDB", "False", "LOG.PREFIX", str(folder), *opts])
    data = get_dataset(cfg, device)
    torch.manual_seed(0)
    network, frozen = build_student(cfg, data), None
    if distiller_dict[method].needs_teacher:
        frozen = get_model("cifar", teacher, data.num_classes)
        if (weights := Path(published_weights("cifar", teacher) or "")).is_file():
            load_weights(frozen, weights)
        else:
            tell_once(f"(no published weights of {teacher} here: its weights are random, which changes no time)")
    distiller = distiller_dict[method](network, frozen, cfg).to(device).to(memory_format=torch.channels_last)
    return Trainer(cfg, distiller, data, folder, device)


@functools.cache
def tell_once(line: str) -> None:
    """`say`, the first time."""
    say(line)


def temporary_folder() -> Path:
    """A folder that is gone when the process ends."""
    folder = tempfile.mkdtemp(prefix="edkd-benchmark-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def with_memo(trainer: Trainer) -> TeacherMemo:
    """Give a trainer its teacher memo; it is empty."""
    trainer.memo = remember(
        trainer.distiller, trainer.data.train, trainer.cfg, trainer.device, trainer.amp, [1], lambda line: None
    )
    assert trainer.memo is not None
    return trainer.memo


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(runs: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each of some functions, called in turn (A B A B) after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def timed(owner: Any, name: str) -> Callable[[], float]:
    """Replace a method of an object by one that adds up its seconds; returns what reads the sum."""
    method, total = getattr(owner, name), [0.0]

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            total[0] += time.perf_counter() - start

    setattr(owner, name, call)
    return lambda: total[0]


def anonymous_memory() -> float:
    """Resident anonymous memory of this process (RssAnon), MiB; NaN where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def say(line: str = "") -> None:
    """A line of the result."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
