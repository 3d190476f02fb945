"""The training loop: a pass over the images, an evaluation, a checkpoint, for each epoch."""

import functools
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edkd import world
from edkd.dataset import DataSet
from edkd.dataset.sampling import seed_everything, seed_for
from edkd.dataset.workers import end_workers
from edkd.distillers import Distiller, evaluation_logits
from edkd.engine.best import top1_key
from edkd.engine.captured_step import CapturedStep
from edkd.engine.checkpoint import save_text
from edkd.engine.collection import collect
from edkd.engine.config.batch_hint import hints_of
from edkd.engine.config.compare import long_warmups, saved_text
from edkd.engine.device import Pace, amp_dtype, autocast, keep_freed_memory, precision_name
from edkd.engine.environment import environment
from edkd.engine.evaluate import evaluate
from edkd.engine.log.background import Record
from edkd.engine.log.final import TEACHER_TOP1
from edkd.engine.log.logger import Logger
from edkd.engine.memo.cache import attach
from edkd.engine.nonfinite_checks import check_figures, check_steps
from edkd.engine.resume import identity_of, restore
from edkd.engine.run_files import RunFiles
from edkd.engine.run_state import RunState
from edkd.engine.schedule import learning_rate
from edkd.engine.summary import headline, identity, last_line, summarise
from edkd.engine.teacher_check import check_teachers
from edkd.engine.train_step import TrainStep
from edkd.engine.update import Losses, Update
from edkd.engine.weight_average import WeightAverage
from edkd.errors import UserError, WorkerError
from edkd.keys import Key
from edkd.signals import Stopped, hold, pending, stop_together
from edkd.types import Batch

KEYS = {
    "SOLVER.SEED": Key(
        1, "seed of the weights, the order of the images, and their views", low=0, high=2**63
    ),
    "SOLVER.BATCH_SIZE": Key(64, "images of a step", low=1, high=2**31),
}

AVERAGE_NOTE = (
    "SOLVER.EMA {}: accuracies, best epoch and student files are those of the averaged weights"
)

CHECK_EVERY = 50
"""Steps between two checks for values that are not finite, where a check waits for the device."""


