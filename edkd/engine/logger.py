"""What a run tells: a progress bar and lines for a person, files for a program, TensorBoard and wandb for a browser.

The libraries are imported when they are used; none of them can end a run, or hold it up.
"""

import json
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from edkd.engine.checkpoint import save_text
from edkd.errors import warn
from edkd.stop import Stopped

Record = dict[str, float]


class Logger:
    """The log of one run; closed at the end of a `with` block.

    Args:
        folder: of the run; gets `worklog.txt`, `metrics.jsonl`, `train.events/`.
        cfg: LOG and EXPERIMENT are read.
        history: the records of the epochs that are done; `metrics.jsonl` holds them and nothing else.
        total_steps, done_steps: of the run, for the bar and for curves that go on.
    """

    def __init__(self, folder: Path, cfg: Any, history: Sequence[Record], total_steps: int, done_steps: int) -> None:
        self.folder, self.history = folder, history
        self.frequency = cfg.LOG.TENSORBOARD_FREQ
        self.bar = tqdm(total=total_steps, initial=done_steps, disable=None, unit="step", dynamic_ncols=True)
        self.shown = time.monotonic()
        self.broken: set[str] = set()  # what was warned of
        self._save_history()
        sinks: list[tuple[str, Callable[[], Sink]]] = [
            ("TensorBoard", partial(TensorBoard, folder / "train.events", done_steps))
        ]
        if cfg.LOG.WANDB:
            sinks.append(("Wandb", partial(Wandb, folder, cfg, self.say)))
        self.sinks = [Background(name, make, self.say) for name, make in sinks]

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self.close(2 if kind and issubclass(kind, Stopped) else 90)

    def close(self, seconds: float = 90) -> None:
        """End them all; each is given some seconds for what it has not sent yet."""
        self.bar.close()
        for sink in self.sinks:
            sink.close(seconds)

    def say(self, line: str) -> None:
        """A line for a person: on standard output and in `worklog.txt`."""
        try:
            self.bar.write(line)
            sys.stdout.flush()
        except OSError as error:  # a pipe that is closed, a full disk
            self._warn("standard output", error)
        try:
            with open(self.folder / "worklog.txt", "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        except OSError as error:
            self._warn(str(self.folder / "worklog.txt"), error)

    def _warn(self, name: str, error: OSError) -> None:
        if name not in self.broken:
            self.broken.add(name)
            warn(f"cannot write {name}: {error.strerror or error}; the run goes on without")

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

    def epoch(self, step: int) -> None:
        """After an epoch, the last of `history`: `metrics.jsonl`, a line for a person, a point in the browsers."""
        self._save_history()
        record = self.history[-1]
        shown = [key for key in record if key.count("_") < 2 or key.endswith("top1")]
        self.say("  ".join(f"{key} {_short(record[key])}" for key in shown))
        self._send({f"epoch/{key}": value for key, value in record.items() if key != "epoch"}, step)

    def _save_history(self) -> None:
        """Written whole each time: a line that was lost, doubled or cut is mended by the next one."""
        save_text("".join(json.dumps(record) + "\n" for record in self.history), self.folder / "metrics.jsonl")

    def _send(self, figures: Record, step: int) -> None:
        for sink in self.sinks:
            sink.send(figures, step)


class Background:
    """A sink in a thread of its own: a library that raises is left out from then on, one that hangs is not waited for.

    Args:
        make: what makes the sink; the run begins when it has, or after START seconds without it.
        say: called with a line for a person, once, where the sink fails.
    """

    START = 45.0

    def __init__(self, name: str, make: "Callable[[], Sink]", say: Callable[[str], None]) -> None:
        self.name, self.say = name, say
        self.figures: queue.Queue[tuple[Record, int] | None] = queue.Queue(10_000)
        self.ready, self.given_up = threading.Event(), False
        self.thread = threading.Thread(target=self._run, args=(make,), daemon=True)
        self.thread.start()
        self._wait(self.ready.wait(self.START), self.START)

    def send(self, figures: Record, step: int) -> None:
        """Add a point to each curve, soon."""
        with suppress(queue.Full):
            self.figures.put_nowait((figures, step))

    def close(self, seconds: float) -> None:
        """Send what is left and end; give up after some seconds."""
        if self.given_up:
            return
        with suppress(queue.Full):
            self.figures.put_nowait(None)
        self.thread.join(seconds)
        self._wait(not self.thread.is_alive(), seconds)

    def _wait(self, answered: bool, seconds: float) -> None:
        if not answered:
            self.given_up = True
            self.say(f"{self.name} is off: no answer for {seconds:g} s")

    def _run(self, make: "Callable[[], Sink]") -> None:
        try:
            sink = make()
            self.ready.set()
            while not self.given_up and (item := self.figures.get()) is not None:
                sink.send(*item)
            sink.close()
        except Exception as error:
            self.say(f"{self.name} is off: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        finally:
            self.ready.set()


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
        run_id = folder / "wandb" / "id"  # a run that goes on, goes on there too
        if not run_id.is_file():
            run_id.parent.mkdir(exist_ok=True)
            save_text(secrets.token_hex(8), run_id)
        options = dict(
            id=run_id.read_text(),
            resume="allow",
            project=cfg.EXPERIMENT.PROJECT or "edkd",
            name=folder.name,
            tags=[tag[:64] for tag in cfg.EXPERIMENT.TAG.split(",") if tag],  # which is as long as they may be
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
            mode, reason = "offline", f"it cannot be reached ({' '.join(str(error).split())[:100]})"
            self.run = wandb.init(mode=mode, **options | {"id": secrets.token_hex(8)})  # the other is taken
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
