"""From a configuration to data, networks, distiller, update rule and trainer."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn, optim
from yacs.config import CfgNode

from edkd.dataset import DataSet, get_dataset
from edkd.dataset.sampling import seed_for
from edkd.distillers import (
    Distiller,
    check_switches,
    checked_groups,
    construct,
    find_method,
    networks_of,
    to_channels_last,
    uses_published_style,
)
from edkd.engine.accumulate import check_accumulate
from edkd.engine.device import amp_dtype
from edkd.engine.given_optimizers import GivenOptimizers
from edkd.engine.log.background import Record
from edkd.engine.network_checks import check_networks
from edkd.engine.networks import (
    build_students,
    load_students,
    load_teachers,
    notes_on_sizes,
)
from edkd.engine.optimizer import split_decay
from edkd.engine.trainer import Trainer
from edkd.engine.update import Update
from edkd.engine.updates import find_update
from edkd.engine.weights import check_finite
from edkd.errors import UserError
from edkd.signals import hold


class Networks(NamedTuple):
    """What the caller made, instead of what a configuration names."""

    students: list[nn.Module]
    teachers: list[nn.Module]
    optimizers: Sequence[optim.Optimizer] = ()
    """Empty: the optimizer that SOLVER names."""


def build_data(cfg: CfgNode, device: torch.device) -> DataSet:
    """DATASET.TYPE, with the views that the method needs.

    Raises:
        UserError: the data are absent or damaged, or have no such views.
    """
    data = get_dataset(cfg, device)
    data.check(False)
    data.train.use_views(find_method(cfg.DISTILLER.TYPE).views)
    return data


def build_distiller(
    cfg: CfgNode, data: DataSet, networks: Networks | None = None, is_resumed: bool = False
) -> Distiller:
    """Student, teacher and method, on the CPU.

    The first weights of the student and of the method depend on SOLVER.SEED, and on
    DISTILLER.STUDENT_CKPT where it is given.

    Args:
        cfg: the configuration.
        data: that it will see.
        networks: instead of those that the configuration names.
        is_resumed: whether a checkpoint has the weights of the student.

    Raises:
        UserError: weights are absent or belong to another network, or the method cannot use
            these networks.
    """
    method = find_method(cfg.DISTILLER.TYPE)
    if method.needs_index and not data.train.has_index:
        raise UserError(
            f"DISTILLER.TYPE {cfg.DISTILLER.TYPE} needs the number of each image, which this data "
            "loader does not give; use a torch DataLoader over a data set with __getitem__"
        )

    notes: list[str] = []
    torch.manual_seed(seed_for(cfg.SOLVER.SEED, 0))
    students = networks.students if networks else build_students(cfg, data)
    if networks is None:
        notes += notes_on_sizes(cfg, data, students)
    if networks is None and not is_resumed:
        load_students(cfg, data, students, notes)

    teachers: list[nn.Module] = []
    if method.needs_teacher:
        teachers = networks.teachers if networks else load_teachers(cfg, data, notes)
    _check_teachers(cfg.DISTILLER.TYPE, method, teachers)
    for network in teachers:
        check_finite(network)
    check_networks(students, teachers, data.info, method.student_needs, method.teacher_needs)

    torch.manual_seed(seed_for(cfg.SOLVER.SEED, 0, 0))
    student = nn.ModuleList(students) if method.is_cohort else students[0]
    teacher = None
    if teachers:
        teacher = teachers[0] if len(teachers) == 1 else nn.ModuleList(teachers)
    distiller = construct(method, student, teacher, cfg, data.info)
    check_switches(distiller, cfg.DISTILLER.TYPE)
    distiller.notes = notes
    return distiller


def build_trainer(
    cfg: CfgNode,
    data: DataSet,
    distiller: Distiller,
    folder: Path,
    device: torch.device,
    checkpoint: dict[str, Any] | None = None,
    on_epoch: Callable[[Record], None] | None = None,
    optimizers: Sequence[optim.Optimizer] = (),
) -> Trainer:
    """A trainer with the update rule of SOLVER.TRAINER, or with given optimizers.

    Args:
        cfg: the configuration.
        data: its batches are made on the device.
        distiller: on any device; it is moved.
        folder: of the run.
        device: to train on.
        checkpoint: to resume from.
        on_epoch: called with the record of each finished epoch.
        optimizers: of the distiller's parameters; empty: SOLVER names one.

    Raises:
        UserError: the update rule, or DATASET.TEST.EVALUATE, does not fit the method or the data.
    """
    distiller = distiller.to(device)
    for network in networks_of(distiller):
        to_channels_last(network)
    check_accumulate(cfg, distiller)
    _check_held_out(cfg, data)

    update_rule: Callable[..., Update] = find_update(cfg.SOLVER.TRAINER)
    if optimizers:
        _check_own_optimizers(cfg.SOLVER)
        _check_own_rates(cfg.SOLVER)
        of_student = dict(distiller.student.named_parameters())
        update_rule = functools.partial(GivenOptimizers, optimizers, of_student)
    amp = amp_dtype(cfg.SOLVER.AMP, device)

    with hold():  # the optimizer imports modules, which a signal must not interrupt
        groups = split_decay(checked_groups(distiller), cfg)
        update = update_rule(groups, cfg, device, amp)
        update.prepare(distiller)
        trainer = Trainer(cfg, distiller, data, update, folder, device, checkpoint, on_epoch)
    trainer.notes += distiller.notes
    return trainer


def _check_held_out(cfg: CfgNode, data: DataSet) -> None:
    if data.val is None and not cfg.DATASET.TEST.EVALUATE:
        raise UserError(
            "DATASET.TEST.EVALUATE False leaves the test set out, and no images are held out "
            "instead; set DATASET.VAL_SPLIT 0.1"
        )


def _check_own_optimizers(solver: CfgNode) -> None:
    if find_update(solver.TRAINER) is not Update:
        raise UserError(
            f"SOLVER.TRAINER {solver.TRAINER} makes its own optimizer; leave `optimizer` out, or "
            "set SOLVER.TRAINER base"
        )
    if solver.CUDA_GRAPH:
        raise UserError("SOLVER.CUDA_GRAPH cannot capture optimizers of your own; set it to False")
    if not solver.DECAY_NORM_AND_BIAS:
        raise UserError(
            "SOLVER.DECAY_NORM_AND_BIAS does not change an optimizer of your own; set it to True, "
            "and give that optimizer parameter groups"
        )


def _check_own_rates(solver: CfgNode) -> None:
    """Refuse keys that change the parameter groups of SOLVER's optimizer."""
    for key, usual in (("TRAIN_ONLY", "all"), ("HEAD_LR_FACTOR", 1.0)):
        if solver[key] != usual:
            raise UserError(
                f"SOLVER.{key} does not change an optimizer of your own; set it to {usual}, and "
                "give that optimizer the parameters to train, each with its rate"
            )


def _check_teachers(name: str, method: type[Distiller], teachers: list[nn.Module]) -> None:
    if len(teachers) < 2:
        return
    if uses_published_style(method):
        raise UserError(
            f"DISTILLER.TYPE {name} runs the teacher itself and takes one DISTILLER.TEACHER, "
            f"not {len(teachers)}"
        )
    if method.teacher_needs != ("logits",):
        needs = ", ".join(method.teacher_needs)
        raise UserError(
            f"DISTILLER.TYPE {name} reads {needs} of the teacher and takes one DISTILLER.TEACHER, "
            f"not {len(teachers)}"
        )
