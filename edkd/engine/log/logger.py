"""The log of a run: a progress bar, `worklog.txt`, `metrics.jsonl`, `status.json`, the sinks.

Logging libraries are imported where they are used. None of them can stop or delay a run.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from edkd import world
from edkd.engine.checkpoint import save_text
from edkd.engine.config.compare import hyper_parameters
from edkd.engine.environment import in_notebook
from edkd.engine.log.background import Background, Record, Sink
from edkd.engine.log.final import final_of
from edkd.engine.log.status_file import StatusFile
from edkd.engine.log.tensorboard import TensorBoard
from edkd.engine.log.time_left import TimeLeft, shown_duration
from edkd.engine.log.wandb import Wandb
from edkd.errors import StorageError, reason_of, warn
from edkd.keys import Key
from edkd.signals import Stopped
from edkd.streams import Guard

KEYS = {
    "LOG.PREFIX": Key(
        "./output",
        "folder of all runs",
        free_on_resume=True,
        names_run=False,
        is_path=True,
    ),
    "LOG.TENSORBOARD_FREQ": Key(
        500,
        "time between points of the training curves; 0: one point per epoch",
        unit="steps",
        low=0,
        free_on_resume=True,
        names_run=False,
    ),
    "LOG.PRINT": Key(
        True,
        "print the lines of the log and the progress bar; worklog.txt has the lines in any case",
        free_on_resume=True,
        names_run=False,
    ),
    "LOG.WANDB": Key(
        True,
        "also log to wandb; offline where there are no credentials",
        free_on_resume=True,
        names_run=False,
    ),
}

CLOSE = 90.0
"""Seconds that each sink may take at the end of a run to send its queued points."""

CLOSE_STOPPED = 2.0
"""The same for a run that was stopped by a signal."""

PATIENCE = 1.0
"""Seconds in which a file of the log that another program holds open is tried again."""

SHOW_EVERY = 1.0
"""Seconds between two updates of the text on the progress bar."""

_ON_BAR = ("loss", "top1")

_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"
"""tqdm's own, without its time left, which counts at the pace of the last steps."""

SinkFactory = Callable[[], Sink]


