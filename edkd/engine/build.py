"""From a configuration to data, networks, distiller, update rule and trainer."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn, optim
from yacs.config import CfgNode

from edkd.dataset import DataSet, dataset_dict, get_dataset
from edkd.dataset.sampling import seed_for
from edkd.distillers import (
    Distiller,
    checked_groups,
    construct,
    find_method,
    networks_of,
    to_channels_last,
    uses_published_style,
)
from edkd.engine.accumulate import check_accumulate
from edkd.engine.device import amp_dtype
from edkd.engine.file_facts import Use
from edkd.engine.given_networks import name_of, warn_of_probabilities
from edkd.engine.given_optimizers import GivenOptimizers
from edkd.engine.log.logger import Record
from edkd.engine.optimizer import split_decay
from edkd.engine.trainer import Trainer
from edkd.engine.update import Update
from edkd.engine.updates import find_update
from edkd.engine.weights import check_finite, load_weights
from edkd.errors import UserError
from edkd.invocation import command
from edkd.models import DOWNLOADS, get_model, published_weights
from edkd.paths import CONFIGS
from edkd.signals import hold
from edkd.types import DataInfo


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


def build_distiller(cfg: CfgNode, data: DataSet, networks: Networks | None = None) -> Distiller:
    """Student, teacher and method, on the CPU.

    The first weights of the student and of the method depend on SOLVER.SEED alone.

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

    torch.manual_seed(seed_for(cfg.SOLVER.SEED, 0))
    students = networks.students if networks else build_students(cfg, data)
    teachers: list[nn.Module] = []
    if method.needs_teacher:
        teachers = networks.teachers if networks else load_teachers(cfg, data)
    _check_teachers(cfg.DISTILLER.TYPE, method, teachers)
    for network in teachers:
        check_finite(network)

    torch.manual_seed(seed_for(cfg.SOLVER.SEED, 0, 0))
    student = nn.ModuleList(students) if method.is_cohort else students[0]
    teacher = None
    if teachers:
        teacher = teachers[0] if len(teachers) == 1 else nn.ModuleList(teachers)
    return construct(method, student, teacher, cfg, data.info)


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
    """
    distiller = distiller.to(device)
    for network in networks_of(distiller):
        to_channels_last(network)
    check_outputs(distiller, data.info, device)
    check_accumulate(cfg, distiller)

    update_rule: Callable[..., Update] = find_update(cfg.SOLVER.TRAINER)
    if optimizers:
        _check_own_optimizers(cfg.SOLVER)
        of_student = dict(distiller.student.named_parameters())
        update_rule = functools.partial(GivenOptimizers, optimizers, of_student)
    amp = amp_dtype(cfg.SOLVER.AMP, device)

    with hold():  # the optimizer imports modules, which a signal must not interrupt
        groups = split_decay(checked_groups(distiller), cfg)
        update = update_rule(groups, cfg, device, amp)
        return Trainer(cfg, distiller, data, update, folder, device, checkpoint, on_epoch)


@torch.no_grad()
def check_outputs(distiller: Distiller, info: DataInfo, device: torch.device) -> None:
    """Raise UserError where a network does not return a logit for each class."""
    student: Any = distiller.student
    students = list(student) if distiller.is_cohort else [student]
    image = torch.zeros(2, *info.image_shape, device=device)
    for role, networks in (("student", students), ("teacher", distiller.teachers())):
        for network in networks:
            mode = network.training
            dtype = next((p.dtype for p in network.parameters()), image.dtype)
            logits, _ = network.eval()(image.to(dtype))
            network.train(mode)
            if logits.shape[-1] != info.num_classes:
                raise UserError(
                    f"the {role} {name_of(network)} returns {logits.shape[-1]} logits, but "
                    f"the data have {info.num_classes} classes"
                )
            warn_of_probabilities(role, network, logits)


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
            "SOLVER.DECAY_NORM_AND_BIAS does not change an optimizer of your own; give that one "
            "parameter groups, and set the key to True"
        )


def build_students(cfg: CfgNode, data: DataSet) -> list[nn.Module]:
    """The networks that the method trains, with fresh weights."""
    method = find_method(cfg.DISTILLER.TYPE)
    family = dataset_dict[cfg.DATASET.TYPE].family
    names = method.student_names(cfg)
    return [get_model(family, name, data.num_classes, cfg) for name in names]


def load_teachers(cfg: CfgNode, data: DataSet) -> list[nn.Module]:
    """Each DISTILLER.TEACHER with its weights: TEACHER_CKPT, else the published ones."""
    names = as_list(cfg.DISTILLER.TEACHER)
    paths = as_list(cfg.DISTILLER.TEACHER_CKPT) or [""] * len(names)
    if len(paths) == 1 and not paths[0]:
        paths = paths * len(names)
    if len(paths) != len(names):
        raise UserError(
            f"DISTILLER.TEACHER names {len(names)} teachers, but TEACHER_CKPT {len(paths)} files; "
            "give one for each"
        )

    family = dataset_dict[cfg.DATASET.TYPE].family
    teachers = []
    for name, given in zip(names, paths, strict=True):
        path = find_weights(cfg, name, given, "DISTILLER.TEACHER", "DISTILLER.TEACHER_CKPT")
        teacher = get_model(family, name, data.num_classes, cfg)
        load_weights(teacher, path, Use(data.info, cfg.DATASET.TYPE, name))
        teachers.append(teacher)
    return teachers


def as_list(value: str | list[str]) -> list[str]:
    """The texts of a key that takes one or several."""
    return [value] if isinstance(value, str) else list(value)


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


def find_weights(cfg: CfgNode, name: str, given: str, model_key: str, path_key: str) -> Path:
    """The file of a model's weights: the given one, else the published one.

    Args:
        cfg: DATASET.TYPE is read.
        name: of the model, in the family of the data set.
        given: a file, or "".
        model_key: how the user names the model, for messages.
        path_key: how the user names the file, for messages.

    Raises:
        UserError: it is absent; the message says how to download or train it.
    """
    config = training_config(cfg.DATASET.TYPE, name)
    train_it = (
        f"train it with '{command('train')} --cfg {config}' and give {path_key} the student_best "
        "of that run"
    )

    given = os.path.expanduser(given)
    if given:
        if os.path.isdir(given):
            raise UserError(
                f"{path_key}: {given} is a folder; give the file of weights in it, as student_best"
            )
        if not os.path.isfile(given):  # for a name that is too long, Path would raise
            raise UserError(
                f"{path_key}: no weights of {name} at {given}; correct the path, or {train_it}"
            )
        return Path(given)

    spec = dataset_dict[cfg.DATASET.TYPE]
    published = published_weights(spec.family, name) if spec.has_published_weights else None
    if not published:
        raise UserError(
            f"{model_key} {name} has no published weights for {cfg.DATASET.TYPE}; {train_it}"
        )
    if not Path(published).is_file():
        download = DOWNLOADS.get(spec.family)
        fetch = f"'{command('download')} {download}'"
        fetch_it = f"download the published ones with {fetch}, or " if download else ""
        raise UserError(f"{model_key}: no weights of {name} at {published}; {fetch_it}{train_it}")
    return Path(published)


def training_config(dataset: str, model: str) -> str:
    """Arguments of --cfg that train a model alone: its own YAML file, or another's with one key."""
    files = sorted(CONFIGS.glob(f"{dataset}/vanilla/*.yaml"), key=lambda file: file.stem != model)
    if not files:
        return f"<your YAML> DISTILLER.STUDENT {model}"
    override = "" if files[0].stem == model else f" DISTILLER.STUDENT {model}"
    return f"configs/{dataset}/vanilla/{files[0].name}{override}"
