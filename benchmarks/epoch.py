"""Seconds of whole epochs through the real trainer, the memo empty and full, and of the recipe that they make up.

python benchmarks/epoch.py [--pair TEACHER:STUDENT] [--method METHOD] [--device DEVICE] [--recipe EPOCHS] [KEY VALUE]

Two epochs of one order: the first asks the teacher about each image, the second finds all answers.
"""

import threading
import time
from collections.abc import Sequence

from _common import anonymous_memory, machine, make_trainer, say, timed, with_memo

from edkd.engine.device import pick_device
from edkd.engine.logger import Logger
from edkd.errors import ArgumentParser, run_command


class Peak:
    """The highest anonymous memory while it watches, MiB."""

    def __init__(self) -> None:
        self.value, self.ended = anonymous_memory(), threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        """Look twenty times a second."""
        while not self.ended.wait(0.05):
            self.value = max(self.value, anonymous_memory())

    def end(self) -> float:
        """The peak."""
        self.ended.set()
        self.thread.join()
        return self.value


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = ArgumentParser(description="Seconds of whole epochs, the memo empty and full.")
    parser.add_argument("--pair", default="resnet56:resnet20", metavar="TEACHER:STUDENT")
    parser.add_argument("--method", default="EDKD")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--recipe", type=int, default=240, metavar="EPOCHS", help="default: 240")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="as in tools/train.py")
    args = parser.parse_intermixed_args(argv)
    device, (teacher, student) = pick_device(args.device), args.pair.split(":")
    bare = anonymous_memory()
    peak = Peak()
    trainer = make_trainer(student, teacher, args.method, device, ["SOLVER.EPOCHS", "2", *args.opts])
    trainer.logger = Logger(trainer.folder, trainer.cfg, trainer.history, 2 * len(trainer.data.train), 0)
    memo = with_memo(trainer)
    watches = [timed(memo, "fill"), timed(trainer, "step"), timed(trainer.data.train, "batch")]
    watches.append(timed(trainer.distiller, "forward_test"))
    say(f"{machine(device)}; CIFAR-100, {teacher} -> {student}, {args.method}, {trainer.precision()}")
    seconds = {}
    for name in ("empty", "full"):
        before = [watch() for watch in watches]
        start = time.perf_counter()
        record = trainer.train_epoch(1)
        trained = time.perf_counter()
        record |= {f"test_{key}": value for key, value in trainer.evaluate("test").items()}
        tested = time.perf_counter()
        trainer.history.append({"epoch": len(trainer.history) + 1, **record})
        trainer.save(len(trainer.history))
        trainer.logger.epoch(1)
        whole = time.perf_counter() - start
        filled, stepped, batched, passed = (watch() - then for watch, then in zip(watches, before, strict=True))
        seconds[name] = whole
        say(
            f"  memo {name:6} {whole:7.1f} s: training {trained - start - filled:.1f}, "
            f"asking the teacher {filled:.1f}, evaluation {tested - trained:.1f}, files {whole - (tested - start):.2f}"
        )
        if device.type == "cpu":  # elsewhere a stopwatch on the host tells nothing
            work = stepped - batched + passed + filled
            say(f"    neither forward, backward nor optimizer: {100 * (1 - work / whole):.1f} %")
    views, epochs = trainer.data.train.num_views, args.recipe
    asked = views * (1 - (1 - 1 / views) ** epochs)  # expected number of different views of an image
    warm, asking = seconds["full"], seconds["empty"] - seconds["full"]
    say(f"  {epochs} epochs, from these: memo empty {(epochs * warm + asked * asking) / 3600:.2f} h")
    say(f"  {epochs} epochs, from these: memo full  {epochs * warm / 3600:.2f} h")
    say(f"  anonymous memory over the bare imports, highest: {peak.end() - bare:.0f} MiB")
    trainer.logger.close()


if __name__ == "__main__":
    run_command(main)
