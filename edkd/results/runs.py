"""Reading finished runs, and grouping those that differ only in their seed."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from edkd.errors import UserError
from edkd.results.finding import RESULT as RESULT
from edkd.results.finding import find_runs as find_runs
from edkd.results.names import joined, method_of, precision_of, students_of, teachers_of
from edkd.results.protocol import Protocol, comparable, protocol_of

_SEED = re.compile(r"(^|,)(SOLVER\.)?(SEED|seed)[=:]\+?(0[box][\da-fA-F]+|[\d_]+)(?=,|$)")

_NOT_SETTINGS = ("SOLVER.SEED", "EXPERIMENT.", "LOG.", "DATASET.ROOT", "DISTILLER.TEACHER_CKPT")
"""Keys that do not decide a result, for runs of older versions, which did not list the others."""

_SHOWN_DIFFERENCES = 3
"""Settings that are shown at most to tell rows of the same name apart."""

_MALFORMED = (OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError)
"""Errors that malformed files of a run raise."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        name: of its folder, without the seed.
        settings: the configuration keys that decide its result, without the seed.
        seed: None where it is unknown.
        result: content of `result.json`.
        history: content of `metrics.jsonl`, a record per epoch.
        folder: where it is.
        environment: content of `environment.json`; empty where it is missing or damaged.
    """

    name: str
    settings: Mapping[str, Any]
    seed: int | None
    result: Mapping[str, Any]
    history: Sequence[Mapping[str, float]]
    folder: Path = Path()
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The method with its switches: "KD+LSKD", "EDKD (reference)"; see `names.method_of`."""
        return method_of(self.settings, self.result)

    @property
    def teacher(self) -> str:
        """The teacher's architecture, several joined; "" without a teacher."""
        return joined(teachers_of(self.settings, self.result))

    @property
    def student(self) -> str:
        """The student's architecture, several joined: "resnet20", "3 x resnet20"."""
        return joined(students_of(self.settings, self.result))

    @property
    def architecture(self) -> str:
        """The student's architecture without the number of students of a mutual method."""
        return joined(list(dict.fromkeys(students_of(self.settings, self.result))))

    @property
    def pair(self) -> str:
        """ "resnet56 -> resnet20"; the student alone where there is no teacher."""
        return f"{self.teacher} -> {self.student}" if self.teacher else self.student

    @property
    def dataset(self) -> str:
        """The name of the data set; "" where it is unknown."""
        return str(self.result.get("dataset") or self.settings.get("DATASET.TYPE") or "")

    @property
    def teacher_top1(self) -> list[float]:
        """Top-1 accuracy of each teacher on the test set, in percent; empty if unknown.

        With held-out images it was measured on these, which the teacher has often been trained on.
        """
        measured = list(self.result.get("teacher_top1") or [])
        return measured if self.split == "test" else []

    @property
    def image_folder(self) -> str:
        """DATASET.ROOT of a data set that is a folder of images; "" for others, or if unknown."""
        if self.dataset != "folder":
            return ""
        try:
            return str(_saved_values(self.folder / "config.yaml").get("DATASET.ROOT") or "")
        except _MALFORMED:
            return ""

    @property
    def protocol(self) -> Protocol:
        """How it was trained, apart from its method."""
        return protocol_of(self.settings)

    @property
    def precision(self) -> str:
        """Precision of the forward passes: "float32", "bfloat16", "float16"; "" if unknown."""
        return precision_of(self.settings, self.environment)

    @property
    def row(self) -> tuple[str, str]:
        """Name and settings as text; equal for runs that differ only in their seed."""
        settings = comparable(self.settings)
        return self.name, json.dumps(settings, sort_keys=True, default=str)

    @property
    def split(self) -> str:
        """The images that each epoch was evaluated on: "val" (held out) or "test"."""
        return "val" if "val_top1" in self.history[0] else "test"

    @property
    def curve(self) -> list[float]:
        """Top-1 accuracy after each epoch, in percent."""
        return self.values("top1")

    def key(self, metric: str) -> str:
        """The key of a metric in `history`: "loss" is the training loss, "top1" of `split`."""
        of_split = f"{self.split}_{metric}"
        return {"top1": of_split, "top5": of_split, "loss": "train_loss"}.get(metric, metric)

    def values(self, metric: str) -> list[float]:
        """A metric after each epoch.

        Args:
            metric: "top1", "top5" (in percent), "loss", "lr", or a key of `metrics.jsonl`.

        Raises:
            KeyError: an epoch has no such metric.
        """
        key = self.key(metric)
        return [record[key] for record in self.history]

    def accuracy(self, which: str) -> float:
        """Top-1 accuracy of the "last" or the "best" epoch on the test set, in percent."""
        return self.result[f"{which}_test_top1"]


