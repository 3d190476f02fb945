"""What the benchmarks share: a trainer on real images, a stopwatch, facts about the machine."""

import atexit
import functools
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

from edkd.dataset.cores import cores_by_affinity
from edkd.distillers import construct, find_method
from edkd.engine.build import build_data, build_trainer
from edkd.engine.config.load import load_config
from edkd.engine.environment import device_name
from edkd.engine.memo.cache import TeacherCache, attach
from edkd.engine.networks import build_students
from edkd.engine.trainer import Trainer
from edkd.engine.weights import load_weights
from edkd.models import get_model, published_weights


def machine(device: torch.device) -> str:
    """Hardware and versions, in a line."""
    parts = [device_name(device)]
    if device.type == "cpu":
        parts.append(f"{cores_by_affinity()} cores, {torch.get_num_threads()} threads")
    parts += [f"torch {torch.__version__}", f"Python {platform.python_version()}"]
    return ", ".join(parts)


def make_trainer(
    student: str, teacher: str, method: str, device: torch.device, opts: Sequence[str] = ()
) -> Trainer:
    """A trainer on CIFAR-100 in a temporary folder; the teacher has its published weights."""
    folder = temporary_folder()
    words = ["DISTILLER.TYPE", method, "DISTILLER.TEACHER", teacher]
    words += ["DISTILLER.STUDENT", student, "LOG.WANDB", "False", "LOG.PREFIX", str(folder)]
    cfg = load_config(opts=[*words, *opts])
    data = build_data(cfg, device)

    torch.manual_seed(0)
    cls = find_method(method)
    students = build_students(cfg, data)
    network = torch.nn.ModuleList(students) if cls.is_cohort else students[0]
    frozen = load_teacher(teacher, data.num_classes) if cls.needs_teacher else None
    distiller = construct(cls, network, frozen, cfg, data.info)
    return build_trainer(cfg, data, distiller, folder, device)


def load_teacher(name: str, num_classes: int) -> torch.nn.Module:
    """A teacher with its published weights; random ones where they are not here."""
    teacher = get_model("cifar", name, num_classes)
    weights = Path(published_weights("cifar", name) or "")
    if weights.is_file():
        load_weights(teacher, weights)
    else:
        say_once(f"(no published weights of {name} here: random weights, which changes no time)")
    return teacher


def with_cache(trainer: Trainer) -> TeacherCache:
    """Give a trainer its teacher cache; it is empty."""
    trainer.train_step.cache = attach(
        trainer.distiller,
        trainer.data.train,
        trainer.cfg,
        trainer.device,
        trainer.amp,
        range(1, 2),
        lambda line: None,
    )
    assert trainer.train_step.cache is not None
    return trainer.train_step.cache


def temporary_folder() -> Path:
    """A folder that is removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="edkd-benchmark-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def wait(device: torch.device) -> None:
    """Until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(
    runs: dict[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of functions called in turn (A B A B); the first round is a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            wait(device)
            start = clock()
            run()
            wait(device)
            seconds[name].append(clock() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def timed(owner: Any, name: str) -> Callable[[], float]:
    """Replace a method of an object by one that adds up its seconds; return a reader of the sum."""
    method = getattr(owner, name)
    total = [0.0]

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            total[0] += time.perf_counter() - start

    setattr(owner, name, call)
    return lambda: total[0]


def anonymous_memory() -> float:
    """Resident anonymous memory of this process (RssAnon), MiB; NaN where it is not known."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def say(line: str = "") -> None:
    """Print a line of the result."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@functools.cache
def say_once(line: str) -> None:
    """`say`, the first time."""
    say(line)