class Trainer:
    """Trains a distiller on a data set.

    Args:
        cfg: the configuration; each checkpoint holds it as text.
        distiller: on the device.
        data: its batches are made on the device.
        update: the update rule of the distiller's parameters.
        folder: of the run.
        device: of all of these.
        checkpoint: the content of `latest` to resume from.
        on_epoch: called with the record of each finished epoch.
    """

    def __init__(
        self,
        cfg: Any,
        distiller: Distiller,
        data: DataSet,
        update: Update,
        folder: Path,
        device: torch.device,
        checkpoint: dict[str, Any] | None = None,
        on_epoch: Callable[[Record], None] | None = None,
    ) -> None:
        self.cfg = cfg
        self.distiller = distiller
        self.data = data
        self.update = update
        self.folder = folder
        self.device = device
        self.on_epoch = on_epoch

        self.config_text = saved_text(cfg)
        self.amp = amp_dtype(cfg.SOLVER.AMP, device)
        self.split = "val" if data.val else "test"
        self.top1 = top1_key(self.split)
        self.state = RunState()
        self.notes = [*data.notes, *hints_of(cfg)]  # lines for the beginning of the log
        self.train_step = TrainStep(cfg, distiller, data, update, self.amp, device)
        self.step: Callable[..., tuple[Losses, Tensor, Tensor]] = self.train_step
        self.average: WeightAverage | None = None
        if cfg.SOLVER.EMA:
            self.average = WeightAverage(distiller, cfg.SOLVER.EMA)
            self.notes.append(AVERAGE_NOTE.format(cfg.SOLVER.EMA))
        self.files = RunFiles(self)
        self.pace = Pace(device)
        keep_freed_memory(device)

        self.identity = identity_of(self)
        if checkpoint is not None:
            restore(self, checkpoint)

    # The loop.

    def train(self) -> dict[str, Any]:
        """Run the epochs that are left; return the summary.

        Raises:
            Stopped: a signal arrived; the finished steps are saved.
        """
        steps = len(self.data.train)
        done = self.state.epochs_done
        total = self.cfg.SOLVER.EPOCHS * steps
        before = done * steps + self.state.step_done

        about = identity(self.cfg, self.distiller)
        history = self.state.history
        with Logger(self.folder, self.cfg, history, total, before, about=about) as self.logger:
            facts = environment(self.device, self.cfg)
            self.logger.save(json.dumps(facts, indent=1) + "\n", "environment.json")
            for line in [*self.notes, self.headline(), *long_warmups(self.cfg)]:
                self.logger.say(line)
            epochs = range(done + 1, self.cfg.SOLVER.EPOCHS + 1)
            try:
                self.prepare(epochs)
                for epoch in epochs:
                    self.run_epoch(epoch)
                return self.finish()
            except Stopped as stopped:
                stopped.hint = self.files.how_to_continue()
                raise

    def prepare(self, epochs: range) -> None:
        """Set up the captured step and the teacher cache; run the teachers where that is needed."""
        if self.cfg.SOLVER.CUDA_GRAPH and world.size() > 1:
            self.logger.say(
                "SOLVER.CUDA_GRAPH: off, steps run eagerly (there are several processes)"
            )
        elif self.cfg.SOLVER.CUDA_GRAPH:
            self.step = CapturedStep(
                self.train_step, self.update.optimizer, self.device, self.logger.say
            )
        self.train_step.cache = attach(
            self.distiller,
            self.data.train,
            self.cfg,
            self.device,
            self.amp,
            epochs,
            self.logger.say,
        )
        check_teachers(self)
        if self.distiller.collects and not self.state.has_begun():
            collect(
                self.distiller,
                self.data.train,
                self.train_step.cache,
                self.amp,
                self.device,
                self.logger.show,
            )

    def run_epoch(self, epoch: int) -> None:
        """Train, evaluate and save; when stopped, save the steps that are done."""
        try:
            self.state.start_clock()
            record = {"epoch": epoch, **self.train_epoch(epoch)}
            world.broadcast(self.trained_tensors())
            self.state.stop_clock()

            start = time.perf_counter()
            figures = self.evaluate(self.split)
            seconds = time.perf_counter() - start

            record |= {f"{self.split}_{name}": value for name, value in figures.items()}
            record |= {"train_seconds": self.state.seconds, "eval_seconds": seconds}
            record["data_seconds"] = self.state.data_seconds
            self.check_finite(epoch, record)

            with hold():
                self.state.finish_epoch(record)
                self.files.save_epoch(epoch)
                self.logger.epoch(epoch * len(self.data.train))
                if self.on_epoch:
                    self.on_epoch(record)
        except (Stopped, WorkerError, UserError) as error:  # the last: an image cannot be read
            if isinstance(error, WorkerError):
                end_workers()

            # One process alone cannot save: the others wait for it within a step.
            can_save = world.size() == 1 or isinstance(error, Stopped)
            if self.state.step_done and can_save:
                self.check_update(epoch)
                self.files.save_latest()
                world.wait()
            raise

    def train_epoch(self, epoch: int) -> Record:
        """A pass over the training images, or the rest of it in a resumed run."""
        # Random numbers that a method or a layer draws in this epoch.
        seed_everything(seed_for(self.cfg.SOLVER.SEED, epoch, 0))
        self.distiller.train()
        self.distiller.start_epoch(epoch)
        has_stages = type(self.distiller).start_epoch is not Distiller.start_epoch
        if has_stages and isinstance(self.step, CapturedStep):
            self.step.forget()
        if self.train_step.cache:
            self.train_step.cache.prepare(epoch, self.logger.show)
        self.update.watch.reset()
        self.state.start_epoch()

        steps = len(self.data.train)
        batches = self.data.train.inputs(epoch, self.state.step_done)
        for inputs in self.state.timed(batches):
            with hold():
                done = (epoch - 1) * steps + self.state.step_done
                self.update.set_learning_rate(learning_rate(self.cfg, done, steps))
                results = self.step(epoch, *inputs)
                self.state.meter.add(*results, count=self.train_step.own_count(results[2]))
                self.state.step_done += 1
                self.after_step(epoch, done + 1)
            self.pace.end_step()

        self.check_update(epoch)
        means = self.state.meter.read()
        first = (epoch - 1) * steps
        last = epoch * steps - 1
        rate = self.update.recorded_rate
        return {
            "lr": rate(learning_rate(self.cfg, first, steps)),
            "lr_end": rate(learning_rate(self.cfg, last, steps)),
            **{f"train_{name}": value for name, value in means.items()},
        }

    def after_step(self, epoch: int, step: int) -> None:
        """Check, log and save where it is time to; all processes do so in the same step.

        Args:
            step: steps done since the first epoch.
        """
        if self.device.type == "cpu" or self.state.step_done % CHECK_EVERY == 0:
            self.check_update(epoch)
        if self.average:
            self.average.update(step)

        due = (pending(), self.logger.advance(step), self.files.is_save_due())
        signal, shows, saves = world.largest(due)
        if shows:
            figures = self.state.meter.read()
            self.logger.step(step, epoch, figures)
            self.check_update(epoch)
            self.check_finite(epoch, figures)
        if saves:
            self.check_update(epoch)
            self.files.save_latest()
        if world.size() > 1:
            stop_together(signal)

    def finish(self) -> dict[str, Any]:
        """Write `result.json`, log the last line; return the summary.

        The students then have the weights of the figures.
        """
        if self.average:
            self.average.give_average()
            self.average = None
        result = summarise(
            self.cfg, self.distiller, self.state.history, self.split, self.folder, self.evaluate
        )
        if self.state.teacher_top1:
            result[TEACHER_TOP1] = self.state.teacher_top1
        if world.is_first():
            save_text(json.dumps(result, indent=1) + "\n", self.folder / "result.json")

        self.logger.finish(result)
        self.logger.say(last_line(result, self.folder))
        return result

    # Parts of it.

    def evaluate(self, split: str) -> dict[str, float]:
        """Top-1, top-5 and loss of the student on "val" or "test"."""
        self.distiller.eval()
        with self.averaged(), autocast(self.amp, self.device):
            run = functools.partial(evaluation_logits, self.distiller)
            return evaluate(run, getattr(self.data, split))

    def trained_tensors(self) -> list[Tensor]:
        """The state of what learns, and its average."""
        averages = self.average.averages if self.average else []
        return [*self.distiller.trained_state().values(), *averages]

    def averaged(self) -> AbstractContextManager[None]:
        """Within the block, the students have the average of their weights, where there is one."""
        return self.average.in_place() if self.average else nullcontext()

    def headline(self) -> str:
        """The run in one line."""
        return headline(
            self.cfg,
            self.distiller,
            self.data,
            self.split,
            f"{self.device} {precision_name(self.amp)}",
            self.state,
            self.folder,
        )

    # Checks.

    def check_update(self, epoch: int) -> None:
        """Raise NonFiniteError where a step was not finite; no update was made since."""
        check_steps(self, epoch)

    def batch_of(self, epoch: int, step: int) -> Batch:
        """The batch of a step, from 0."""
        inputs = next(iter(self.data.train.inputs(epoch, step)))
        return self.train_step.batch(epoch, *inputs)

    def check_finite(self, epoch: int, figures: Record) -> None:
        """Raise NonFiniteError where a figure of the epoch is not finite, before it is saved."""
        check_figures(self, epoch, figures)
