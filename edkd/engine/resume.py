"""Continuing a run from a checkpoint, if it belongs to the same data, teacher and precision."""

from typing import TYPE_CHECKING, Any

import torch

from edkd.dataset import STOP
from edkd.engine.best import best_record
from edkd.engine.checkpoint import fingerprint
from edkd.engine.device import precision_name
from edkd.engine.weight_average import STATE
from edkd.errors import UserError, warn

if TYPE_CHECKING:
    from edkd.engine.trainer import Trainer

_NOT_A_STATE = (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError)
"""What a file of another kind raises when it is loaded as a state."""

CLASS_NAMES = "class names"
IMAGES = "number of training images"

_ALWAYS_SAVED = (
    "number of classes",
    IMAGES,
    "precision",
    "split for the best epoch",
    "teacher",
)
"""Runs of older versions have only these."""

_USE_THE_SAME = "use the same again"
_PUT_BACK = (
    "put back the files that are missing and take away new ones; for an unreadable file that was "
    "removed, put an empty one of its name there and set DATASET.ON_BAD_IMAGE skip or replace"
)
_ACCEPT_FILES = (
    "use the same files again; if they were repaired or became unreadable since, set "
    "DATASET.ON_BAD_IMAGE skip or replace"
)
_REMEDIES = {"names of": _PUT_BACK, "files of": _ACCEPT_FILES}
"""By the first words of the names in `DataInfo.identity`."""


def identity_of(trainer: "Trainer") -> dict[str, Any]:
    """What a resumed run must have in common besides its configuration."""
    info = trainer.data.info
    images = trainer.data.train
    teachers = trainer.distiller.teachers()
    return {
        "number of classes": info.num_classes,
        CLASS_NAMES: list(info.class_names),
        IMAGES: images.num_images + images.num_left_out,
        "precision": precision_name(trainer.amp),
        "split for the best epoch": trainer.split,
        "teacher": ", ".join(fingerprint(teacher) for teacher in teachers) or "none",
        **info.identity,
    }


def restore(trainer: "Trainer", state: dict[str, Any]) -> None:
    """Take over the content of `latest`.

    Raises:
        UserError: it belongs to other data, another teacher or precision, or is not such a file.
    """
    try:
        accepts_files = trainer.cfg.DATASET.ON_BAD_IMAGE != STOP
        _check_identity(trainer.identity, state["identity"], accepts_files)
        distiller = trainer.distiller
        distiller.load_state_dict(distiller.state_dict() | state["model"])
        trainer.update.load_state_dict(state)
        if trainer.average:
            trainer.average.load_state_dict(state[STATE])
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


def _check_identity(now: dict[str, Any], saved: dict[str, Any], accepts_files: bool) -> None:
    """Raise UserError for a difference.

    Args:
        now: from `identity_of`.
        saved: the same of the run; older versions saved neither class names nor hashes.
        accepts_files: whether image files may have other sizes and contents than before.
    """
    for name, value in now.items():
        if name not in saved and name not in _ALWAYS_SAVED:
            continue
        if saved[name] == value:
            continue

        if accepts_files and name.startswith("files of"):
            warn(f"--resume: the {name} differ from those that the run began with")
            continue
        raise UserError(f"--resume: {_difference(name, saved[name], now)}")


def _difference(name: str, before: Any, now: dict[str, Any]) -> str:
    """What differs, and how to continue."""
    if name == CLASS_NAMES:
        return _other_classes(before, now[name])
    if name == IMAGES:
        has_files = any(each.startswith("names of") for each in now)
        remedy = _PUT_BACK if has_files else _USE_THE_SAME
        return f"the run had {name} {before}, and now it is {now[name]}; {remedy}"
    if name in _ALWAYS_SAVED:
        return f"the run had {name} {before}, and now it is {now[name]}; {_USE_THE_SAME}"

    remedies = [text for start, text in _REMEDIES.items() if name.startswith(start)]
    remedy = remedies[0] if remedies else "use the same data set again"
    return f"the {name} differ from those that the run began with; {remedy}"


def _other_classes(before: list[str], now: list[str]) -> str:
    """The first class that has another name."""
    pairs = zip(before, now, strict=False)
    for number, (old, new) in enumerate(pairs):
        if old != new:
            return (
                f"the class names differ: class {number} was {old!r} and is now {new!r}; use the "
                "same data set again, or name its classes as before"
            )
    return (
        f"the class names differ: there were {len(before)} and now there are {len(now)}; use the "
        "same data set again"
    )


def _warn_about_threads(trainer: "Trainer", state: dict[str, Any]) -> None:
    now = torch.get_num_threads()
    before = state.get("threads", now)
    if trainer.device.type == "cpu" and before != now:
        warn(
            f"the run had {before} threads and now has {now}: the last bits will differ; "
            "OMP_NUM_THREADS sets the number"
        )
