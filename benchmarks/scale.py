"""Time against images and epochs, memory against epochs: EDKD on digits with a teacher cache.

python benchmarks/scale.py [--epochs N] [--device DEVICE]
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from _common import anonymous_memory, machine, say, temporary_folder

from edkd.commands._command_line import ArgumentParser, run_command
from edkd.distillers import construct, find_method
from edkd.engine.build import build_data, build_trainer
from edkd.engine.config.load import load_config
from edkd.engine.device import pick_device
from edkd.engine.trainer import Trainer
from edkd.models import get_model


class Note(NamedTuple):
    """Time and memory after an epoch."""

    seconds: float
    memory: float


def run(epochs: int, held_out: float, device: torch.device) -> tuple[Trainer, list[Note]]:
    """Train; return the trainer, and a note before the first and after each epoch."""
    words = ["DATASET.TYPE", "digits", "DATASET.VAL_SPLIT", str(held_out)]
    words += ["DISTILLER.TYPE", "EDKD", "DISTILLER.TEACHER", "resnet20"]
    words += ["DISTILLER.STUDENT", "resnet8", "SOLVER.EPOCHS", str(epochs)]
    words += ["SOLVER.BATCH_SIZE", "32", "LOG.WANDB", "False"]
    folder = temporary_folder()
    cfg = load_config(opts=[*words, "LOG.PREFIX", str(folder)])
    data = build_data(cfg, device)

    torch.manual_seed(0)
    student = get_model("cifar", "resnet8", data.num_classes)
    teacher = get_model("cifar", "resnet20", data.num_classes)
    distiller = construct(find_method("EDKD"), student, teacher, cfg, data.info)

    notes = [Note(time.perf_counter(), anonymous_memory())]

    def note(record: dict[str, float]) -> None:
        notes.append(Note(time.perf_counter(), anonymous_memory()))

    trainer = build_trainer(cfg, data, distiller, folder, device, on_epoch=note)
    trainer.train()
    return trainer, notes


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = ArgumentParser(description="Time against images and epochs, memory against epochs.")
    parser.add_argument("--epochs", type=int, default=200, help="of the long run (default: 200)")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    device = pick_device(args.device)

    trainers = [run(6, 1 - share, device)[0] for share in (0.25, 0.5, 1.0)]
    _, notes = run(args.epochs, 0.0, device)

    say(f"\n{machine(device)}; digits, resnet20 -> resnet8, EDKD, batch 32")
    say("\n  images   ms for an image, median of epochs 2 to 6 (training alone)")
    for trainer in trainers:
        images = trainer.data.train.num_images
        times = sorted(record["train_seconds"] for record in trainer.state.history[1:])
        say(f"  {images:6}   {1e3 * times[len(times) // 2] / images:.3f}")

    say("\n  epochs   seconds since the start   ms for an epoch   anonymous memory, MiB")
    parts = (0.05, 0.25, 0.5, 0.75, 1)
    marks = sorted({1, *(round(args.epochs * part) for part in parts)})
    for last, mark in zip([0, *marks], marks, strict=False):
        since = notes[mark].seconds - notes[0].seconds
        each = 1e3 * (notes[mark].seconds - notes[last].seconds) / (mark - last)
        say(f"  {mark:6}   {since:23.1f}   {each:15.0f}   {notes[mark].memory:9.0f}")


if __name__ == "__main__":
    run_command(main)
