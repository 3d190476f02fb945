"""What a run tells: a progress bar and lines for a person, files for a program, TensorBoard and wandb for a browser.

The libraries are imported when they are used; none of them can end a run.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from edkd.engine.checkpoint import append_line, save_text

Record = dict[str, float]


class Logger:
    """The log of one run.

    Args:
        folder: of the run; gets `worklog.txt`, `metrics.jsonl`, `train.events/`.
        cfg: LOG and EXPERIMENT are read.
        history: the records of the epochs already done; `metrics.jsonl` holds them and nothing else at the start.
        total_steps, done_steps: of the run, for the bar and for curves that go on.
    """

    def __init__(self, folder: Path, cfg: Any, history: Sequence[Record], total_steps: int, done_steps: int) -> None:
        self.folder = folder
        self.frequency = cfg.LOG.TENSORBOARD_FREQ
        self.bar = tqdm(total=total_steps, initial=done_steps, disable=None, unit="step", dynamic_ncols=True)
        self.shown = time.monotonic()
        save_text("".join(json.dumps(record) + "\n" for record in history), folder / "metrics.jsonl")
        self.sinks: list[Sink] = []
        self._open(partial(TensorBoard, folder / "train.events", done_steps), "TensorBoard")
        if cfg.LOG.WANDB:
            self._open(partial(Wandb, folder, cfg, self.say), "Wandb")

    def say(self, line: str) -> None:
        """A line for a person: on standard output and in `worklog.txt`."""
        self.bar.write(line)
        sys.stdout.flush()
        append_line(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", self.folder / "worklog.txt")

    def show(self, doing: str) -> None:
        """Tell on the bar what is done between the steps; at most once a second."""
        if not self.bar.disable and time.monotonic() - self.shown >= 1:
            self.shown = time.monotonic()
            self.bar.set_description(doing)

    def step(self, step: int, epoch: int, read: Callable[[], Record]) -> Record | None:
        """After a training step, counted from 1: show its figures where it is time to, and return them then.

        `read` waits for the device, so it is called for nothing else.
        """
        self.bar.update()
        on_bar = not self.bar.disable and time.monotonic() - self.shown >= 1
        on_curve = self.frequency and step % self.frequency == 0
        if not (on_bar or on_curve):
            return None
        figures = read()
        if on_bar:
            self.shown = time.monotonic()
            self.bar.set_description(f"epoch {epoch}", refresh=False)
            self.bar.set_postfix({key: f"{figures[key]:.4g}" for key in ("loss", "top1")}, refresh=False)
        if on_curve:
            self._send({f"step/{key}": value for key, value in figures.items()}, step)
        return figures

    def epoch(self, record: Record, step: int) -> None:
        """After an epoch: a line of `metrics.jsonl`, a line for a person, a point in the browsers."""
        append_line(json.dumps(record), self.folder / "metrics.jsonl")
        self.say("  ".join(f"{key} {_short(value)}" for key, value in record.items() if "loss_" not in key))
        self._send({f"epoch/{key}": value for key, value in record.items() if key != "epoch"}, step)

    def close(self) -> None:
        """Flush and end all of them."""
        self.bar.close()
        for sink in self.sinks:
            self._guard(type(sink).__name__, sink.close)

    def _open(self, make: Callable[[], "Sink"], name: str) -> None:
        if sink := self._guard(name, make):
            self.sinks.append(sink)

    def _send(self, figures: Record, step: int) -> None:
        for sink in self.sinks:
            self._guard(type(sink).__name__, partial(sink.send, figures, step))

    def _guard(self, name: str, call: Callable[[], Any]) -> Any:
        """Call a library that cannot end a run, whatever it raises: it is left out from then on."""
        try:
            return call()
        except Exception as error:
            self.sinks = [sink for sink in self.sinks if type(sink).__name__ != name]
            self.say(f"{name} is off: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


class Sink:
    """Where figures go."""

    def send(self, figures: Record, step: int) -> None:
        """Add a point to each curve."""

    def close(self) -> None:
        """Flush."""


class TensorBoard(Sink):
    """Event files by tensorboardX; points after `done_steps`, of an epoch that is run again, are dropped."""

    def __init__(self, folder: Path, done_steps: int) -> None:
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=done_steps + 1 if done_steps else None)

    def send(self, figures: Record, step: int) -> None:
        """Add a scalar for each figure."""
        for key, value in figures.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Write what is buffered."""
        self.writer.close()


class Wandb(Sink):
    """A run in wandb: online with credentials, else recorded offline in the run's folder. It never asks."""

    def __init__(self, folder: Path, cfg: Any, say: Callable[[str], None]) -> None:
        import wandb

        settings = wandb.Settings(silent=True, init_timeout=10, finish_timeout=60, console="off", disable_git=True)
        options = dict(
            project=cfg.EXPERIMENT.PROJECT or "edkd",
            name=folder.name,
            tags=[tag for tag in cfg.EXPERIMENT.TAG.split(",") if tag],
            dir=str(folder),
            config=json.loads(json.dumps(cfg)),
            settings=settings,
        )
        wandb.setup(settings=settings)
        mode: Any = os.environ.get("WANDB_MODE", "online")
        reason = "there are no credentials" if mode == "online" else "WANDB_MODE says so"
        try:
            if mode == "online" and not wandb.login(prompt=False, verify=False):
                mode = "offline"
            self.run = wandb.init(mode=mode, **options)
        except wandb.errors.Error as error:
            mode, reason = "offline", f"it cannot be reached ({type(error).__name__})"
            self.run = wandb.init(mode=mode, **options)
        if mode == "offline":
            say(f"wandb: recorded offline in {folder / 'wandb'}, as {reason}; 'wandb sync' uploads it later")

    def send(self, figures: Record, step: int) -> None:
        """Log a row."""
        self.run.log(figures, step=step)

    def close(self) -> None:
        """End the run."""
        self.run.finish()


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
