"""Time grows linearly with images and epochs, and memory stays flat: on digits, distilled, with a memo.

python benchmarks/scale.py [--epochs N] [--device DEVICE]
"""

import time
from collections.abc import Sequence

import torch
from _common import anonymous_memory, machine, say, temporary_folder

from edkd.dataset import get_dataset
from edkd.distillers import distiller_dict
from edkd.engine.device import pick_device
from edkd.engine.load_cfg import load_cfg
from edkd.engine.trainer import Trainer
from edkd.errors import ArgumentParser, run_command
from edkd.models import get_model


class Watched(Trainer):
    """A trainer that notes time and memory after each epoch."""

    notes: list[tuple[float, float]]

    def save(self, epoch: int) -> None:
        """Save, and note."""
        super().save(epoch)
        self.notes.append((time.perf_counter(), anonymous_memory()))


def run(epochs: int, held_out: float, device: torch.device) -> Watched:
    """Train; the result has `notes`."""
    folder = temporary_folder()
    words = ["DATASET.TYPE", "digits", "DATASET.VAL_SPLIT", str(held_out), "SOLVER.EPOCHS", str(epochs)]
    words += ["DISTILLER.TYPE", "EDKD", "DISTILLER.TEACHER", "resnet20", "DISTILLER.STUDENT", "resnet8"]
    cfg = load_cfg(opts=[*words, "SOLVER.BATCH_SIZE", "32", "LOG.WANDB", "False", "LOG.PREFIX", str(folder)])
    data = get_dataset(cfg, device)
    torch.manual_seed(0)
    student, teacher = (get_model("cifar", name, data.num_classes) for name in ("resnet8", "resnet20"))
    distiller = distiller_dict["EDKD"](student, teacher, cfg).to(device).to(memory_format=torch.channels_last)
    trainer = Watched(cfg, distiller, data, folder, device)
    trainer.notes = [(time.perf_counter(), anonymous_memory())]
    trainer.train()
    return trainer


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = ArgumentParser(description="Time against images and epochs, memory against epochs.")
    parser.add_argument("--epochs", type=int, default=200, help="of the long run (default: 200)")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    shares = {share: run(6, 1 - share, device) for share in (0.25, 0.5, 1.0)}
    long = run(args.epochs, 0.0, device)
    say(f"\n{machine(device)}; digits, resnet20 -> resnet8, EDKD, batch 32")
    say("\n  images   ms an image, median of epochs 2-6 (training alone)")
    for trainer in shares.values():
        images = trainer.data.train.num_images
        times = sorted(record["train_seconds"] for record in trainer.history[1:])
        say(f"  {images:6}   {1e3 * times[len(times) // 2] / images:.3f}")
    say("\n  epochs   seconds since the start   ms an epoch   anonymous memory, MiB")
    marks = sorted({1, *(round(args.epochs * part) for part in (0.05, 0.25, 0.5, 0.75, 1))})
    for last, mark in zip([0, *marks], marks, strict=False):
        (since, _), (now, memory) = long.notes[last], long.notes[mark]
        say(
            f"  {mark:6}   {now - long.notes[0][0]:23.1f}   {1e3 * (now - since) / (mark - last):11.0f}   {memory:9.0f}"
        )


if __name__ == "__main__":
    run_command(main)
