"""Images per second of image folders against the plain PIL pipeline; the wait of a step for data.

python benchmarks/loader.py [--images FOLDER] [--count N] [--size WIDTHxHEIGHT] [--workers N]
                            [--rounds N] [--student NAME] [--device DEVICE] [KEY VALUE ...]

Real JPEG files are enlarged, to 500x375 by default, and written with quality 90 into a temporary
folder. Both pipelines make normalised batches of random resized crops of 224x224, flipped at
random, in as many workers, which stay alive. The plain one is that of the usual training script:
ImageFolder, RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize in a DataLoader.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
from _common import in_turn, machine, say, temporary_folder, wait
from torch.utils.data import DataLoader

from edkd.commands._command_line import ArgumentParser, run_command
from edkd.distillers import construct, find_method
from edkd.engine.build import build_data, build_trainer
from edkd.engine.config.load import load_config
from edkd.engine.device import keep_freed_memory, pick_device, precision_name
from edkd.engine.networks import build_students
from edkd.engine.trainer import Trainer
from edkd.errors import UserError
from edkd.paths import DATA_ROOT

SOURCE = DATA_ROOT / "data" / "tiny-imagenet-40" / "train"
STUDENT = "torchvision/mobilenet_v3_small"
SIZE = "500x375"
QUALITY = 90
BATCH_SIZE = 64
TESTED = 2
"""Images of val/, which a data set needs; they are not read here."""
WARM_UP = 2
STEPS = 6


def plain_loader(folder: Path, workers: int, device: torch.device) -> Iterable[Any]:
    """The pipeline of the usual training script."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [
        transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    return DataLoader(
        ImageFolder(str(folder / "train"), transforms.Compose(steps)),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )


def write_images(source: Path, number: int, size: str = SIZE) -> Path:
    """A folder with `number` training images: those of `source`, evenly chosen, enlarged."""
    from PIL import Image

    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    if not files:
        raise UserError(f"no JPEG files below {source}; give another folder with --images")

    folder = temporary_folder()
    width, height = map(int, size.split("x"))
    step = max(len(files) // (number + TESTED), 1)
    for place, path in enumerate(files[::step][: number + TESTED]):
        part = "train" if place < number else "val"
        target = folder / part / f"class{place % 2}" / f"{place}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(path).convert("RGB")
        image.resize((width, height), Image.Resampling.BICUBIC).save(target, quality=QUALITY)
    return folder


def settings(folder: Path, args: Any, *more: str) -> Any:
    """The configuration of a student alone on these images."""
    words = ["DATASET.TYPE", "imagenet", "DATASET.ROOT", str(folder), "DISTILLER.TYPE", "NONE"]
    words += ["DISTILLER.STUDENT", args.student, "SOLVER.BATCH_SIZE", str(BATCH_SIZE)]
    words += ["DATASET.NUM_WORKERS", str(args.workers), "LOG.WANDB", "False"]
    return load_config(opts=[*words, *args.opts, *more])


# Images per second.


def compare(folder: Path, args: Any, device: torch.device) -> None:
    """Measure the pipelines in turn; print their rates and the processor time of an image."""
    ours = build_data(settings(folder, args), device).train
    full = build_data(settings(folder, args, "DATASET.SCALED_DECODING", "False"), device).train
    plain = plain_loader(folder, args.workers, device)
    passes = {
        "plain pipeline": lambda: on_device(plain, device),
        "ours": lambda: ours.epoch(1),
        "ours, SCALED_DECODING False": lambda: full.epoch(1),
    }

    spent: dict[str, list[float]] = {name: [] for name in passes}
    runs = {name: partial(consume, make, spent[name]) for name, make in passes.items()}
    seconds = in_turn(runs, args.rounds, device)
    cpu = {name: statistics.median(values[1:]) for name, values in spent.items()}

    say(f"  {'':30} images/s  ratio   CPU ms an image  ratio")
    first = next(iter(passes))
    for name in passes:
        say(
            f"  {name:30} {ours.num_images / seconds[name]:8.0f}"
            f"  {seconds[first] / seconds[name]:5.2f}"
            f"   {1e3 * cpu[name] / ours.num_images:15.2f}  {cpu[first] / cpu[name]:5.2f}"
        )


def on_device(loader: Iterable[Any], device: torch.device) -> Iterator[list[torch.Tensor]]:
    """The batches of a DataLoader on the device."""
    for batch in loader:
        yield [part.to(device, non_blocking=True) for part in batch]


def consume(make: Callable[[], Iterable[Any]], spent: list[float]) -> None:
    """Make all batches and keep none; add the seconds of processor time to `spent`."""
    before = processor_time()
    for _ in make():
        pass
    spent.append(processor_time() - before)


def processor_time() -> float:
    """Seconds of this process and of its workers; NaN where it is not known."""
    total = time.process_time()
    for worker in multiprocessing.active_children():
        try:
            fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return float("nan")
        user, system = fields[11:13]
        total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


# The time that a step waits.


def make_trainer(cfg: Any, device: torch.device) -> Trainer:
    """A trainer of the student alone, in a temporary folder."""
    data = build_data(cfg, device)
    (student,) = build_students(cfg, data)
    distiller = construct(find_method("NONE"), student, None, cfg, data.info)
    return build_trainer(cfg, data, distiller, temporary_folder(), device)


def report_waiting(trainer: Trainer, student: str) -> None:
    """Train some steps; print how much of their time the host waited for batches."""
    state = trainer.state
    trainer.distiller.train()
    passes = (trainer.data.train.inputs(epoch) for epoch in count(1))
    batches = state.timed(chain.from_iterable(passes))
    for inputs in islice(batches, WARM_UP):
        trainer.step(1, *inputs)
    wait(trainer.device)

    state.data_seconds = 0.0
    state.start_clock()
    for inputs in islice(batches, STEPS):
        trainer.step(1, *inputs)
    wait(trainer.device)
    state.stop_clock()

    step = 1e3 * state.seconds / STEPS
    share = 100 * state.data_seconds / state.seconds
    say(f"  a step of {student} in {precision_name(trainer.amp)}: {step:.0f} ms")
    say(f"  of these, waiting for data: {share:.1f} %")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = ArgumentParser(description="Images per second of image folders.")
    parser.add_argument("--images", type=Path, default=SOURCE, help="folder with JPEG files")
    parser.add_argument("--count", type=int, default=640, help="images (default: 640)")
    parser.add_argument("--size", default=SIZE, metavar="WIDTHxHEIGHT", help=f"default: {SIZE}")
    parser.add_argument("--workers", type=int, default=2, help="data workers (default: 2)")
    parser.add_argument("--rounds", type=int, default=7, help="turns that count (default: 7)")
    parser.add_argument("--student", default=STUDENT, help=f"default: {STUDENT}")
    parser.add_argument("--device", default="auto")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="as in the command train")
    args = parser.parse_intermixed_args(argv)
    device = pick_device(args.device)
    keep_freed_memory(device)  # as in training

    folder = write_images(args.images, args.count, args.size)
    say(
        f"{machine(device)}; {args.count} JPEG files of {args.size}, quality {QUALITY}; "
        f"batch {BATCH_SIZE}, {args.workers} workers, {args.rounds} turns"
    )
    compare(folder, args, device)
    report_waiting(make_trainer(settings(folder, args), device), args.student)


if __name__ == "__main__":
    run_command(main)
