"""A finished run that is opened again: its student, its teacher and its data set.

`load_network` is what the command eval uses, too, so that all commands load the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from yacs.config import CfgNode

from edkd.dataset import DataSet, dataset_dict, get_dataset
from edkd.distillers import find_method, to_channels_last
from edkd.engine.config.compare import flatten
from edkd.engine.config.scalars import as_list
from edkd.engine.device import pick_device
from edkd.engine.file_facts import Facts, Use
from edkd.engine.inputs import with_input
from edkd.engine.network_checks import check_networks
from edkd.engine.networks import load_teachers, with_own_input
from edkd.engine.saved_run import Request, SavedRun, find_trained, path_from_here
from edkd.engine.weight_source import Weights, find_weights, input_of, read_weights
from edkd.engine.weights import load_weights
from edkd.errors import UserError
from edkd.models import get_model

_OF_NETWORKS = ("DISTILLER.", "MODEL.", "EXPERIMENT.", "LOG.")
"""Groups that decide no image of a data set."""


class DataSets:
    """Data sets that were loaded for evaluation; equal configurations share one."""

    def __init__(self) -> None:
        self._loaded: dict[str, DataSet] = {}

    def load(self, cfg: CfgNode, device: torch.device, facts: Facts) -> DataSet:
        """DATASET.TYPE; training images that cannot be read do not matter.

        Args:
            cfg: complete, see `with_input`.
            device: on which batches are made.
            facts: of the weights; where the data are absent, the message names their data set.

        Raises:
            UserError: the data are absent or damaged.
        """
        values = {name: value for name, value in flatten(cfg) if not name.startswith(_OF_NETWORKS)}
        key = f"{device} {sorted(values.items())}"
        if key not in self._loaded:
            self._loaded[key] = _test_data(cfg, device, facts)
        return self._loaded[key]


def _test_data(cfg: CfgNode, device: torch.device, facts: Facts) -> DataSet:
    try:
        data = get_dataset(cfg, device)
    except UserError as error:
        if facts.dataset in ("", cfg.DATASET.TYPE):
            raise
        raise UserError(
            f"{error}; but the weights are of the data set {facts.dataset}: -d {facts.dataset}"
        ) from None

    data.check(True)
    return data


class LoadedNetwork(NamedTuple):
    """A trained network, ready for evaluation."""

    network: nn.Module
    """On the device, in eval mode; `network(image)` returns logits and features."""
    data: DataSet
    cfg: CfgNode
    """With the preparation of the images that the network was trained with."""
    path: Path | str
    """Of its weights."""


def load_network(
    cfg: CfgNode,
    ckpt: str,
    device: torch.device,
    content: dict[str, Any] | None = None,
    datasets: DataSets | None = None,
) -> LoadedNetwork:
    """Load DISTILLER.STUDENT with the weights of a file, and DATASET.

    Args:
        cfg: DATASET and DISTILLER.STUDENT are read.
        ckpt: a file, or "" for the published weights of that model.
        device: for the network and the batches.
        content: of that file, where it was read already.
        datasets: those that are loaded; None: the data set is loaded again.

    Raises:
        UserError: data or weights are absent, damaged, or belong to another model.
    """
    name = cfg.DISTILLER.STUDENT
    if content is None:
        weights = read_weights(cfg, name, ckpt, "-m", "-c")
    else:
        weights = Weights(find_weights(cfg, name, ckpt, "-m", "-c"), content)

    # The network and its data.
    cfg = with_input(cfg, input_of(name, weights.facts))
    data = (datasets or DataSets()).load(cfg, device, weights.facts)
    family = dataset_dict[cfg.DATASET.TYPE].family
    model = get_model(family, name, data.num_classes, cfg)
    use = Use(data.info, cfg.DATASET.TYPE, name, "-m", "-d")
    facts = load_weights(model, weights.path, use, weights.content)
    model = with_own_input(model, name, facts, data.info, [])
    check_networks([model], [], data.info)
    return LoadedNetwork(_ready(model, device), data, cfg, weights.path)


def _ready(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on a device, in eval mode."""
    network.eval().to(device)
    to_channels_last(network)
    return network


# Runs.


class Teacher(NamedTuple):
    """The teacher of a run."""

    name: str
    """As the configuration has it, as "resnet56"."""
    network: nn.Module
    """On the device, in eval mode; returns logits and features for images of the run's data."""


