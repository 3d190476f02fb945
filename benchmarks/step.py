"""A step of ours, with and without a teacher, against the plain loop of the field, in turn.

python benchmarks/step.py [--pair TEACHER:STUDENT] [--method NAME] [--device DEVICE] [--rounds N]
                          [--steps N]

The baseline is the plain loop: torchvision's transforms on PIL images in a DataLoader with 2
workers, the teacher in every step, float32, eager, two figures read in every step. It runs the same
networks and the same method.
"""

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from _common import in_turn, machine, make_trainer, say, with_cache
from torch.utils.data import DataLoader, Dataset

from edkd.commands._command_line import ArgumentParser, run_command
from edkd.distillers import Distiller
from edkd.engine.device import keep_freed_memory, pick_device, precision_name
from edkd.engine.memo.memo import TeacherMemo
from edkd.engine.meter import Meter
from edkd.engine.trainer import Trainer

PAIRS = ("resnet32x4:resnet8x4", "resnet56:resnet20")

LIMITS_OF_GLIBC = {-4: 65536, -3: 32 * 2**20, -1: 64 * 2**20}
"""M_MMAP_MAX, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of `mallopt(3)`, in blocks, bytes, bytes: the
default number, and the highest thresholds that glibc reaches by itself."""


class PilImages(Dataset):
    """CIFAR-100 as torchvision serves it."""

    def __init__(self, image: np.ndarray, target: list[int]) -> None:
        from torchvision import transforms

        self.image = image
        self.target = target
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
            ]
        )

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int) -> tuple[Any, int, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.image[index])), self.target[index], index


class ArrayImages(PilImages):
    """The same views by NumPy, for machines without torchvision."""

    def __init__(self, image: np.ndarray, target: list[int]) -> None:
        self.image = image
        self.target = target
        self.random = np.random.default_rng()
        self.mean = np.float32((0.5071, 0.4867, 0.4408))
        self.std = np.float32((0.2675, 0.2565, 0.2761))

    def __getitem__(self, index: int) -> tuple[Any, int, int]:
        top, left, is_flipped = self.random.integers((9, 9, 2))
        padded = np.pad(self.image[index], ((4, 4), (4, 4), (0, 0)))
        crop = padded[top : top + 32, left : left + 32]
        if is_flipped:
            crop = crop[:, ::-1]
        image = (crop.astype(np.float32) / 255 - self.mean) / self.std
        return torch.from_numpy(image.transpose(2, 0, 1).copy()), self.target[index], index


def pictures_class() -> type[PilImages]:
    """The images of the plain loop; those of torchvision where it is installed."""
    names = ("torchvision", "PIL")
    is_installed = all(importlib.util.find_spec(name) for name in names)
    return PilImages if is_installed else ArrayImages


class PlainLoop:
    """The baseline.

    Args:
        workers: processes that prepare images.
    """

    def __init__(self, distiller: Distiller, trainer: Trainer, workers: int = 2) -> None:
        images = trainer.data.train.images
        solver = trainer.cfg.SOLVER
        pixels = images.image.permute(0, 2, 3, 1).cpu().numpy()
        pictures = pictures_class()(pixels, images.target.tolist())
        self.loader = DataLoader(pictures, solver.BATCH_SIZE, shuffle=True, num_workers=workers)
        self.distiller = distiller
        self.device = trainer.device
        self.optimizer = torch.optim.SGD(
            distiller.get_learnable_parameters(),
            solver.LR,
            solver.MOMENTUM,
            weight_decay=solver.WEIGHT_DECAY,
        )
        self.batches = self.forever()
        distiller.train()

    def forever(self) -> Iterator[Any]:
        """Batches without end."""
        while True:
            yield from self.loader

    def run(self, steps: int) -> None:
        """Some steps, with the most freed memory that glibc keeps by itself; ours keeps more."""
        keep_as_by_default(self.device)
        for _ in range(steps):
            image, target, index = (part.to(self.device) for part in next(self.batches))
            self.optimizer.zero_grad()
            logits, losses = self.distiller(image=image, target=target, index=index, epoch=1)
            loss = sum(value.mean() for value in losses.values())
            loss.backward()
            self.optimizer.step()
            loss.item()
            (logits.argmax(1) == target).float().mean().item()
        keep_freed_memory(self.device)


def keep_as_by_default(device: torch.device) -> None:
    """On a CPU with glibc, undo `keep_freed_memory`: back to LIMITS_OF_GLIBC."""
    if device.type != "cpu":
        return
    with suppress(AttributeError, OSError, TypeError):  # another allocator
        mallopt = ctypes.CDLL(None).mallopt
        for number, limit in LIMITS_OF_GLIBC.items():
            mallopt(number, limit)


