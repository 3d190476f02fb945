"""Continuing a run from a checkpoint, if it belongs to the same data, teacher and precision."""

from typing import TYPE_CHECKING, Any

import torch

from edkd.engine.best import best_record
from edkd.engine.checkpoint import fingerprint
from edkd.engine.device import precision_name
from edkd.errors import UserError, warn

if TYPE_CHECKING:
    from edkd.engine.trainer import Trainer

_NOT_A_STATE = (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError)
"""What a file of another kind raises when it is loaded as a state."""


def identity_of(trainer: "Trainer") -> dict[str, Any]:
    """What a resumed run must have in common besides its configuration."""
    info = trainer.data.info
    teachers = trainer.distiller.teachers()
    return {
        "number of classes": info.num_classes,
        "number of training images": trainer.data.train.num_images,
        "precision": precision_name(trainer.amp),
        "split for the best epoch": trainer.split,
        "teacher": ", ".join(fingerprint(teacher) for teacher in teachers) or "none",
    }


def restore(trainer: "Trainer", state: dict[str, Any]) -> None:
    """Take over the content of `latest`.

    Raises:
        UserError: it belongs to other data, another teacher or precision, or is not such a file.
    """
    try:
        _check_identity(trainer.identity, state["identity"])
        distiller = trainer.distiller
        distiller.load_state_dict(distiller.state_dict() | state["model"])
        trainer.update.load_state_dict(state)
        _warn_about_threads(trainer, state)
        trainer.state.load_state_dict(state, trainer.device)
        if trainer.state.history:
            best_record(trainer.state.history, trainer.top1)
    except UserError:
        raise
    except _NOT_A_STATE as error:
        kind = type(error).__name__
        raise UserError(
            f"--resume: 'latest' in {trainer.folder} does not fit this run ({kind}); copy 'best' "
            "or a numbered checkpoint of that folder to it"
        ) from None

    done = trainer.state.epochs_done
    if done > trainer.cfg.SOLVER.EPOCHS:
        raise UserError(
            f"--resume: SOLVER.EPOCHS is {trainer.cfg.SOLVER.EPOCHS}, but {done} epochs are done"
        )


def _check_identity(now: dict[str, Any], saved: dict[str, Any]) -> None:
    for name, value in now.items():
        if saved[name] != value:
            raise UserError(
                f"--resume: the run had {name} {saved[name]}, and now it is {value}; use the same "
                "again"
            )


def _warn_about_threads(trainer: "Trainer", state: dict[str, Any]) -> None:
    now = torch.get_num_threads()
    before = state.get("threads", now)
    if trainer.device.type == "cpu" and before != now:
        warn(
            f"the run had {before} threads and now has {now}: the last bits will differ; "
            "OMP_NUM_THREADS sets the number"
        )