class Row(NamedTuple):
    """Runs that differ only in their seed.

    Where several runs have the same seed, their mean counts as one.
    """

    name: str
    runs: list[Run]

    @property
    def seeds(self) -> list[list[Run]]:
        """The runs of each seed."""
        groups: dict[int | None, list[Run]] = {}
        for run in self.runs:
            groups.setdefault(run.seed, []).append(run)
        return list(groups.values())

    def accuracies(self, which: str) -> list[float]:
        """Top-1 accuracy of each seed; see `Run.accuracy`."""
        return [mean(run.accuracy(which) for run in group) for group in self.seeds]

    def curves(self, metric: str = "top1") -> list[list[float]]:
        """A metric of each seed, see `Run.values`; all cut to the length of the shortest run."""
        epochs = min(len(run.history) for run in self.runs)
        curves = []
        for group in self.seeds:
            columns = zip(*(run.values(metric)[:epochs] for run in group), strict=True)
            curves.append([mean(column) for column in columns])
        return curves


def read_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        UserError: the folder holds none, or its files are damaged.
    """
    try:
        run = _read(folder)
        _check(run)
    except _MALFORMED as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{folder} holds no finished run ({reason}); leave it out, or repeat the run"
        ) from None
    return run


def group_runs(runs: Iterable[Run]) -> list[Row]:
    """A row for each name and settings, in the order of the first runs.

    Rows of the same name get the settings in which they differ: "kd (SOLVER.LR=0.1)".
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.row, []).append(run)

    rows = []
    for (name, _), group in groups.items():
        others = [other[0] for (label, _), other in groups.items() if label == name]
        alike = [comparable(other.settings) for other in others]
        settings = comparable(group[0].settings)
        rows.append(Row(name + difference(settings, alike), group))
    return rows


def _read(folder: Path) -> Run:
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    if not isinstance(result, dict):
        raise TypeError(f"{RESULT} is no mapping")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    history = [json.loads(line) for line in lines]

    settings = result.get("settings")
    saved: dict[str, Any] = {}
    if settings is None:  # a run of an older version
        saved = _saved_values(folder / "config.yaml")
        settings = {key: saved[key] for key in saved if not key.startswith(_NOT_SETTINGS)}

    # The seed is that of the run's own record: its name may show another number for it.
    name = _SEED.sub("", folder.name).strip(",")
    seed = result.get("seed", saved.get("SOLVER.SEED"))
    shown = name or folder.parent.name
    return Run(shown, settings, seed, result, history, folder, _environment(folder))


def _environment(folder: Path) -> dict[str, Any]:
    """The content of `environment.json`, which no figure depends on; {} where it is damaged."""
    try:
        facts = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except _MALFORMED:
        return {}
    return facts if isinstance(facts, dict) else {}


def _check(run: Run) -> None:
    """Raise one of _MALFORMED where a table or a figure could not be made of a run."""
    if not isinstance(run.settings, dict):
        raise TypeError("its settings are no mapping")
    if not isinstance(run.seed, int | None):
        raise TypeError("its seed is no number")
    if not isinstance(run.result["parameters"], int):
        raise TypeError("its number of parameters is no number")
    if not run.history:
        raise ValueError("metrics.jsonl is empty")

    # Settings of an older version are arbitrary YAML, which may refer to itself.
    group_runs([run])
    protocol_of(run.settings).describe()
    ", ".join([run.method, run.pair, run.dataset, run.precision])

    figures = [run.accuracy("last"), run.accuracy("best"), *run.curve, *run.teacher_top1]
    if not all(map(math.isfinite, figures)):
        raise ValueError("an accuracy is no number")


def _saved_values(file: Path) -> dict[str, Any]:
    """The values of a saved configuration, by full keys."""
    import yaml

    try:
        # The safe loader builds plain values only; it never runs code from the file.
        saved = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file.name}: {error}") from None
    if not isinstance(saved, dict):
        raise TypeError(f"{file.name} has no keys")

    return dict(_leaves(saved))


def _leaves(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def difference(settings: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> str:
    """The settings that differ among rows of the same name, as " (SOLVER.LR=0.1)"; or "".

    Args:
        settings: of the row.
        alike: for all rows of its name, the settings that count.
    """
    differing = []
    for key in settings:
        values = [other.get(key) for other in alike]
        if any(value != values[0] for value in values):
            differing.append(key)
    if not differing:
        return ""

    parts = [f"{key}={settings[key]}" for key in differing[:_SHOWN_DIFFERENCES]]
    if len(differing) > _SHOWN_DIFFERENCES:
        parts.append("...")
    return f" ({', '.join(parts)})"
