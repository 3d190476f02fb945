"""The training loop: a pass over the images, an evaluation, a checkpoint, for each epoch."""

import dataclasses
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
from edkd.distillers import (
    Distiller,
    check_first_terms,
    check_terms,
    evaluation_logits,
    explained,
    prepare_batch,
)
from edkd.engine.accumulate import add_up, joined, split, weighted
from edkd.engine.best import best_record, is_best, top1_key
from edkd.engine.captured_step import CapturedStep
from edkd.engine.checkpoint import LATEST, PREVIOUS, save_checkpoint, save_text
from edkd.engine.collection import collect
from edkd.engine.config.batch_hint import hints_of
from edkd.engine.config.compare import hyper_parameters, long_warmups, saved_text
from edkd.engine.device import Pace, amp_dtype, autocast, keep_freed_memory, precision_name
from edkd.engine.environment import environment
from edkd.engine.evaluate import evaluate
from edkd.engine.log.logger import Logger, Record
from edkd.engine.memo.cache import TeacherCache, attach
from edkd.engine.nonfinite_checks import check_figures, check_steps
from edkd.engine.resume import identity_of, restore
from edkd.engine.run_state import RunState
from edkd.engine.schedule import learning_rate
from edkd.engine.student_files import StudentFiles, remove_numbered, room_of_run
from edkd.engine.summary import TEACHER_TOP1, headline, last_line, summarise
from edkd.engine.teacher_check import check_teachers
from edkd.engine.update import Losses, Update
from edkd.engine.weight_average import STATE, WeightAverage
from edkd.errors import UserError, WorkerError, batch_norm_explained
from edkd.keys import Key
from edkd.shared_layers import shared
from edkd.signals import Stopped, hold, pending, stop_together
from edkd.types import Batch