class TeacherSource(NamedTuple):
    """Where the teachers of a run come from; equal for runs with the same teachers."""

    names: tuple[str, ...]
    files: tuple[str, ...]
    """"" for published weights."""


@dataclass(frozen=True)
class FinishedRun:
    """A run that was opened again; see `open_run`."""

    file: Path
    """Of the student's weights, in the folder of the run."""
    student: nn.Module
    """On the device, in eval mode; returns logits and features."""
    data: DataSet
    device: torch.device
    cfg: CfgNode
    """DATASET and DISTILLER.STUDENT are those of the run; the method is NONE."""
    saved: SavedRun
    """The configuration of the run and where it was started."""
    teacher_ckpt: str = field(default="", repr=False)
    """Instead of the weights of the first teacher; "": those of the run."""

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.saved.folder

    @property
    def architecture(self) -> str:
        """Of the student."""
        return str(self.cfg.DISTILLER.STUDENT)

    @property
    def method(self) -> str:
        """DISTILLER.TYPE of the run."""
        return str(self.saved.values.get("DISTILLER.TYPE", ""))

    @property
    def has_teacher(self) -> bool:
        """Whether the method of the run has a teacher; its weights may be gone."""
        return find_method(self.method).needs_teacher

    @cached_property
    def teachers(self) -> list[Teacher]:
        """The teachers of the run, loaded when they are first looked at.

        Raises:
            UserError: the method has none, or their weights are absent, damaged or for other
                classes.
        """
        if not self.has_teacher:
            raise UserError(
                f"the run {self.folder} has no teacher (DISTILLER.TYPE {self.method}); leave it "
                "out, or choose what needs no teacher"
            )
        try:
            networks = load_teachers(_with_teachers(self), self.data)
        except UserError as error:
            raise UserError(f"the teacher of the run {self.folder}: {error}") from None

        check_networks([], networks, self.data.info)
        pairs = zip(self.teacher_source.names, networks, strict=True)
        return [Teacher(name, _ready(network, self.device)) for name, network in pairs]

    @property
    def teacher_source(self) -> "TeacherSource":
        """The names of the teachers, and the files of their weights."""
        names = as_list(self.saved.values["DISTILLER.TEACHER"])
        files = as_list(self.saved.values.get("DISTILLER.TEACHER_CKPT") or "")
        files = [path_from_here(file, self.saved.cwd) for file in files or [""]]
        if self.teacher_ckpt:
            files += [""] * (len(names) - len(files))
            files[0] = self.teacher_ckpt
        return TeacherSource(tuple(names), tuple(files))

    @property
    def teacher(self) -> Teacher:
        """The first teacher; raises as `teachers`."""
        return self.teachers[0]


def open_run(
    path: Path,
    which: str = "",
    device: str | torch.device = "auto",
    teacher_ckpt: str = "",
    opts: Sequence[str] = (),
    datasets: DataSets | None = None,
) -> FinishedRun:
    """Load the student and the data set of a run, as `edkd eval` does.

    Args:
        path: the folder of a run, or a student's file in it.
        which: best (the default), latest, an epoch's number, or a file such as student1_best. With
            several students, best and latest are the weights of the best one.
        device: auto, cuda, cuda:N, mps or cpu.
        teacher_ckpt: weights of the teacher, instead of those of the run.
        opts: KEY VALUE pairs, such as DATASET.ROOT.
        datasets: those that are loaded, for several runs.

    Raises:
        UserError: it is no run, its weights or data are absent or damaged, or a plugin is gone.
    """
    found = find_trained(Request(str(path), which, opts=opts))
    if found.file is None or found.run is None:
        raise UserError(f"{path} is in no folder of a run; give the folder of a run")

    where = pick_device(str(device))
    loaded = load_network(found.cfg, str(found.file), where, found.content, datasets)
    return FinishedRun(
        found.file, loaded.network, loaded.data, where, loaded.cfg, found.run, teacher_ckpt
    )


def _with_teachers(run: FinishedRun) -> CfgNode:
    """The configuration with the teachers of the run."""
    source = run.teacher_source
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.DISTILLER.TEACHER = list(source.names)
    cfg.DISTILLER.TEACHER_CKPT = list(source.files)
    cfg.freeze()
    return cfg
