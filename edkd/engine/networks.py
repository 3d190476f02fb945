"""The networks of a configuration, with their weights."""

from collections.abc import Sequence

from torch import nn
from yacs.config import CfgNode

from edkd.dataset import DataSet, dataset_dict
from edkd.distillers import find_method
from edkd.engine.config.scalars import as_list
from edkd.engine.file_facts import Facts, Use, check_classes
from edkd.engine.weight_source import (
    PRETRAINED,
    Weights,
    facts_of_library,
    input_of,
    is_of_library,
    label_of,
    read_weights,
)
from edkd.engine.weights import load_first_weights, load_weights
from edkd.errors import UserError
from edkd.models import OwnInput, get_model, preparation, prepared_alike, size_of
from edkd.types import DataInfo, InputSpec

Notes = list[str]
"""Lines for the log."""


def build_students(cfg: CfgNode, data: DataSet) -> list[nn.Module]:
    """The networks that the method trains, with new weights."""
    method = find_method(cfg.DISTILLER.TYPE)
    family = dataset_dict[cfg.DATASET.TYPE].family
    names = method.student_names(cfg)
    return [get_model(family, name, data.num_classes, cfg) for name in names]


def notes_on_sizes(cfg: CfgNode, data: DataSet, students: Sequence[nn.Module]) -> Notes:
    """A line for the log for each student that resizes the images of the data to its own size."""
    names = find_method(cfg.DISTILLER.TYPE).student_names(cfg)
    channels, *size = data.info.image_shape

    notes = []
    for name, student in zip(names, students, strict=True):
        own = getattr(student, "fixed_size", None)
        if own is not None and list(own) != size:
            resized = size_of((channels, *own))
            notes.append(
                f"{name} resizes the images from {size_of(data.info.image_shape)} to {resized}"
            )
    return notes


def load_students(cfg: CfgNode, data: DataSet, students: Sequence[nn.Module], notes: Notes) -> None:
    """Load the weights of DISTILLER.STUDENT_CKPT into students.

    Args:
        students: from `build_students`; where a file has a head for other classes, a student gets
            a new one.
        notes: gets a line for each such head.

    Raises:
        UserError: a file is absent, or differs from the network in more than the head.
    """
    names = find_method(cfg.DISTILLER.TYPE).student_names(cfg)
    for name, student, given in zip(names, students, student_files(cfg, names), strict=True):
        if not given:
            continue
        weights = read_student(cfg, name, given)
        use = Use(None, cfg.DATASET.TYPE, name, "DISTILLER.STUDENT")
        notes += load_first_weights(student, weights.path, use, weights.content, data.num_classes)


def load_teachers(cfg: CfgNode, data: DataSet, notes: Notes | None = None) -> list[nn.Module]:
    """Each DISTILLER.TEACHER with its weights: TEACHER_CKPT, else the published ones.

    A teacher gets its images in the normalisation and the size of its training, see `OwnInput`.

    Args:
        notes: gets lines for the log.
    """
    names = as_list(cfg.DISTILLER.TEACHER)
    family = dataset_dict[cfg.DATASET.TYPE].family
    teachers = []
    for name, given in zip(names, teacher_files(cfg, names), strict=True):
        use = Use(data.info, cfg.DATASET.TYPE, name)
        if is_of_library(name) and not given:  # before the download
            _check_library(name, use)

        weights = read_teacher(cfg, name, given)
        teacher = get_model(family, name, data.num_classes, cfg)
        facts = load_weights(teacher, weights.path, use, weights.content)
        lines = [] if notes is None else notes
        teachers.append(with_own_input(teacher, name, facts, data.info, lines))
    return teachers


def with_own_input(
    network: nn.Module, name: str, facts: Facts, data: DataInfo, notes: Notes
) -> nn.Module:
    """A trained network whose images are prepared as in its training.

    Args:
        network: under the contract of `Network`.
        name: as a configuration has it.
        facts: of the file of its weights.
        data: about the images that it will get.
        notes: gets a line where they are changed.
    """
    own = input_of(name, facts)
    if own is None or data.input is None:
        return network
    if facts.input is None:
        notes.append(
            f"{name}: its file does not say how images are prepared; its library's mean, std and "
            "size are used"
        )
    if prepared_alike(own, data.input):
        return network

    _check_channels(name, own, data)
    notes.append(f"{name} gets the images {preparation(own, data.input)}")
    return OwnInput(network, own, data.input)


def _check_library(name: str, use: Use) -> None:
    """Raise UserError where the pretrained weights of a library have no logits for the data."""
    facts = facts_of_library(name)
    if facts.input is not None and not facts.num_classes:
        raise UserError(
            f"{label_of(name)} has features but no classifier, so it has no logits to distil from; "
            "choose another teacher, or give TEACHER_CKPT with weights trained on these classes"
        )
    check_classes(label_of(name), facts, use)


def _check_channels(name: str, own: InputSpec, data: DataInfo) -> None:
    there = own.image_shape[0]
    here = data.image_shape[0]
    if there != here:
        raise UserError(
            f"{name} was trained on images with {there} channels, but those of the data have "
            f"{here}; choose a network that was trained on such images"
        )


# The files that a configuration names.


def teacher_files(cfg: CfgNode, names: Sequence[str]) -> list[str]:
    """The file of each teacher, "" for published weights; UserError where there are too few."""
    files = _files_of(as_list(cfg.DISTILLER.TEACHER_CKPT), "TEACHER", "teachers", names)
    return ["" if file == PRETRAINED else file for file in files]


def student_files(cfg: CfgNode, names: Sequence[str]) -> list[str]:
    """The file of each student, or PRETRAINED, or "" for new weights; UserError as above."""
    return _files_of(as_list(cfg.DISTILLER.STUDENT_CKPT), "STUDENT", "students", names)


def read_teacher(cfg: CfgNode, name: str, given: str) -> Weights:
    """The weights of a teacher, see `read_weights`."""
    return read_weights(cfg, name, given, "DISTILLER.TEACHER", "DISTILLER.TEACHER_CKPT")


def read_student(cfg: CfgNode, name: str, given: str) -> Weights:
    """The weights of a student, see `read_weights`."""
    file = "" if given == PRETRAINED else given
    return read_weights(cfg, name, file, "DISTILLER.STUDENT", "DISTILLER.STUDENT_CKPT")


def _files_of(files: list[str], key: str, noun: str, names: Sequence[str]) -> list[str]:
    """One file for each network; a single "" or PRETRAINED holds for all."""
    files = files or [""]
    if len(files) == 1 and files[0] in ("", PRETRAINED):
        files = files * len(names)
    if len(files) != len(names):
        raise UserError(
            f"DISTILLER.{key} names {len(names)} {noun}, but {key}_CKPT has {len(files)}; give "
            "one file for each"
        )
    return files
