"""Steps on an image folder with stored views, against the student alone and the live teacher.

python benchmarks/softlabels.py [--root FOLDER] [--images N] [--enlarge WxH] [--rounds N]
                                [--steps N] [--device DEVICE] [KEY VALUE ...]

All candidates read the same JPEG files in the same views, in turn, in one process; a step includes
reading its batch. The teacher has random weights, which changes no time. With --enlarge, the files
are enlarged copies, cropped to 224x224 as for ImageNet; without it, they are prepared as for
Tiny-ImageNet. On a CPU, the times are CPU time of all threads, which other work on the same cores
disturbs less.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from _common import in_turn, machine, say, temporary_folder
from _stepping import ignore, stepper
from PIL import Image

from edkd.commands._command_line import ArgumentParser, run_command
from edkd.dataset import dataset_dict
from edkd.engine.build import build_data
from edkd.engine.config.load import load_config
from edkd.engine.device import pick_device
from edkd.engine.memo.rows import RowFormat
from edkd.engine.memo.topk import fields_of
from edkd.engine.softlabels import readable, store_outputs, teacher_memos
from edkd.models import get_model
from edkd.paths import DATA_ROOT

SMALL = ("tiny_imagenet", "cifar/resnet56", "cifar/resnet20")
LARGE = ("imagenet", "ResNet34", "ResNet18")
"""Data set, teacher and student."""

FORMS = {
    "replay, all logits": [],
    "replay, top 10": ["TEACHER_MEMO.TOP_K", "10"],
}

IMAGENET = 1_281_167
VIEWS = 50


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = ArgumentParser(description="Steps on an image folder with stored views.")
    parser.add_argument("--root", type=Path, default=DATA_ROOT / "data" / "tiny-imagenet-40")
    parser.add_argument("--images", type=int, default=4, metavar="N", help="of a class; default: 4")
    parser.add_argument("--enlarge", metavar="WxH", help="as 500x375; default: as they are")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--steps", type=int, default=2, help="of a round; default: 2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="as in the command train")
    args = parser.parse_intermixed_args(argv)
    device = pick_device(args.device)

    folder = temporary_folder()
    copy_images(args.root, folder / "images", args.images, args.enlarge)
    words = [*common_words(folder, bool(args.enlarge)), *args.opts]
    cfg = load_config(opts=words)
    say(
        f"{machine(device)}; {cfg.DATASET.TYPE}, {cfg.DISTILLER.TEACHER} -> "
        f"{cfg.DISTILLER.STUDENT}, KD, batch {cfg.SOLVER.BATCH_SIZE}"
    )

    for name, form in FORMS.items():
        report_storing(name, [*words, *form], device)
    report_steps(words, folder, device, args.rounds, args.steps)
    report_sizes()


def copy_images(root: Path, target: Path, number: int, enlarge: str | None) -> None:
    """Copy some images of each class as JPEG files, at another size where one is given."""
    for part in ("train", "val"):
        for source in sorted((root / part).iterdir()):
            folder = target / part / source.name
            folder.mkdir(parents=True)
            for path in sorted(source.rglob("*.JPEG"))[:number]:
                copy = folder / path.name
                if enlarge is None:
                    copy.write_bytes(path.read_bytes())
                    continue
                width, height = (int(side) for side in enlarge.split("x"))
                image = Image.open(path).convert("RGB")
                image.resize((width, height), Image.Resampling.BICUBIC).save(copy, quality=90)


def common_words(folder: Path, is_large: bool) -> list[str]:
    """The keys that all candidates have, and a teacher's weights."""
    dataset, teacher, student = LARGE if is_large else SMALL
    words = ["DATASET.TYPE", dataset, "DATASET.ROOT", str(folder / "images")]
    words += ["DATASET.NUM_WORKERS", "0", "DATASET.VIEWS", "1", "DISTILLER.TYPE", "KD"]
    words += ["DISTILLER.TEACHER", teacher, "DISTILLER.STUDENT", student]
    words += ["DISTILLER.TEACHER_CKPT", str(folder / "teacher"), "LOG.PREFIX", str(folder)]
    words += ["LOG.WANDB", "False", "SOLVER.BATCH_SIZE", "8" if is_large else "32"]

    torch.manual_seed(0)
    num_classes = len(list((folder / "images" / "train").iterdir()))
    network = get_model(dataset_dict[dataset].family, teacher, num_classes)
    torch.save({"model": network.state_dict()}, folder / "teacher")
    return words


def report_storing(name: str, words: list[str], device: torch.device) -> None:
    """Store all views; then the time in which an epoch's are read, and what a key takes."""
    cfg = load_config(opts=words)
    clock = clock_of(device)
    start = clock()
    store_outputs(cfg, device, ignore)
    seconds = clock() - start

    (memo,) = teacher_memos(cfg, device, ignore)
    memo.prepare(1, ignore)
    start = clock()
    memo.prepare(2, ignore)
    read = clock() - start
    number = memo.loader.num_images
    say(
        f"  {name}: {number * memo.num_views / seconds:.0f} views/s stored, {memo.bytes_per_key} "
        f"bytes each; an epoch's outputs are read in {1e6 * read / number:.1f} us an image"
    )


def report_steps(
    words: list[str], folder: Path, device: torch.device, rounds: int, steps: int
) -> None:
    """Median times of steps, and their ratios."""
    opts = {
        "student alone": ["DISTILLER.TYPE", "NONE"],
        **FORMS,
        "live teacher": ["TEACHER_MEMO.ENABLED", "False"],
    }
    runs: dict[str, Callable[[], None]] = {}
    for name, own in opts.items():
        runs[name] = partial(stepper(load_config(opts=[*words, *own]), folder, device), steps)
    runs["reading alone"] = partial(reading(words, device), steps)

    seconds = in_turn(runs, rounds, device, clock_of(device))
    alone = seconds["student alone"]
    for name, value in seconds.items():
        say(f"  {name:20} {1e3 * value / steps:8.1f} ms/step  {value / alone:5.2f}")
    say(f"  live teacher / replay: {seconds['live teacher'] / seconds['replay, top 10']:.2f}")


def clock_of(device: torch.device) -> Callable[[], float]:
    """CPU time on a CPU, else time."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def reading(words: list[str], device: torch.device) -> Callable[[int], None]:
    """A function that reads and normalises some batches."""
    data = build_data(load_config(opts=words), device)

    def run(steps: int) -> None:
        inputs = data.train.inputs(1)
        for _ in range(steps):
            data.train.batch(*next(inputs))

    return run


def report_sizes() -> None:
    """Print what ImageNet takes, computed."""
    for dtype in (torch.float16, torch.float32):
        for k in (5, 10, 14):
            size = 4 + RowFormat(fields_of(k, 1000, dtype)).num_bytes
            total = readable(IMAGENET * VIEWS * size)
            say(f"  ImageNet, {VIEWS} views, top {k}, {dtype}: {size} bytes each, {total}")
    total = readable(IMAGENET * VIEWS * (4 + 2 * 1000))
    say(f"  ImageNet, {VIEWS} views, all logits, 16 bits: {total}")


if __name__ == "__main__":
    run_command(main)
