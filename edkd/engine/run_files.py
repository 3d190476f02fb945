"""The checkpoints and student files of a run."""

import time
from typing import TYPE_CHECKING, Any

import torch

from edkd import world
from edkd.engine.best import best_record, is_best
from edkd.engine.checkpoint import LATEST, PREVIOUS, save_checkpoint
from edkd.engine.student_files import StudentFiles, remove_numbered, room_of_run
from edkd.engine.weight_average import STATE
from edkd.keys import Key
from edkd.signals import hold

if TYPE_CHECKING:
    from edkd.engine.trainer import Trainer

KEYS = {
    "SOLVER.CHECKPOINT_MINUTES": Key(
        10.0,
        "time between checkpoints within an epoch, the most that a crash can cost; 0: none",
        unit="minutes",
        low=0.0,
        free_on_resume=True,
    ),
}


class RunFiles:
    """Writes the checkpoints and student files of a run; of several processes, the first writes.

    Args:
        trainer: whose state is saved.
    """

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer = trainer
        self.folder = trainer.folder
        self.saved_at = time.monotonic()
        self.students = StudentFiles(
            trainer.folder,
            trainer.distiller.students(),
            trainer.distiller.architectures(trainer.cfg),
            trainer.data.info,
            trainer.split,
            trainer.cfg,
        )

    def is_save_due(self) -> bool:
        """Whether it is time for a checkpoint within the epoch."""
        minutes = self.trainer.cfg.SOLVER.CHECKPOINT_MINUTES
        is_within = self.trainer.state.step_done < len(self.trainer.data.train)
        is_late = time.monotonic() - self.saved_at > 60 * minutes
        return bool(minutes) and is_within and is_late and world.is_first()

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

        log = self.trainer.cfg.LOG
        is_numbered = bool(log.SAVE_CHECKPOINT_FREQ) and epoch % log.SAVE_CHECKPOINT_FREQ == 0
        tags = ["latest", str(epoch)] if is_numbered else ["latest"]
        with self.trainer.averaged():
            self.students.save(self.trainer.state.history, tags)

        if is_numbered:
            save_checkpoint(self.content(), self.folder / f"epoch_{epoch}")
        if is_best(self.trainer.state.history, self.trainer.top1):
            save_checkpoint(self.content(), self.folder / "best")

        self.save_latest()
        if log.KEEP:
            remove_numbered(self.folder, log.KEEP)

    def save_latest(self) -> None:
        """Write `latest`; the one before it stays as `latest.previous`."""
        with hold():
            content = self.content()  # within an epoch, all processes add up their figures
            if world.is_first():
                save_checkpoint(content, self.folder / LATEST, keep=self.folder / PREVIOUS)
            self.saved_at = time.monotonic()

    def content(self) -> dict[str, Any]:
        """Everything needed to resume after the last step, without the teacher's weights."""
        history = self.trainer.state.history
        best = best_record(history, self.trainer.top1)[self.trainer.top1] if history else -1.0

        average = {}
        if self.trainer.average:
            self.trainer.average.give_weights()  # a signal may have ended an evaluation
            average = {STATE: self.trainer.average.state_dict()}

        return {
            "model": self.trainer.distiller.trained_state(),
            **self.trainer.update.state_dict(),
            **self.trainer.state.state_dict(),
            **average,
            "best_acc": best,
            "config": self.trainer.config_text,
            "identity": self.trainer.identity,
            "threads": torch.get_num_threads(),
        }

    def room(self) -> int:
        """Bytes that the checkpoints of the whole run take at most."""
        return room_of_run(
            self.trainer.cfg,
            self.trainer.distiller.trained_state(),
            self.students.size(),
            self.trainer.update.buffers_per_parameter() + bool(self.trainer.average),
        )
