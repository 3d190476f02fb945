"""Images per second of image folders against the plain PIL pipeline; the time a step waits for data.

python benchmarks/loader.py [--images FOLDER] [--count N] [--workers N] [--rounds N]
                            [--student NAME] [--device DEVICE] [KEY VALUE ...]

Real JPEG files are enlarged to 500x375 and written with quality 90 into a temporary folder. Both
pipelines make normalised batches of random resized crops of 224x224, flipped at random, in as many
workers, which stay alive. The plain one is that of the usual training script: ImageFolder,
RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize in a DataLoader.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from _common import in_turn, machine, say, temporary_folder
from torch.utils.data import DataLoader

from edkd.commands._command_line import ArgumentParser, run_command
from edkd.dataset import Loader
from edkd.distillers import construct, find_method
from edkd.engine.build import build_data, build_students, build_trainer
from edkd.engine.config.load import load_config
from edkd.engine.device import keep_freed_memory, pick_device, precision_name
from edkd.engine.trainer import Trainer
from edkd.errors import UserError
from edkd.paths import DATA_ROOT

SOURCE = DATA_ROOT / "data" / "tiny-imagenet-40" / "train"
STUDENT = "torchvision/mobilenet_v3_small"
SIZE = (500, 375)
QUALITY = 90
BATCH_SIZE = 64


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


def write_images(source: Path, count: int) -> Path:
    """A folder with `count` enlarged images of `source`, evenly chosen, in train/ and in val/."""
    from PIL import Image

    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    if not files:
        raise UserError(f"no JPEG files below {source}; give another folder with --images")

    folder = temporary_folder()
    step = max(len(files) // count, 1)
    for number, path in enumerate(files[::step][:count]):
        target = folder / "train" / f"class{number % 2}" / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(path).convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
        image.save(target, quality=QUALITY)

    (folder / "val").symlink_to(folder / "train")  # a data set needs one; it is not read here
    return folder


def settings(folder: Path, args: Any, *more: str) -> Any:
    """The configuration of a student alone on these images."""
    words = ["DATASET.TYPE", "imagenet", "DATASET.ROOT", str(folder), "DISTILLER.TYPE", "NONE"]
    words += ["DISTILLER.STUDENT", args.student, "SOLVER.BATCH_SIZE", str(BATCH_SIZE)]
    words += ["DATASET.NUM_WORKERS", str(args.workers), "LOG.WANDB", "False"]
    return load_config(opts=[*words, *args.opts, *more])


# Images per second.


def compare(folder: Path, args: Any, device: torch.device) -> None:
    """Measure the pipelines in turn and print their rates."""
    ours = build_data(settings(folder, args), device).train
    full = build_data(settings(folder, args, "DATASET.SCALED_DECODING", "False"), device).train
    plain = plain_loader(folder, args.workers, device)
    runs = {
        "plain": lambda: consume(on_device(plain, device)),
        "ours": lambda: consume(ours.epoch(1)),
        "full": lambda: consume(full.epoch(1)),
    }
    seconds = in_turn(runs, args.rounds, device)
    rates = {name: ours.num_images / value for name, value in seconds.items()}

    say(f"  plain pipeline                   {rates['plain']:8.0f} images/s")
    say(f"  ours                             {rates['ours']:8.0f} images/s")
    say(f"  ours, SCALED_DECODING False      {rates['full']:8.0f} images/s")
    say(f"  ours / plain                     {rates['ours'] / rates['plain']:8.2f}")
    say(f"  SCALED_DECODING False / plain    {rates['full'] / rates['plain']:8.2f}")


def on_device(loader: Iterable[Any], device: torch.device) -> Iterator[list[torch.Tensor]]:
    """The batches of a DataLoader on the device."""
    for batch in loader:
        yield [part.to(device, non_blocking=True) for part in batch]


def consume(batches: Iterable[Any]) -> None:
    """Make all batches; keep none."""
    for _ in batches:
        pass


# The time that a step waits.


def make_trainer(cfg: Any, device: torch.device) -> Trainer:
    """A trainer of the student alone, in a temporary folder."""
    data = build_data(cfg, device)
    (student,) = build_students(cfg, data)
    distiller = construct(find_method("NONE"), student, None, cfg, data.info)
    return build_trainer(cfg, data, distiller, temporary_folder(), device)


def report_waiting(trainer: Trainer, student: str) -> None:
    """Train two epochs; print how much of the second one the host waited for batches."""
    state = trainer.state
    trainer.distiller.train()
    for epoch in (1, 2):
        state.data_seconds = 0.0
        state.seconds = 0.0
        state.start_clock()
        for inputs in state.timed(trainer.data.train.inputs(epoch)):
            _, logits, _ = trainer.step(epoch, *inputs)
        logits.sum().item()  # waits for the device
        state.stop_clock()

    steps = len(trainer.data.train)
    step = 1e3 * state.seconds / steps
    share = 100 * state.data_seconds / state.seconds
    say(f"  {student}, {precision_name(trainer.amp)}, a step: {step:.0f} ms")
    say(f"  of these, waiting for data: {share:.1f} %")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = ArgumentParser(description="Images per second of image folders.")
    parser.add_argument("--images", type=Path, default=SOURCE, help="folder with JPEG files")
    parser.add_argument("--count", type=int, default=640, help="images (default: 640)")
    parser.add_argument("--workers", type=int, default=2, help="data workers (default: 2)")
    parser.add_argument("--rounds", type=int, default=7, help="turns that count (default: 7)")
    parser.add_argument("--student", default=STUDENT, help=f"default: {STUDENT}")
    parser.add_argument("--device", default="auto")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="as in the command train")
    args = parser.parse_intermixed_args(argv)
    device = pick_device(args.device)
    keep_freed_memory(device)  # as in training

    folder = write_images(args.images, args.count)
    say(
        f"{machine(device)}; {args.count} JPEG files of {SIZE[0]}x{SIZE[1]}, quality {QUALITY}; "
        f"batch {BATCH_SIZE}, {args.workers} workers, {args.rounds} turns"
    )
    compare(folder, args, device)
    report_waiting(make_trainer(settings(folder, args), device), args.student)


if __name__ == "__main__":
    run_command(main)
