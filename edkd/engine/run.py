"""A whole run, and the evaluation of a checkpoint: what the commands and the Python API call."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from edkd import world
from edkd.dataset import DataSet
from edkd.dataset.mixing import with_batch_augmentations
from edkd.engine.build import (
    Networks,
    build_data,
    build_distiller,
    build_trainer,
)
from edkd.engine.checkpoint import check_room, load_latest, save_text
from edkd.engine.config.compare import saved_text
from edkd.engine.device import amp_dtype, autocast, deterministic, pick_device
from edkd.engine.evaluate import evaluate
from edkd.engine.finished import load_network
from edkd.engine.inputs import with_input_of_networks
from edkd.engine.log.background import Record
from edkd.engine.processes import check_agreement, check_shared, join
from edkd.engine.run_folder import CONFIG, claim, find_run, refuse_used, run_folder, take_over
from edkd.errors import NonFiniteError
from edkd.folder_lock import lock
from edkd.signals import deferred
from edkd.streams import fill_missing_descriptors


def train(
    cfg: CfgNode,
    opts: Sequence[str] = (),
    device: str | torch.device = "auto",
    resume: bool = False,
    data: DataSet | None = None,
    networks: Networks | None = None,
    on_epoch: Callable[[Record], None] | None = None,
) -> dict[str, Any]:
    """Train what a configuration describes, in the folder `run_folder(cfg, opts)`.

    Nothing is written before data, weights and configuration have been checked.

    Args:
        cfg: from `load_config`.
        opts: the KEY VALUE pairs of the command line; they name the run.
        device: auto, cuda, cuda:N, mps or cpu.
        resume: continue the run of that folder from its last checkpoint.
        data: instead of DATASET.TYPE; on the device.
        networks: instead of those that the configuration names.
        on_epoch: called with the record of each finished epoch.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: the folder holds a run (without `resume`), or none, or one with another
            configuration (with it); data or weights are absent or damaged.
        NonFiniteError, WorkerError, StorageError: see `edkd.errors`.
    """
    fill_missing_descriptors()  # no file of the run may take the place of standard output
    where = join(cfg, str(device))
    amp_dtype(cfg.SOLVER.AMP, where)  # raises before anything is loaded
    folder = run_folder(cfg, opts)
    if data is None and networks is None:
        cfg = with_input_of_networks(cfg)

    checkpoint: dict[str, Any] | None = None
    with ExitStack() as held:
        # Several processes stop after the same step, see `Trainer.after_step`.
        if world.size() > 1:
            held.enter_context(deferred())
        held.enter_context(deterministic(cfg.SOLVER.DETERMINISTIC))

        # Find or refuse the folder; the first of several processes does.
        resume = world.from_first(lambda: resume or is_restarted(folder))
        if resume:
            folder, checkpoint = world.from_first(lambda: reopen(folder, cfg, opts, held))
        else:
            world.from_first(lambda: refuse_used(folder, cfg))

        # Load and check everything.
        data = with_batch_augmentations(data or build_data(cfg, where), cfg)
        distiller = build_distiller(cfg, data, networks, checkpoint is not None)
        world.broadcast(distiller.trained_state().values())
        optimizers = networks.optimizers if networks else ()
        trainer = build_trainer(
            cfg, data, distiller, folder, where, checkpoint, on_epoch, optimizers
        )
        check_shared(data, distiller, cfg.DISTILLER.TYPE)
        check_agreement(trainer)
        world.from_first(lambda: check_room(folder, trainer.files.room()))

        # From here on files are written.
        if world.is_first():
            trainer.notes += begin(folder, cfg, held, resume)
        result = trainer.train()
    world.end()
    return result


def reopen(
    folder: Path, cfg: CfgNode, opts: Sequence[str], held: ExitStack
) -> tuple[Path, dict[str, Any] | None]:
    """Find and lock the folder of the run to resume; return it with its last checkpoint."""
    folder = find_run(cfg, folder, opts)
    held.enter_context(lock(folder))
    return folder, load_latest(folder)


def begin(folder: Path, cfg: CfgNode, held: ExitStack, is_resumed: bool) -> list[str]:
    """Claim and lock the folder of a new run, write its configuration; return lines for the log."""
    notes: list[str] = []
    if not is_resumed:
        claim(folder)
        held.enter_context(lock(folder))
        notes = take_over(folder)
    save_text(saved_text(cfg), folder / CONFIG)
    return notes


def is_restarted(folder: Path) -> bool:
    """Whether torchrun has started the processes again, after they had begun this run."""
    return world.restarts() > 0 and (folder / CONFIG).is_file()


def evaluate_checkpoint(
    cfg: CfgNode,
    ckpt: str,
    device: str | torch.device = "auto",
    content: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Evaluate DISTILLER.STUDENT with the weights of a file on the test set of DATASET.

    Args:
        cfg: DATASET, DISTILLER.STUDENT and SOLVER.AMP are read.
        ckpt: a file, or "pretrain" for the published weights of that model.
        device: auto, cuda, cuda:N, mps or cpu.
        content: of that file, where it was read already.

    Returns:
        top1 and top5 in percent, and the mean cross-entropy, loss.

    Raises:
        UserError: data or weights are absent, damaged, or belong to another model.
        NonFiniteError: the loss is not finite.
    """
    world.check_single_process("an evaluation")
    where = pick_device(str(device))
    dtype = amp_dtype(cfg.SOLVER.AMP, where)
    found = load_network(cfg, "" if ckpt == "pretrain" else ckpt, where, content)

    with autocast(dtype, where):
        result = evaluate(lambda image: found.network(image)[0], found.data.test)
    if not math.isfinite(result["loss"]):
        raise NonFiniteError(
            f"the loss of {found.path} on the test set is {result['loss']}: the run diverged"
        )
    return result
