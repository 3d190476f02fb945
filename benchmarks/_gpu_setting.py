"""What the slices share: networks, data, configurations, a trainer that is ready for steps."""

import functools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _cells import Pair, network_words, variants
from _gpu_data import SIZES, random_images
from _stepping import forever, ready_trainer
from torch import Tensor, nn

from edkd.dataset.augment import Normalize
from edkd.engine.captured_step import CapturedStep
from edkd.engine.checkpoint import save_checkpoint
from edkd.engine.config.load import load_config
from edkd.engine.trainer import Trainer
from edkd.models import get_model

CHECKOUT = Path(__file__).resolve().parents[1]
BATCH_SIZE = 64
FEW_METHODS = ("KD", "DKD", "CRD", "KD SOLVER.TRAINER=dot")
"""Those of the small form."""

Figures = Mapping[str, Any]
"""What a part finds, by name; with "skipped" the reason why it did not run."""


class Part(NamedTuple):
    """A part of a slice, which takes a few minutes at most."""

    name: str
    run: Callable[[], Figures]
    after: tuple[str, ...] = ()
    """Parts whose results it needs: it runs only where these are done."""


class CheckError(Exception):
    """A figure is not what it must be."""


class Setting(NamedTuple):
    """Where and how the slices run."""

    device: torch.device
    small: bool
    folder: Path
    """Of runs, caches and weights."""

    @property
    def pair(self) -> Pair:
        """The networks of all checks."""
        return Pair("resnet14", "resnet8") if self.small else Pair("resnet56", "resnet20")

    @property
    def dataset(self) -> str:
        """The images of all checks."""
        return "random_few" if self.small else "random_some"

    @property
    def batch_size(self) -> int:
        """Of all checks; the last batch of an epoch has another size in the small form."""
        return 16 if self.small else BATCH_SIZE

    def methods(self) -> list[str]:
        """The variants that are checked."""
        return list(FEW_METHODS) if self.small else variants()

    def config(self, variant: str, *opts: str) -> Any:
        """A configuration of a variant with the networks and images of all checks."""
        return load_config(opts=[*self.words(variant), *opts])

    def words(self, variant: str) -> list[str]:
        """The same as KEY=VALUE."""
        method = variant.split()[0]
        num_classes = SIZES[self.dataset][2]
        words = [
            f"DATASET.TYPE={self.dataset}",
            f"DISTILLER.TYPE={method}",
            f"SOLVER.BATCH_SIZE={self.batch_size}",
            "SOLVER.EPOCHS=2",
            "SOLVER.LR_DECAY_STAGES=[1]",
            "SOLVER.LR=0.01",
            "DISTILLER.CHECK_TEACHER=False",
            "LOG.WANDB=False",
            "LOG.PRINT=False",
            "LOG.TENSORBOARD_FREQ=0",
            f"LOG.PREFIX={self.folder / 'runs'}",
        ]
        teacher = functools.partial(teacher_file, self.pair.teacher, num_classes, self.folder)
        words += network_words(method, self.pair, teacher)
        return [*words, *variant.split()[1:]]


def teacher_file(name: str, num_classes: int, folder: Path) -> Path:
    """Random weights of a network with the batch statistics of the images; made once."""
    path = folder / "teachers" / f"{name}_{num_classes}"
    if path.is_file():
        return path

    torch.manual_seed(0)
    network = get_model("cifar", name, num_classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches, of which there is one
    images = random_images(64, num_classes, 2)
    normalize = Normalize((0.5,) * 3, (0.25,) * 3, torch.device("cpu"))
    with torch.no_grad():
        network.train()(normalize(images.image))

    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint({"model": network.state_dict()}, path)
    return path


class Stepper(NamedTuple):
    """A trainer and its steps."""

    trainer: Trainer
    inputs: Iterator[tuple[Tensor, ...]]
    said: list[str]
    """Lines of the captured step for the log."""

    def run(self, steps: int) -> list[Tensor]:
        """Some steps of the first epoch; the loss of each."""
        losses = []
        for number in range(steps):
            self.trainer.update.set_learning_rate(0.01 / (1 + number % 10))
            terms, _, _ = self.trainer.step(1, *next(self.inputs))
            losses.append(terms["loss"].detach().clone())
        return losses

    def captures(self) -> bool:
        """Whether the steps are those of a CUDA graph."""
        step = self.trainer.step
        return isinstance(step, CapturedStep) and step.works and bool(step.captures)


def stepper(cfg: Any, setting: Setting, captured: bool) -> Stepper:
    """A trainer with a full teacher cache, eager or captured."""
    trainer = ready_trainer(cfg, setting.folder / "unused", setting.device)
    said: list[str] = []
    if captured:
        trainer.step = CapturedStep(
            trainer.train_step, trainer.update.optimizer, setting.device, said.append
        )
    return Stepper(trainer, forever(trainer.data), said)


def run_process(command: Sequence[str], seconds: float) -> "subprocess.CompletedProcess[str]":
    """Run a command in the checkout; when this ends early, so do all of its processes.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    process = subprocess.Popen(
        command,
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, error = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return subprocess.CompletedProcess(command, process.returncode, out, error)


@contextmanager
def full_float32() -> Iterator[None]:
    """Within the block, float32 products on CUDA are not rounded to TF32."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, in float64 on the CPU."""
    found = found.detach().double().cpu()
    expected = expected.detach().double().cpu()
    largest = expected.norm().clamp(min=1e-12)
    return ((found - expected).norm() / largest).item()


def require(holds: bool, text: str) -> None:
    """Raise CheckError with a text where something does not hold."""
    if not holds:
        raise CheckError(text)
