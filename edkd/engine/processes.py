"""Training in several processes: how they start, and what they must have in common."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import edkd
from edkd import world
from edkd.dataset import DataSet
from edkd.distillers import Distiller, uses_published_style
from edkd.engine.config.table import table
from edkd.engine.device import pick_device
from edkd.errors import UserError
from edkd.keys import Key

if TYPE_CHECKING:
    from edkd.engine.trainer import Trainer

KEYS = {
    "SOLVER.SYNC_BATCH_NORM": Key(
        True,
        "with several processes: batch normalisation uses the statistics of the whole batch, which "
        "gives the result of one process; False: those of each process's share, which sends less",
    ),
    "SOLVER.PROCESS_TIMEOUT": Key(
        600.0,
        "with several processes: one that does not respond for this time counts as hanging, and "
        "the others end",
        unit="seconds",
        low=1.0,
        free_on_resume=True,
        names_run=False,
    ),
}


def join(cfg: Any, device: str) -> torch.device:
    """Join the other processes, where torchrun started several.

    Args:
        cfg: SOLVER.PROCESS_TIMEOUT and SOLVER.BATCH_SIZE are read.
        device: --device; "auto" and "cuda" give each process a GPU of its own.

    Returns:
        The device of this process.

    Raises:
        UserError: there are more processes than GPUs, or than images in a batch.
        ProcessError: the processes cannot reach one another.
    """
    number = world.launched()
    if number == 1:
        return pick_device(device)

    if number > cfg.SOLVER.BATCH_SIZE:
        raise UserError(
            f"SOLVER.BATCH_SIZE {cfg.SOLVER.BATCH_SIZE} counts the images of all processes, and "
            f"there are {number}; raise it, or start fewer processes"
        )
    where = own_device(device)
    world.start(where, cfg.SOLVER.PROCESS_TIMEOUT)
    return where


def own_device(name: str) -> torch.device:
    """The device of this process, one of several.

    Raises:
        UserError: there are fewer GPUs than processes on this machine, or one is named for all.
    """
    if name.startswith("cuda:"):
        raise UserError(
            f"--device {name} would be that of all processes; give cuda, or leave it out"
        )
    if name not in ("auto", "cuda") or not torch.cuda.is_available():
        return pick_device(name)

    available = torch.cuda.device_count()
    started = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    if started > available:
        raise UserError(
            f"this machine has {available} GPUs, and torchrun started {started} processes on it; "
            "lower --nproc-per-node, or train on --device cpu"
        )
    local = int(os.environ.get("LOCAL_RANK") or 0)
    return pick_device(f"cuda:{min(local, available - 1)}")  # a launcher may show one GPU to each


def check_shared(data: DataSet, distiller: Distiller, name: str) -> None:
    """Raise UserError where processes cannot share these images or this method.

    Args:
        name: DISTILLER.TYPE.
    """
    number = world.size()
    if number == 1:
        return

    parts = {"training": data.train, "validation": data.val, "test": data.test}
    for title, loader in parts.items():
        if loader is None:
            continue
        if not loader.is_shared:
            raise UserError(
                f"the {title} images come from a loader of your own, which {number} processes "
                "cannot share; register a data set, or start one process"
            )
        if loader.num_images < number:
            raise UserError(
                f"there are {loader.num_images} {title} images for {number} processes; start "
                "fewer processes"
            )

    if not uses_published_style(type(distiller)):
        return
    if distiller.relates_images():
        raise UserError(
            f"DISTILLER.TYPE {name} relates the images of a batch, and runs the networks itself: "
            f"{number} processes cannot share its batch; define `losses` instead of "
            "`forward_train`, or start one process"
        )
    line = f"{name} runs the networks itself: its losses see each process's share of a batch"
    distiller.notes = [*distiller.notes, line]


def check_agreement(trainer: "Trainer") -> None:
    """Raise UserError where the processes differ in configuration, code, data or teacher."""
    if world.size() == 1:
        return
    cfg = trainer.cfg
    settings = {name: _value(cfg, name) for name, key in table().items() if not key.is_path}
    facts = {"code of edkd": _code(), "torch": torch.__version__, **settings, **trainer.identity}
    data = trainer.data
    loaders = [loader for loader in (data.train, data.val, data.test) if loader]
    facts["number of unreadable images"] = [loader.num_left_out for loader in loaders]
    world.agree(facts)


def _value(cfg: Any, name: str) -> str:
    node = cfg
    for part in name.split("."):
        node = node[part]
    return repr(node)


def _code() -> str:
    """A hash of the source files of this package."""
    digest = hashlib.sha256()
    root = Path(edkd.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