KEYS = {
    "SOLVER.SEED": Key(
        1, "seed of the weights, the order of the images, and their views", low=0, high=2**63
    ),
    "SOLVER.BATCH_SIZE": Key(64, "images of a step", low=1, high=2**31),
    "SOLVER.CHECKPOINT_MINUTES": Key(
        10.0,
        "time between checkpoints within an epoch, the most that a crash can cost; 0: none",
        unit="minutes",
        low=0.0,
        free_on_resume=True,
    ),
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
        self.cache: TeacherCache | None = None
        self.saved_at = time.monotonic()
        self.terms_are_checked = False
        self.notes = [*data.notes, *hints_of(cfg)]  # lines for the beginning of the log
        self.step: Callable[..., tuple[Losses, Tensor, Tensor]] = self.train_step
        self.average: WeightAverage | None = None
        if cfg.SOLVER.EMA:
            self.average = WeightAverage(distiller, cfg.SOLVER.EMA)
            self.notes.append(AVERAGE_NOTE.format(cfg.SOLVER.EMA))
        self.student_files = StudentFiles(
            folder,
            distiller.students(),
            distiller.architectures(cfg),
            data.info,
            self.split,
            cfg.DATASET.TYPE,
        )
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

        history = self.state.history
        settings = hyper_parameters(self.cfg)
        with Logger(
            self.folder, self.cfg, history, total, before, settings=settings
        ) as self.logger:
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
                stopped.hint = self.how_to_continue()
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
        self.cache = attach(
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
                self.cache,
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
                self.save_epoch(epoch)
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
                self.save_latest()
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
        if self.cache:
            self.cache.prepare(epoch, self.logger.show)
        self.update.watch.reset()
        self.state.start_epoch()

        steps = len(self.data.train)
        batches = self.data.train.inputs(epoch, self.state.step_done)
        for inputs in self.state.timed(batches):
            with hold():
                done = (epoch - 1) * steps + self.state.step_done
                self.update.set_learning_rate(learning_rate(self.cfg, done, steps))
                results = self.step(epoch, *inputs)
                self.state.meter.add(*results, count=self.own_count(results[2]))
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

    def train_step(self, epoch: int | Tensor, *inputs: Tensor) -> tuple[Losses, Tensor, Tensor]:
        """Batch, forward, backward, update.

        It runs on the device alone, from tensors to tensors: nothing waits for the device.

        Returns:
            The terms of the loss and their sum, the logits, the targets.
        """
        batch = dataclasses.replace(self.data.train.batch(*inputs), epoch=epoch)
        batch = prepare_batch(self.distiller, batch)

        total: Losses = {}
        first_logits = None
        for turn in range(self.distiller.turns):
            losses, logits = self.backward(batch, turn)
            self.update.step(
                losses,
                recompute=functools.partial(self.recompute, batch, turn),
                ends_step=turn + 1 == self.distiller.turns,
            )
            for name, loss in losses.items():
                total[name] = total.get(name, 0.0) + loss.detach()
            first_logits = logits.detach() if first_logits is None else first_logits

        assert first_logits is not None
        return total, first_logits, batch.target

    def backward(self, batch: Batch, turn: int) -> tuple[Losses, Tensor]:
        """Gradients of a batch, which runs in SOLVER.ACCUMULATE parts; its losses and logits."""
        all_losses: list[Losses] = []
        all_logits: list[Tensor] = []
        for part in split(batch, self.cfg.SOLVER.ACCUMULATE):
            if self.cache and turn == 0:
                self.cache.expect(part)
            losses, logits = self.forward(part, turn)
            losses = weighted(losses, part, batch)
            self.update.backward(self.of_share(losses, batch))
            all_losses.append(losses)
            all_logits.append(logits)
        return add_up(all_losses), joined(all_logits)

    def own_count(self, target: Tensor) -> int:
        """Images of this process in the present batch that count."""
        return world.own_count(self.data.train.counts, len(target))

    def of_share(self, losses: Losses, batch: Batch) -> Losses:
        """Losses whose mean over the processes is that of the whole batch."""
        if not batch.counts or self.distiller.relates_images():
            return losses
        weight = world.weight_of(batch.counts)
        return {name: weight * loss for name, loss in losses.items()}

    def forward(self, batch: Batch, turn: int = 0) -> tuple[Losses, Tensor]:
        """The terms of the loss and "loss", their sum; the logits."""
        has_new_targets = batch.target.is_floating_point() and not self.terms_are_checked
        with (
            shared(batch.counts, self.cfg.SOLVER.SYNC_BATCH_NORM),
            autocast(self.amp, self.device),
            explained(type(self.distiller), has_new_targets),
            batch_norm_explained(),
        ):
            result = self.distiller.training_step(batch, turn)
        logits, terms = check_terms(self.distiller, result)
        if not self.terms_are_checked:
            world.agree({"terms of the loss": sorted(terms)})
            check_first_terms(self.distiller, terms)
            self.update.check_terms(terms)
            self.terms_are_checked = True

        losses = {name: loss.mean() for name, loss in terms.items()}
        losses["loss"] = torch.stack(list(losses.values())).sum()
        return losses, logits

    def recompute(self, batch: Batch, turn: int) -> Losses:
        """The losses of a batch with the present weights, for update rules that need them again.

        Raises:
            UserError: the batch runs in parts.
        """
        if self.cfg.SOLVER.ACCUMULATE > 1:
            raise UserError(
                f"SOLVER.TRAINER {self.cfg.SOLVER.TRAINER} computes the loss of a batch again and "
                "cannot run it in parts; set SOLVER.ACCUMULATE 1"
            )
        losses, _ = self.forward(batch, turn)
        return self.of_share(losses, batch)

    def after_step(self, epoch: int, step: int) -> None:
        """Check, log and save where it is time to; all processes do so in the same step.

        Args:
            step: steps done since the first epoch.
        """
        if self.device.type == "cpu" or self.state.step_done % CHECK_EVERY == 0:
            self.check_update(epoch)
        if self.average:
            self.average.update(step)

        due = (pending(), self.logger.advance(step), self.is_save_due())
        signal, shows, saves = world.largest(due)
        if shows:
            figures = self.state.meter.read()
            self.logger.step(step, epoch, figures)
            self.check_update(epoch)
            self.check_finite(epoch, figures)
        if saves:
            self.check_update(epoch)
            self.save_latest()
        if world.size() > 1:
            stop_together(signal)

    def is_save_due(self) -> bool:
        """Whether it is time for a checkpoint within the epoch."""
        minutes = self.cfg.SOLVER.CHECKPOINT_MINUTES
        is_within = self.state.step_done < len(self.data.train)
        is_late = time.monotonic() - self.saved_at > 60 * minutes
        return bool(minutes) and is_within and is_late and world.is_first()

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

        self.logger.finish(result, self.cfg.SOLVER.EPOCHS * len(self.data.train))
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
        batch = dataclasses.replace(self.data.train.batch(*inputs), epoch=epoch)
        return prepare_batch(self.distiller, batch)

    def check_finite(self, epoch: int, figures: Record) -> None:
        """Raise NonFiniteError where a figure of the epoch is not finite, before it is saved."""
        check_figures(self, epoch, figures)

    # Files.

    def last_checkpoint(self) -> str:
        """Describes the last checkpoint."""
        which = "the last" if (self.folder / LATEST).exists() else "no"
        return f"{self.folder} holds {which} checkpoint"

    def how_to_continue(self) -> str:
        """The hint of a stopped run; "" where there is no checkpoint to resume from."""
        return "--resume continues from here" if (self.folder / LATEST).exists() else ""

    def save_epoch(self, epoch: int) -> None:
        """Write the files of a finished epoch; `latest`, which refers to the others, comes last."""
        if not world.is_first():
            return
        log = self.cfg.LOG
        is_numbered = bool(log.SAVE_CHECKPOINT_FREQ) and epoch % log.SAVE_CHECKPOINT_FREQ == 0

        tags = ["latest", str(epoch)] if is_numbered else ["latest"]
        with self.averaged():
            self.student_files.save(self.state.history, tags)
        if is_numbered:
            save_checkpoint(self.checkpoint(), self.folder / f"epoch_{epoch}")
        if is_best(self.state.history, self.top1):
            save_checkpoint(self.checkpoint(), self.folder / "best")

        self.save_latest()
        if log.KEEP:
            remove_numbered(self.folder, log.KEEP)

    def save_latest(self) -> None:
        """Write `latest`; the one before it stays as `latest.previous`."""
        with hold():
            content = self.checkpoint()  # within an epoch, all processes add up their figures
            if world.is_first():
                save_checkpoint(content, self.folder / LATEST, keep=self.folder / PREVIOUS)
            self.saved_at = time.monotonic()

    def checkpoint(self) -> dict[str, Any]:
        """Everything needed to resume after the last step, without the teacher's weights."""
        history = self.state.history
        best = best_record(history, self.top1)[self.top1] if history else -1.0
        average = {}
        if self.average:
            self.average.give_weights()  # a signal may have ended an evaluation
            average = {STATE: self.average.state_dict()}
        return {
            "model": self.distiller.trained_state(),
            **self.update.state_dict(),
            **self.state.state_dict(),
            **average,
            "best_acc": best,
            "config": self.config_text,
            "identity": self.identity,
            "threads": torch.get_num_threads(),
        }

    def room(self) -> int:
        """Bytes that the checkpoints of the whole run take at most."""
        return room_of_run(
            self.cfg,
            self.distiller.trained_state(),
            self.student_files.size(),
            self.update.buffers_per_parameter() + bool(self.average),
        )
