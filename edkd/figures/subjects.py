"""The networks that a figure shows: the students of finished runs, and their teachers."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from edkd.dataset import DataSet
from edkd.engine.finished import DataSets, FinishedRun, TeacherSource, open_run
from edkd.engine.run_folder import CONFIG
from edkd.errors import UserError
from edkd.figures.drawing import Options
from edkd.results.runs import Run, find_runs, group_runs, read_run


class Subject(NamedTuple):
    """A network of a figure."""

    name: str
    network: nn.Module
    """On the device, in eval mode."""
    data: DataSet
    """Prepared for the network."""
    device: torch.device


class Subjects:
    """The students of runs, and their teachers, on the same images.

    Args:
        paths: folders of runs, folders that hold runs, or files of students in such folders.
        options: WHICH weights, the device and the data are read.

    Raises:
        UserError: a run has no weights or no data, or the runs have different data sets.
    """

    def __init__(self, paths: Sequence[Path], options: Options) -> None:
        opts = ["DATASET.ROOT", options.root] if options.root else []
        datasets = DataSets()
        found = _runs_at(paths)
        self.runs = [
            open_run(path, options.which, options.device, options.teacher_ckpt, opts, datasets)
            for path in found
        ]
        _check_same_data(self.runs)

        names = names_of(found)
        pairs = zip(names, self.runs, strict=True)
        self.students = [Subject(name, run.student, run.data, run.device) for name, run in pairs]
        self._teachers: dict[TeacherSource, Subject] = {}

    @property
    def first(self) -> FinishedRun:
        """The first run."""
        return self.runs[0]

    def teacher_of(self, number: int) -> Subject:
        """The first teacher of a run; for a run without one, that of the first run with one.

        Args:
            number: of the run, from 0.

        Raises:
            UserError: no run has a teacher, or its weights are absent.
        """
        own = self.runs[number]
        run = own if own.has_teacher else next((run for run in self.runs if run.has_teacher), None)
        if run is None:
            folders = ", ".join(str(run.folder) for run in self.runs)
            raise UserError(
                f"no run has a teacher ({folders}); add a run with one, or choose a figure that "
                "needs no teacher"
            )

        source = run.teacher_source
        if source not in self._teachers:
            teacher = run.teacher
            name = f"teacher {teacher.name}"
            self._teachers[source] = Subject(name, teacher.network, run.data, run.device)
        return self._teachers[source]

    def teachers(self) -> list[Subject]:
        """The distinct teachers of all runs, see `teacher_of`."""
        found = [self.teacher_of(number) for number in range(len(self.runs))]
        return [each for i, each in enumerate(found) if each not in found[:i]]

    def about(self, split: str) -> str:
        """The data set and the images, as "digits, test images"."""
        names = {
            "test": "test images",
            "val": "images that choose the best epoch",
            "train": "training images, augmented as in the first epoch",
        }
        return f"{self.first.cfg.DATASET.TYPE}, {names[split]}"


def _runs_at(paths: Sequence[Path]) -> list[Path]:
    """Folders of runs, and files in them; folders that hold runs are searched."""
    found: dict[Path, None] = {}
    for path in paths:
        is_run = path.is_file() or (path / CONFIG).is_file()
        found.update(dict.fromkeys([path] if is_run else find_runs([path])))
    return list(found)


def _check_same_data(runs: Sequence[FinishedRun]) -> None:
    first = runs[0]
    for run in runs[1:]:
        same_type = run.cfg.DATASET.TYPE == first.cfg.DATASET.TYPE
        if not same_type or run.data.info.identity != first.data.info.identity:
            raise UserError(
                f"{first.folder} and {run.folder} have different data sets or images "
                f"({first.cfg.DATASET.TYPE}, {run.cfg.DATASET.TYPE}); give runs of the same data"
            )


# Names.


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for each run, as in tables; with the seed where runs differ in it alone.

    Args:
        paths: folders of runs, or files in such folders.
    """
    folders = [path if path.is_dir() else path.parent for path in paths]
    runs = [_read(folder) for folder in folders]
    named = _names_of_rows([run for run in runs if run])

    names = []
    for path, folder, run in zip(paths, folders, runs, strict=True):
        name = named[id(run)] if run else folder.resolve().name
        of_file = path.name.partition("_")[0] if path.is_file() else ""
        names.append(f"{name} {of_file}" if of_file not in ("", "student") else name)
    return [_distinct(name, names[:i]) for i, name in enumerate(names)]


def _read(folder: Path) -> Run | None:
    """A finished run; None where it has no results, as one that is not finished."""
    with suppress(UserError):
        return read_run(folder)
    return None


def _names_of_rows(runs: Sequence[Run]) -> dict[int, str]:
    """The name of each run, by its id."""
    named = {}
    for row in group_runs(runs):
        for run in row.runs:
            seed = f", seed {run.seed}" if len(row.seeds) > 1 else ""
            named[id(run)] = f"{row.name}{seed}"
    return named


def _distinct(name: str, before: Sequence[str]) -> str:
    same = before.count(name)
    return f"{name} ({same + 1})" if same else name
