"""Seconds of whole epochs through the real trainer, with the teacher cache empty and full.

python benchmarks/epoch.py [--pair TEACHER:STUDENT] [--method NAME] [--device DEVICE]
                           [--recipe EPOCHS] [KEY VALUE ...]

Two epochs of one order: in the first the teacher runs on each image, in the second all logits are
cached. The time of the whole recipe is computed from both.
"""

import threading
import time
from collections.abc import Callable, Sequence

from _common import anonymous_memory, machine, make_trainer, say, timed, with_cache

from edkd.commands._command_line import ArgumentParser, run_command
from edkd.engine.device import pick_device, precision_name
from edkd.engine.log.logger import Logger
from edkd.engine.trainer import Trainer


class Peak:
    """The highest anonymous memory of this process since the start, MiB."""

    def __init__(self) -> None:
        self.value = anonymous_memory()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        """Read it twenty times a second."""
        while not self.ended.wait(0.05):
            self.value = max(self.value, anonymous_memory())

    def end(self) -> float:
        """The peak."""
        self.ended.set()
        self.thread.join()
        return self.value


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = ArgumentParser(description="Seconds of whole epochs, the cache empty and full.")
    parser.add_argument("--pair", default="resnet56:resnet20", metavar="TEACHER:STUDENT")
    parser.add_argument("--method", default="EDKD")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--recipe", type=int, default=240, metavar="EPOCHS", help="default: 240")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="as in the command train")
    args = parser.parse_intermixed_args(argv)
    device = pick_device(args.device)
    teacher, student = args.pair.split(":")

    bare = anonymous_memory()
    peak = Peak()
    opts = ["SOLVER.EPOCHS", "2", *args.opts]
    trainer = make_trainer(student, teacher, args.method, device, opts)
    trainer.logger = Logger(trainer.folder, trainer.cfg, trainer.state.history, 1, 0)
    cache = with_cache(trainer)
    watches = {
        "teacher": timed(cache.memos[0], "fill"),
        "step": timed(trainer, "step"),
        "batch": timed(trainer.data.train, "batch"),
        "evaluation": timed(trainer.distiller, "forward_test"),
    }
    precision = precision_name(trainer.amp)
    say(f"{machine(device)}; CIFAR-100, {teacher} -> {student}, {args.method}, {precision}")

    seconds = {name: one_epoch(trainer, name, watches) for name in ("empty", "full")}
    report_recipe(trainer, seconds, args.recipe)
    say(f"  anonymous memory over the bare imports, highest: {peak.end() - bare:.0f} MiB")
    trainer.logger.close()


def one_epoch(trainer: Trainer, name: str, watches: dict[str, Callable[[], float]]) -> float:
    """Train, evaluate and save; print the parts, return the seconds."""
    before = {part: watch() for part, watch in watches.items()}
    start = time.perf_counter()
    record = {"epoch": trainer.state.epochs_done + 1, **trainer.train_epoch(1)}
    trained = time.perf_counter()
    record |= {f"test_{key}": value for key, value in trainer.evaluate("test").items()}
    tested = time.perf_counter()
    trainer.state.finish_epoch(record)
    trainer.files.save_epoch(trainer.state.epochs_done)
    trainer.logger.epoch(1)
    whole = time.perf_counter() - start

    spent = {part: watch() - before[part] for part, watch in watches.items()}
    training = trained - start - spent["teacher"]
    say(
        f"  cache {name:6} {whole:7.1f} s: training {training:.1f}, "
        f"teacher {spent['teacher']:.1f}, "
        f"evaluation {tested - trained:.1f}, files {whole - (tested - start):.2f}"
    )
    if trainer.device.type == "cpu":  # elsewhere a stopwatch on the host shows nothing
        work = spent["step"] - spent["batch"] + spent["evaluation"] + spent["teacher"]
        say(f"    neither forward, backward nor optimizer: {100 * (1 - work / whole):.1f} %")
    return whole


def report_recipe(trainer: Trainer, seconds: dict[str, float], epochs: int) -> None:
    """Print the hours of a whole recipe, computed from the two epochs."""
    views = trainer.data.train.augmentations["weak"].num_views
    distinct = views * (1 - (1 - 1 / views) ** epochs)  # expected number of views of an image
    teacher = seconds["empty"] - seconds["full"]
    empty = epochs * seconds["full"] + distinct * teacher
    say(f"  {epochs} epochs, from these: cache empty {empty / 3600:.2f} h")
    say(f"  {epochs} epochs, from these: cache full  {epochs * seconds['full'] / 3600:.2f} h")


if __name__ == "__main__":
    run_command(main)