class Ours:
    """Our loop, without what it writes."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.meter = Meter()
        self.inputs = self.forever()
        trainer.distiller.train()

    def forever(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Batches without end."""
        while True:
            yield from self.trainer.data.train.inputs(1)

    def run(self, steps: int) -> None:
        """Some steps."""
        for _ in range(steps):
            self.meter.add(*self.trainer.step(1, *next(self.inputs)))


def compare(pair: str, method: str, device: torch.device, rounds: int, steps: int) -> None:
    """Measure a pair and print its figures."""
    teacher, student = pair.split(":")
    trainer = make_trainer(student, teacher, method, device)
    cache = with_cache(trainer)
    memo = cache.memos[0]
    batch_size = trainer.cfg.SOLVER.BATCH_SIZE
    some = memo.keys(1)[: steps * batch_size]

    ours = Ours(trainer)
    alone = Ours(make_trainer(student, teacher, "NONE", device))
    plain = make_trainer(student, teacher, method, device)
    baseline = PlainLoop(plain.distiller.to(memory_format=torch.contiguous_format), plain)
    fill_store(memo)

    runs = {
        "baseline": lambda: baseline.run(steps),
        "alone": lambda: alone.run(steps),
        "ours": lambda: ours.run(steps),
        "teacher": lambda: memo.store.add(some, memo.fill(some, lambda line: None)),
        "reading": lambda: cache.prepare(1, lambda line: None),
    }
    seconds = in_turn(runs, rounds, device)
    ms = {name: 1e3 * value / steps for name, value in seconds.items()}

    # Reading the cache takes place once an epoch; this is the share of a step.
    reading = 1e3 * seconds["reading"] / (len(memo.keys(1)) / batch_size)
    full = ms["ours"] + reading
    empty = full + ms["teacher"]
    precision = precision_name(trainer.amp)
    say(f"\n{teacher} -> {student}, {method}, batch {batch_size}, {precision}: median ms of a step")
    say(f"  baseline                       {ms['baseline']:8.1f}")
    say(f"  student alone                  {ms['alone']:8.1f}")
    say(
        f"  cache full                     {full:8.1f}   of these, reading the cache: {reading:.2f}"
    )
    asking = ms["teacher"]
    say(f"  cache empty                    {empty:8.1f}   of these, the teacher: {asking:.1f}")
    say(f"  cache full / student alone     {full / ms['alone']:8.3f}")
    say(f"  baseline / cache full          {ms['baseline'] / full:8.2f}")
    say(f"  baseline / cache empty         {ms['baseline'] / empty:8.2f}")
    largest = difference(pair, device)
    say(f"  cache against teacher, float32: largest difference of logits {largest:.1e}")


def fill_store(memo: TeacherMemo) -> None:
    """Give the store random logits for an epoch in 100 files, as if many runs had filled it."""
    keys = memo.keys(1)
    logits = torch.randn(len(keys), memo.tables["logits"].shape[1]).to(memo.rows.fields[0].dtype)
    rows = logits.view(torch.uint8).numpy()
    for part in np.array_split(np.arange(len(keys)), 100):
        memo.store.add(keys[part], rows[part])


def difference(pair: str, device: torch.device, images: int = 640) -> float:
    """Largest difference between cached logits and the teacher's in the step, in float32."""
    teacher, student = pair.split(":")
    trainer = make_trainer(student, teacher, "KD", device, ["SOLVER.AMP", "off"])
    network = trainer.distiller.teacher
    memo = with_cache(trainer).memos[0]
    keys = memo.keys(1)[:images]
    rows = memo.fill(keys, lambda line: None)
    cached = torch.from_numpy(rows).view(torch.float32).to(device)

    loader = trainer.data.train
    batches = (loader.batch(*inputs) for inputs in loader.inputs(1))
    number = images // trainer.cfg.SOLVER.BATCH_SIZE
    with torch.no_grad():
        live = torch.cat([network(next(batches).image)[0] for _ in range(number)])
    return (cached - live).abs().max().item()


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = ArgumentParser(description="A step of ours against the plain loop of the field.")
    parser.add_argument(
        "--pair",
        action="append",
        metavar="TEACHER:STUDENT",
        help=f"default: {' and '.join(PAIRS)}",
    )
    parser.add_argument("--method", default="EDKD")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=7, help="turns that count (default: 7)")
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn (default: 10)")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    say(f"{machine(device)}; CIFAR-100; {args.rounds} turns of {args.steps} steps")
    for pair in args.pair or PAIRS:
        compare(pair, args.method, device, args.rounds, args.steps)


if __name__ == "__main__":
    run_command(main)
