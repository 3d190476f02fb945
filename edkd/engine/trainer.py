"""The loop: a pass over the training images, an evaluation, a checkpoint; and again."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from edkd.dataset import DataSet
from edkd.dataset.sampling import random_state, seed_everything, seed_for, set_random_state
from edkd.distillers import Distiller
from edkd.engine.captured_step import CapturedStep
from edkd.engine.checkpoint import (
    LATEST,
    PREVIOUS,
    fingerprint,
    load_checkpoint,
    load_weights,
    remove_numbered,
    save_checkpoint,
    save_text,
)
from edkd.engine.device import amp_dtype, autocast, keep_freed_memory
from edkd.engine.evaluate import evaluate
from edkd.engine.finite import FiniteWatch
from edkd.engine.logger import Logger, Record
from edkd.engine.meter import Meter
from edkd.engine.optim import learning_rate, make_optimizer, set_learning_rate
from edkd.engine.teacher_memo import TeacherMemo, remember
from edkd.errors import NonFiniteError, UserError, WorkerError, warn
from edkd.stop import Stopped, hold


class Trainer:
    """Trains a distiller on a data set.

    Args:
        cfg: SOLVER, LOG and EXPERIMENT are read; `latest` carries it as text.
        distiller: on the device.
        folder: of the run; exists.
        resume: the content of `latest`, to go on from there.
    """

    def __init__(
        self,
        cfg: Any,
        distiller: Distiller,
        data: DataSet,
        folder: Path,
        device: torch.device,
        resume: dict[str, Any] | None = None,
    ) -> None:
        self.cfg, self.distiller, self.data, self.folder, self.device = cfg, distiller, data, folder, device
        self.amp = amp_dtype(cfg.SOLVER.AMP, device)
        keep_freed_memory(device)
        self.optimizer = make_optimizer(distiller.get_learnable_parameters(), cfg)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp == torch.float16)
        self.split = "val" if data.val else "test"
        self.identity = {  # what no key of the configuration tells, and a resumed run must have in common
            "number of classes": data.num_classes,
            "number of training images": data.train.num_images,
            "precision": self.precision(),
            "teacher": fingerprint(distiller.teacher) if distiller.needs_teacher else "none",
        }
        self.history: list[Record] = []
        self.meter, self.watch = Meter(), FiniteWatch(device)
        self.step_done = 0  # steps done of the epoch that is under way
        self.random_state: dict[str, Any] | None = None  # of a run that goes on within an epoch
        self.memo: TeacherMemo | None = None
        self.saved = time.monotonic()
        if resume is not None:
            self.load_state(resume)
        self.step: Callable[..., tuple[dict[str, Tensor], Tensor, Tensor]] = self.train_step

    def train(self) -> dict[str, Any]:
        """Run the epochs that are left; return the `summary`. A signal raises Stopped after what is done is saved."""
        solver, steps, done = self.cfg.SOLVER, len(self.data.train), len(self.history)
        total, before = solver.EPOCHS * steps, done * steps + self.step_done
        with Logger(self.folder, self.cfg, self.history, total, before) as self.logger:
            self.logger.say(self.headline())
            if self.cfg.SOLVER.CUDA_GRAPH:
                self.step = CapturedStep(self.train_step, self.optimizer, self.device, self.logger.say)
            epochs = range(done + 1, solver.EPOCHS + 1)
            self.memo = remember(
                self.distiller, self.data.train, self.cfg, self.device, self.amp, epochs, self.logger.say
            )
            for epoch in epochs:
                self.run_epoch(epoch)
            result = self.summary()
            reached = "  ".join(f"{key} {value:.2f}" for key, value in result.items() if key.endswith("top1"))
            best = ", ".join([f"epoch {result['best_epoch']}", *filter(None, [result.get("best_student")])])
            self.logger.say(f"{reached}  (best: {best})  {self.folder}")
            return result

    def run_epoch(self, epoch: int) -> None:
        """Train, evaluate and save; when stopped, save how far it has come."""
        try:
            start = time.perf_counter()
            record = {"epoch": epoch, **self.train_epoch(epoch, self.step_done)}
            trained = time.perf_counter()
            record |= {f"{self.split}_{name}": value for name, value in self.evaluate(self.split).items()}
            record |= {"train_seconds": trained - start, "eval_seconds": time.perf_counter() - trained}
            self.check_finite(epoch, record)
            with hold():
                self.history.append(record)
                self.step_done = 0
                self.save(epoch)
                self.logger.epoch(epoch * len(self.data.train))
        except (Stopped, WorkerError):
            if self.step_done:
                self.check_update(epoch)
                self.save_latest()
            raise

    def train_epoch(self, epoch: int, first: int = 0) -> Record:
        """A pass over the training images, or what is left of it after the `first` steps."""
        seed_everything(seed_for(self.cfg.SOLVER.SEED, epoch, 0))  # what a method or a layer draws in the epoch
        self.distiller.train()
        if self.memo:
            self.memo.prepare(epoch, self.logger.show)
        if not first:
            self.meter = Meter()
        self.step_done = self.first_step = first
        self.watch.reset()
        if self.random_state:
            set_random_state(self.random_state)
            self.random_state = None
        steps, minutes = len(self.data.train), self.cfg.SOLVER.CHECKPOINT_MINUTES
        for inputs in self.data.train.inputs(epoch, first):
            with hold():
                step = (epoch - 1) * steps + self.step_done
                set_learning_rate(self.optimizer, learning_rate(self.cfg, step, steps))
                self.meter.add(*self.step(epoch, *inputs))
                self.step_done += 1
                if self.device.type == "cpu" or self.step_done % 50 == 0:
                    self.check_update(epoch)
                if figures := self.logger.step(step + 1, epoch, self.meter.read):
                    self.check_update(epoch)
                    self.check_finite(epoch, figures)
                if minutes and time.monotonic() - self.saved > 60 * minutes and self.step_done < steps:
                    self.check_update(epoch)
                    self.save_latest()
        self.check_update(epoch)
        rate = learning_rate(self.cfg, epoch * steps - 1, steps)
        return {"lr": rate, **{f"train_{name}": value for name, value in self.meter.read().items()}}

    def train_step(self, epoch: int | Tensor, *inputs: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Batch, forward, backward, update; returns the terms of the loss, the logits and the targets.

        It runs on the device alone, from tensors to tensors: nothing in it waits for the device.
        """
        with autocast(self.amp, self.device):
            losses, logits, target = self.forward(epoch, *inputs)
        self.update(losses, self.distiller.turns == 1)
        losses = {name: loss.detach() for name, loss in losses.items()}
        for turn in range(1, self.distiller.turns):
            with autocast(self.amp, self.device):
                more, *_ = self.forward(epoch, *inputs, turn=turn)
            self.update(more, turn == self.distiller.turns - 1)
            losses |= {name: loss.detach() + losses.get(name, 0.0) for name, loss in more.items()}
        return losses, logits.detach(), target

    def update(self, losses: dict[str, Tensor], ends_step: bool) -> None:
        """Backward, and an update of what has a gradient."""
        scaled = self.scaler.is_enabled()  # it leaves out updates by itself, also those after the first that failed
        loss = losses["loss"] * torch.where(self.watch.failed, torch.nan, 1.0) if scaled else losses["loss"]
        self.scaler.scale(loss).backward()
        skip = self.watch.skip(losses, [] if scaled else self.distiller.get_learnable_parameters(), ends_step)
        if self.optimizer.defaults["fused"] and not scaled:
            self.optimizer.found_inf = skip  # type: ignore[attr-defined]  # makes no update where this is 1
        elif not scaled and skip.item():  # without such an optimizer the host must look
            return self.optimizer.zero_grad(set_to_none=True)
        if self.cfg.SOLVER.CLIP_GRAD_NORM:
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.distiller.get_learnable_parameters(), self.cfg.SOLVER.CLIP_GRAD_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def forward(self, epoch: int | Tensor, *inputs: Tensor, **more: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The batch, and what the method makes of it: the terms of the loss and their sum, the logits, the targets."""
        batch = self.data.train.batch(*inputs)
        if self.memo:
            self.memo.expect(batch)
        about = dict(target=batch.target, index=batch.index, epoch=epoch)
        logits, losses = self.distiller(image=batch.image, **about, **more)
        losses = {name: loss.mean() for name, loss in losses.items()}
        return losses | {"loss": torch.stack(list(losses.values())).sum()}, logits, batch.target

    def check_update(self, epoch: int) -> None:
        """Raise NonFiniteError where a step of this epoch was not finite; no update was made since."""
        if not (found := self.watch.read()):
            if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
                raise NonFiniteError(
                    f"fp16 has no scale at which the gradient of epoch {epoch} is finite; set SOLVER.AMP bf16 or off, "
                    f"or lower SOLVER.LR; {self.kept()}"
                )
            return
        step, figures = self.first_step + found[0], found[1]
        batch = self.data.train.batch(*next(iter(self.data.train.inputs(epoch, step))))
        names = ", ".join(name for name, value in figures.items() if not math.isfinite(value))
        about = {"epoch": epoch, "step": step + 1, "figures": {name: str(value) for name, value in figures.items()}}
        save_text(json.dumps(about | {"index": batch.index.tolist()}, indent=1) + "\n", self.folder / "nonfinite.json")
        raise NonFiniteError(
            f"{names} not finite in epoch {epoch}, step {step + 1}; lower SOLVER.LR, or set SOLVER.CLIP_GRAD_NORM; "
            f"{self.kept()}; nonfinite.json there has the figures and images of that step"
        )

    def check_finite(self, epoch: int, figures: Record) -> None:
        """Raise NonFiniteError where a figure of the epoch is not finite; nothing of it has been saved."""
        if bad := [f"{name} is {value}" for name, value in figures.items() if not math.isfinite(value)]:
            raise NonFiniteError(
                f"{' and '.join(bad)} in epoch {epoch}; lower SOLVER.LR, or set SOLVER.CLIP_GRAD_NORM; {self.kept()}"
            )

    def kept(self) -> str:
        """What there is to go on from, in words."""
        return f"{self.folder} holds {'the last' if (self.folder / LATEST).exists() else 'no'} checkpoint"

    def headline(self) -> str:
        """What is about to run, in a line."""
        distiller, done, epochs = self.cfg.DISTILLER, len(self.history), self.cfg.SOLVER.EPOCHS
        names = " + ".join(self.distiller.student_names(self.cfg))
        names = f"{distiller.TEACHER} -> {names}" if self.distiller.needs_teacher else names
        return (
            f"{distiller.TYPE}  {names}  {self.cfg.DATASET.TYPE}: {self.data.train.num_images} images to train on, "
            f"{getattr(self.data, self.split).num_images} to choose by ({self.split})  "
            f"{self.device} {self.precision()}{' deterministic' if self.cfg.SOLVER.DETERMINISTIC else ''}  "
            f"{f'epochs {done + 1}-{epochs}' if done < epochs else f'all {epochs} epochs are done'}"
            f"{f' from step {self.step_done + 1}' if self.step_done else ''}  {self.folder}"
        )

    def precision(self) -> str:
        """The type in which forward passes compute, as "bfloat16"."""
        return str(self.amp or torch.float32).removeprefix("torch.")

    def evaluate(self, split: str) -> dict[str, float]:
        """Top-1, top-5 and loss of the student on "val" or "test"."""
        self.distiller.eval()
        with autocast(self.amp, self.device):
            return evaluate(lambda image: self.distiller(image=image), getattr(self.data, split))

    def best(self, name: str = "student") -> Record:
        """The record of the first epoch with the highest top-1 of a student, or of what stands for them all."""
        return max(self.history, key=lambda record: record[self.top1(name)])

    def top1(self, name: str) -> str:
        """The key of a student's top-1 in a record."""
        return f"{self.split}_top1" if name == "student" else f"{self.split}_{name}_top1"

    def save_latest(self) -> None:
        """Write `latest`; the one before it stays, as `latest.previous`."""
        with hold():
            save_checkpoint(self.state(), self.folder / LATEST, keep=self.folder / PREVIOUS)
            self.saved = time.monotonic()

    def save(self, epoch: int) -> None:
        """Write `latest` and `student_latest`; `best` if it is; numbered ones as LOG.SAVE_CHECKPOINT_FREQ says."""
        frequency = self.cfg.LOG.SAVE_CHECKPOINT_FREQ
        numbered = bool(frequency) and epoch % frequency == 0
        self.save_students(["latest", *([str(epoch)] if numbered else [])])
        if numbered:
            save_checkpoint(self.state(), self.folder / f"epoch_{epoch}")
        if self.best()["epoch"] == epoch:
            save_checkpoint(self.state(), self.folder / "best")
        self.save_latest()  # last: the files that it speaks of are there
        if self.cfg.LOG.KEEP:
            remove_numbered(self.folder, self.cfg.LOG.KEEP)

    def save_students(self, tags: list[str]) -> None:
        """Write `<name>_<tag>` of each student, and `<name>_best`; of several, `student_<tag>` is the best one's."""
        students, record = self.distiller.students(), self.history[-1]
        leader = max(students, key=lambda name: record[self.top1(name)])
        highest = max(self.best(name)[self.top1(name)] for name in students)
        before = [past[self.top1(name)] for past in self.history[:-1] for name in students]
        for name, student in students.items():
            model = {key: value.cpu().contiguous() for key, value in student.state_dict().items()}
            files = [f"{name}_{tag}" for tag in tags]
            if self.best(name) is record:
                files.append(f"{name}_best")
            if name == leader:
                files += [f"student_{tag}" for tag in tags]
                if record[self.top1(name)] == highest and highest not in before:
                    files.append("student_best")
            for file in dict.fromkeys(files):
                save_checkpoint({"model": model}, self.folder / file)

    def room(self) -> int:
        """Bytes that the checkpoints of the whole run take at most, the one that is being written included."""
        log, whole = self.cfg.LOG, sum(value.nbytes for value in self.distiller.trained_state().values())
        whole *= 2 if self.cfg.SOLVER.TYPE == "SGD" else 3  # with what the optimizer keeps of each parameter
        each = [sum(value.nbytes for value in s.state_dict().values()) for s in self.distiller.students().values()]
        students = sum(each) + (max(each) if len(each) > 1 else 0)
        numbered = self.cfg.SOLVER.EPOCHS // (log.SAVE_CHECKPOINT_FREQ or math.inf)
        return int((whole + students) * (4 + min(numbered, log.KEEP + 1 if log.KEEP else math.inf)))

    def state(self) -> dict[str, Any]:
        """Everything needed to go on after the last step, without the teacher's weights."""
        progress = {"step": self.step_done, "meter": self.meter.state()}
        progress |= {"random": self.random_state or random_state()}
        return {
            "epoch": len(self.history),
            "model": self.distiller.trained_state(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best_acc": self.best()[f"{self.split}_top1"] if self.history else -1.0,
            "history": self.history,
            "progress": progress if self.step_done else None,
            "config": self.cfg.dump(),
            "identity": self.identity,
            "threads": torch.get_num_threads(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned. Raises UserError where it belongs to other data, or fits no such run."""
        try:
            for name, value in self.identity.items():
                if (was := state["identity"][name]) != value:
                    raise UserError(
                        f"--resume: the run had {name} {was}, and now it is {value}; give it the same again"
                    )
            self.distiller.load_state_dict(self.distiller.state_dict() | state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            for group in self.optimizer.param_groups:
                group["fused"] = self.optimizer.defaults["fused"]  # of this device, not of the one before
            self.scaler.load_state_dict(state["scaler"])
            self.history = state["history"]
            if self.history:
                self.best()
            threads = torch.get_num_threads()
            if self.device.type == "cpu" and (was := state.get("threads", threads)) != threads:
                warn(
                    f"the run had {was} threads and now has {threads}: the last bits differ; OMP_NUM_THREADS sets them"
                )
            if progress := state.get("progress"):
                self.step_done, self.random_state = progress["step"], progress["random"]
                set_random_state(self.random_state)  # raises here, before anything is written, where it is none
                self.meter.load_state(progress["meter"], self.device)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            reason = f"fits no such run ({type(error).__name__})"
            way_out = "copy 'best' or a numbered checkpoint of that folder to its place"
            raise UserError(f"--resume: 'latest' in {self.folder} {reason}; {way_out}") from None
        if len(self.history) > self.cfg.SOLVER.EPOCHS:
            raise UserError(f"--resume: SOLVER.EPOCHS is {self.cfg.SOLVER.EPOCHS}, but {len(self.history)} are done")

    def summary(self) -> dict[str, Any]:
        """What the last and the best epoch reached, also written to `result.json`; of each student, its own best.

        Where a held-out split chose the best, both are evaluated on the test set too, for the first time.
        """
        last, best = self.history[-1], self.best()
        result = {
            "parameters": sum(p.numel() for p in self.distiller.student.parameters()),
            "extra_parameters": self.distiller.get_extra_parameters(),
            "epochs": len(self.history),
            "seed": self.cfg.SOLVER.SEED,
            "best_epoch": best["epoch"],
        }
        tops = [key for key in last if key.startswith(self.split) and key.endswith("top1")]
        result |= {f"last_{key}": last[key] for key in tops}
        students = self.distiller.students()
        own = {self.top1(name): name for name in students}
        if len(students) > 1:
            first = max(students, key=lambda name: (self.best(name)[self.top1(name)], -self.best(name)["epoch"]))
            names = dict(zip(students, self.distiller.student_names(self.cfg), strict=True))
            result["best_student"] = f"{first} ({names[first]})"  # whose weights `student_best` holds
        result |= {f"best_{key}": (self.best(own[key]) if key in own else best)[key] for key in tops}
        if self.split == "val":
            figures = {"last": self.evaluate("test")}
            for name, student in students.items():
                load_weights(student, self.folder / f"{name}_best")
            figures["best"] = self.evaluate("test")
            if len(students) > 1:  # what they reach together is that of one epoch, the best of their mean
                trained = load_checkpoint(self.folder / "best")["model"]
                self.distiller.load_state_dict(self.distiller.state_dict() | trained)
                figures["best"] |= {k: v for k, v in self.evaluate("test").items() if not k.startswith(tuple(students))}
            for which, reached in figures.items():
                result |= {f"{which}_test_{key}": value for key, value in reached.items() if key.endswith("top1")}
        save_text(json.dumps(result, indent=1) + "\n", self.folder / "result.json")
        return result


trainer_dict: dict[str, type[Trainer]] = {"base": Trainer}
"""SOLVER.TRAINER -> class."""