class Logger:
    """The log of a run; use it in a `with` block, which closes it.

    Args:
        folder: of the run; gets `worklog.txt`, `metrics.jsonl`, `train.events/`.
        cfg: of the run.
        history: records of the finished epochs, extended by the caller; `metrics.jsonl` has exactly
            these.
        total_steps: of the whole run.
        done_steps: of a resumed run, for the bar and the curves.
        sinks: functions that create the sinks, by name; by default TensorBoard and, with LOG.WANDB,
            wandb.
        about: facts about the run for `status.json`, see `StatusFile`.

    What cannot be written is skipped, with one warning for each file or stream. Of several
    processes, the first one alone writes.
    """

    def __init__(
        self,
        folder: Path,
        cfg: Any,
        history: Sequence[Record],
        total_steps: int,
        done_steps: int,
        sinks: Mapping[str, SinkFactory] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.history = history
        self.writes = world.is_first()
        self.frequency = cfg.LOG.TENSORBOARD_FREQ
        self.prints = cfg.LOG.PRINT and self.writes
        self.bar = tqdm(
            total=total_steps,
            initial=done_steps,
            file=Guard(sys.stderr),
            disable=_bar_is_off() if self.prints else True,
            unit="step",
            dynamic_ncols=True,
            bar_format=_BAR,
        )
        self._shown_at = time.monotonic()
        self._warned: set[str] = set()

        self.left = TimeLeft(history, cfg.SOLVER.EPOCHS, total_steps)
        self.status = StatusFile(folder, about or {}, history, self.left, done_steps)

        self._save_history()
        if sinks is None:
            sinks = self._configured_sinks(cfg, done_steps)
        self.sinks = [Background(name, make, self.say) for name, make in sinks.items()]

    def _configured_sinks(self, cfg: Any, done_steps: int) -> dict[str, SinkFactory]:
        if not self.writes:
            return {}
        settings = hyper_parameters(cfg)
        events = self.folder / "train.events"
        board = partial(TensorBoard, events, done_steps, settings)
        sinks: dict[str, SinkFactory] = {"TensorBoard": board}
        if cfg.LOG.WANDB:
            sinks["Wandb"] = partial(Wandb, self.folder, cfg, settings, self.say)
        return sinks

    def __enter__(self) -> "Logger":
        if self.writes:
            self.status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        is_stopped = kind is not None and issubclass(kind, Stopped)
        try:
            self.close(CLOSE_STOPPED if is_stopped else CLOSE)
        finally:  # also where a second signal ends the wait
            self.status.close(error)

    def close(self, seconds: float = CLOSE) -> None:
        """Close the bar and the sinks; each sink has `seconds` to send its queued points."""
        self.bar.close()
        for sink in self.sinks:
            sink.close(seconds)

    def say(self, line: str) -> None:
        """Write a line to standard output and, with the time, to `worklog.txt`.

        A target that cannot be written is skipped, with one warning.
        """
        if not self.writes:
            return
        if self.prints:
            self._print(line)

        worklog = self.folder / "worklog.txt"
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            with open(worklog, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{now} {line}\n")
        except OSError as error:
            self._warn(str(worklog), error)

    def save(self, text: str, name: str) -> None:
        """Write a file of the log, as `environment.json`, whole; the old one stays where it fails.

        A file that another program holds open, as a viewer on Windows, is tried again for a moment.
        """
        if not self.writes:
            return
        path = self.folder / name
        patience = 0.0 if str(path) in self._warned else PATIENCE
        try:
            save_text(text, path, patience)
        except StorageError as error:
            self._warn(str(path), error.__cause__ or error)

    def show(self, doing: str) -> None:
        """Show on the bar what runs between the steps; at most once a second."""
        self.status.show(doing)
        if self._is_bar_due():
            self._shown_at = time.monotonic()
            self.bar.set_description(doing)

    def advance(self, step: int) -> bool:
        """Count a training step; return whether its figures are due, for the bar or a curve.

        Args:
            step: number of the step in the run, from 1.
        """
        self.bar.update()
        self.status.advance(step)
        return self._is_bar_due() or self._is_point_due(step)

    def step(self, step: int, epoch: int, figures: Record) -> None:
        """Log the figures of a training step.

        Args:
            step: number of the step in the run, from 1.
            epoch: from 1.
            figures: means since the beginning of the epoch.
        """
        if self._is_bar_due():
            self._show_figures(step, epoch, figures)
        if self._is_point_due(step):
            self._send("step", figures, step)

    def epoch(self, step: int) -> None:
        """Log the last epoch of `history`: `metrics.jsonl`, a line, a point in each curve.

        The line ends with the time left of the run.

        Args:
            step: the epoch's last step, from 1.
        """
        self._save_history()
        record = self.history[-1]

        # Single terms of the loss, as train_loss_ce, would make the line too long.
        keys = [key for key in record if key.count("_") < 2 or key.endswith("top1")]
        if record.get("lr_end") == record.get("lr"):
            keys = [key for key in keys if key != "lr_end"]
        parts = [f"{key} {_short(record[key])}" for key in keys]
        left = self._time_left(step)
        if left:
            parts.append(f"time left {left}")
        self.say("  ".join(parts))

        figures = {key: value for key, value in record.items() if key != "epoch"}
        self._send("epoch", figures, step)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Give the sinks the final figures.

        Args:
            result: the content of `result.json`.
        """
        final = final_of(result, self.folder.name, self.left.total_steps)
        for sink in self.sinks:
            sink.finish(final)

    def _save_history(self) -> None:
        """Write `metrics.jsonl` whole, which also repairs lines that were damaged since."""
        lines = [json.dumps(record) + "\n" for record in self.history]
        self.save("".join(lines), "metrics.jsonl")

    def _send(self, group: str, figures: Record, step: int) -> None:
        named = {f"{group}/{key}": value for key, value in figures.items()}
        for sink in self.sinks:
            sink.send(named, step)

    def _is_point_due(self, step: int) -> bool:
        return self.frequency > 0 and step % self.frequency == 0

    def _is_bar_due(self) -> bool:
        return not self.bar.disable and time.monotonic() - self._shown_at >= SHOW_EVERY

    def _time_left(self, step: int) -> str:
        """The time left after a step, "" at the end and where it is not known."""
        seconds = self.left.seconds(step)
        return shown_duration(seconds) if seconds else ""

    def _show_figures(self, step: int, epoch: int, figures: Record) -> None:
        self._shown_at = time.monotonic()
        texts = {key: f"{figures[key]:.4g}" for key in _ON_BAR}
        left = self._time_left(step)
        if left:
            texts["left"] = left
        self.bar.set_description(f"epoch {epoch}", refresh=False)
        self.bar.set_postfix(texts, refresh=False)

    def _print(self, line: str) -> None:
        """Write a line above the bar."""
        if sys.stdout is None:  # the process was started without one
            return
        try:
            self.bar.write(line)
            sys.stdout.flush()
        except Exception as error:  # of whatever stands in place of the stream
            self._warn("standard output", error)

        # Within a command, errors are kept.
        if isinstance(sys.stdout, Guard):
            kept = sys.stdout.take_error()
            if kept is not None:
                self._warn("standard output", kept)

    def _warn(self, name: str, error: BaseException) -> None:
        if name in self._warned:
            return
        self._warned.add(name)
        warn(f"cannot write {name}: {reason_of(error)}; the run continues without it")


def _bar_is_off() -> bool | None:
    """For tqdm: False in Jupyter; else None, which shows the bar on a terminal only."""
    return False if in_notebook() else None


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
