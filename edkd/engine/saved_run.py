"""A trained network by its path: its weights, and the model, data and plugins of its run.

For all commands that use a trained network.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yacs.config import CfgNode

from edkd.dataset import dataset_dict
from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.config.compare import saved_config
from edkd.engine.config.load import load_config
from edkd.engine.config.plugins import import_plugins
from edkd.engine.config.table import table
from edkd.engine.file_facts import Facts, facts_of
from edkd.engine.run_folder import CONFIG
from edkd.engine.weight_source import PRETRAINED
from edkd.errors import UserError
from edkd.hints import hint
from edkd.models import check_model, is_qualified, model_names, own_keys
from edkd.paths import expanded

ENVIRONMENT = "environment.json"

DEFAULT_DATASET = "cifar100"
_CLASSES_OF_DEFAULT = 100

WEIGHTS = (".bin", ".ckpt", ".pt", ".pth", ".safetensors", ".tar")
"""Extensions of files of weights; those of a run have none."""

_KEPT = ("DATASET.", "MODEL.")
"""Groups of a run's configuration that decide its networks and its test set."""


class SavedRun(NamedTuple):
    """What the folder of a run says."""

    folder: Path
    values: Mapping[str, Any]
    """Of its configuration, by full names."""
    plugins: tuple[str, ...]
    """Absolute paths."""
    cwd: str
    """Where its command was given, which relative paths are meant from; "" where not known."""


class Request(NamedTuple):
    """What a user says of a trained network; empty where the file or its run shall decide."""

    path: str = ""
    """A file of weights or the folder of a run; "": the published weights."""
    which: str = ""
    """Of a run's folder: best (the default), latest, an epoch's number, or the name of a file."""
    model: str = ""
    dataset: str = ""
    plugins: Sequence[str] = ()
    """Python files; where there are any, those of the run are not imported."""
    opts: Sequence[str] = ()
    """KEY VALUE pairs, which come last."""


class Trained(NamedTuple):
    """A trained network that was found."""

    file: Path | None
    """Of its weights; None: the published ones."""
    cfg: CfgNode
    """DATASET and DISTILLER.STUDENT are its own."""
    run: SavedRun | None
    content: dict[str, Any] | None
    """Of that file, where it was read already."""
    plugins: Sequence[str]
    """Those that were imported."""


def find_trained(request: Request) -> Trained:
    """Find the weights, the model and the data set of a request.

    Where the model or the data set is not given, it is the one that the file of weights names, else
    that of the run whose folder holds the file. The other keys of that run are kept in any case.

    Raises:
        UserError: there is no such file or run, it does not say enough, or a plugin is gone.
    """
    file = _file_of(request)
    run = _run_of(request, file)

    # Plugins register models and data sets, so they come first.
    plugins = [expanded(plugin, "--plugin") for plugin in request.plugins]
    if run and not plugins:
        plugins = _plugins_of(run, is_complete=bool(request.model and request.dataset))
    import_plugins(plugins)

    # The model and the data set.
    content = None
    if file is not None and os.path.isfile(file):
        content = load_checkpoint(file)
    facts = facts_of(content or {})
    dataset = request.dataset or _dataset_of(request, facts, run)
    model = request.model or _model_of(request, facts, run, dataset)

    words = ["DATASET.TYPE", dataset, "DISTILLER.TYPE", "NONE", "DISTILLER.STUDENT", model]
    kept = _kept_options(run, dataset) if run else []
    own = _own_options(facts, model)
    cfg = load_config(opts=[*kept, *own, *words, *request.opts])
    return Trained(file, cfg, run, content, plugins)


# Folders of runs.


def run_at(folder: Path) -> SavedRun:
    """The run in a folder.

    Raises:
        UserError: the folder is not that of a run, or its configuration is damaged.
    """
    config = folder / CONFIG
    if not config.is_file():
        runs = sorted(str(file.parent) for file in folder.glob(f"*/{CONFIG}"))
        inside = f"; give one of the runs in it: {', '.join(runs[:5])}" if runs else ""
        raise UserError(
            f"{folder} is not the folder of a run: it has no {CONFIG}{inside or _files_in(folder)}"
        )

    try:
        values = saved_config(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{config} cannot be read ({reason}); give -m and -d") from None
    about = _environment_of(folder)
    return SavedRun(folder, values, _plugins_in(about), str(about.get("cwd") or ""))


def _files_in(folder: Path) -> str:
    """Advice that names the files of weights in a folder of another system, or ""."""
    names = sorted(file.name for file in folder.glob("*") if file.suffix in WEIGHTS)
    return f"; give a file of weights in it: {', '.join(names[:5])}" if names else ""


def student_file(folder: Path, which: str) -> Path:
    """The file of a run's student: student_best, student_latest, student_40, or one by its name.

    Raises:
        UserError: there is none; the message lists those that are there.
    """
    names = [which] if which.startswith("student") else [f"student_{which}", which]
    for name in names:
        path = folder / name
        if path.is_file() and path.parent == folder:
            return path

    files = sorted(file.name for file in folder.glob("student*_*") if _is_student(file))
    known = [name.removeprefix("student_") for name in files]
    if not files:
        raise UserError(
            f"{folder} holds no student: its run has not finished an epoch, or the file {names[0]} "
            "was not kept; give a folder with it"
        )
    raise UserError(
        f"--which {which}: {folder} has no {names[0]}{hint(which, known)} (there are: "
        f"{', '.join(files)})"
    )


def _is_student(file: Path) -> bool:
    """Whether a file of a run has a student's weights; exported files have an extension."""
    return file.is_file() and not file.suffix


def _environment_of(folder: Path) -> dict[str, Any]:
    """The content of `environment.json`; {} where it is damaged or missing."""
    try:
        content = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _plugins_in(about: dict[str, Any]) -> tuple[str, ...]:
    """The plugins that a run noted; older versions noted none."""
    plugins = about.get("plugins")
    is_list = isinstance(plugins, list) and all(isinstance(path, str) for path in plugins)
    return tuple(plugins) if plugins and is_list else ()


def _plugins_of(run: SavedRun, is_complete: bool) -> list[str]:
    """The plugins of a run that are there.

    Args:
        is_complete: whether the model and the data set are given, which may need none of them.

    Raises:
        UserError: one is gone that may be needed.
    """
    gone = [path for path in run.plugins if not os.path.exists(path)]
    if gone and not is_complete:
        names = ", ".join(Path(plugin).name for plugin in run.plugins)
        raise UserError(
            f"the plugin {gone[0]} of the run {run.folder} is not there any more; give --plugin "
            f"with the present path of each plugin that is needed (the run had {names})"
        )
    return [path for path in run.plugins if path not in gone]


# Completing a request.


def _is_folder(path: str) -> bool:
    return os.path.isdir(os.path.expanduser(path))


def _file_of(request: Request) -> Path | None:
    """The file of weights, which may not exist where a path is wrong."""
    if not request.path:
        if request.which:
            raise UserError(f"--which {request.which} chooses in a run's folder; give one")
        return None

    path = Path(os.path.expanduser(request.path))
    if _is_folder(request.path):
        run_at(path)
        return student_file(path, request.which or "best")

    if request.which and path.is_file():
        raise UserError(f"--which {request.which} chooses in a run's folder; {path} is a file")
    if not request.model and not os.path.isfile(path):
        raise UserError(f"no file of weights and no folder of a run at {request.path}")
    return path


def _run_of(request: Request, file: Path | None) -> SavedRun | None:
    """The run that completes a request; None where there is none."""
    if file is None:
        return None
    try:
        run = run_at(file.parent)
    except UserError:
        if _is_folder(request.path):
            raise
        return None

    # Other systems write a config.yaml, too.
    is_ours = {"DATASET.TYPE", "DISTILLER.STUDENT"} <= run.values.keys()
    return run if is_ours else None


def _dataset_of(request: Request, facts: Facts, run: SavedRun | None) -> str:
    """The data set that a network was trained on."""
    name = facts.dataset or (str(run.values.get("DATASET.TYPE", "")) if run else "")
    if name and name not in dataset_dict:
        raise UserError(
            f"{request.path} was trained on the data set {name!r}, which is not registered; give "
            "the plugin that registers it with --plugin, or a data set with -d"
        )

    number = facts.num_classes
    if not name and number and number != _CLASSES_OF_DEFAULT:
        classes = ", ".join(facts.class_names[:3])
        shown = f" ({classes}, ...)" if classes else ""
        raise UserError(
            f"{request.path} was trained on {number} classes{shown}; give that data set with -d"
        )
    return name or DEFAULT_DATASET


def _model_of(request: Request, facts: Facts, run: SavedRun | None, dataset: str) -> str:
    """The architecture of a network, which must be registered for a data set."""
    saved = run.values.get("DISTILLER.STUDENT", "") if run else ""
    name = facts.architecture or (saved if isinstance(saved, str) else "")
    if not name:
        which = f"{request.path} does not name its model; " if request.path else ""
        raise UserError(f"{which}give the architecture with -m, or the folder of a run")

    family = dataset_dict[dataset].family if dataset in dataset_dict else ""
    if is_qualified(name):
        check_model(family, name)
    elif family and name not in model_names(family):
        raise UserError(
            f"{request.path} is of the model {name!r}, which is not registered for {dataset}; give "
            "the plugin that registers it with --plugin, or a model with -m"
        )
    return name


def _kept_options(run: SavedRun, dataset: str) -> list[str]:
    """The keys of a run's networks and of its data, where the data set is the same."""
    keys = table()
    is_same = run.values.get("DATASET.TYPE") == dataset

    words = []
    for name, value in run.values.items():
        is_kept = name.startswith(_KEPT if is_same else "MODEL.")
        if is_kept and name in keys:
            is_path = keys[name].is_path and isinstance(value, str)
            words += [name, path_from_here(value, run.cwd) if is_path else as_option(value)]
    return words


def _own_options(facts: Facts, model: str) -> list[str]:
    """The keys of a model that its file names."""
    keys = table()
    words = []
    for name, value in own_keys(model, facts.model_keys).items():
        if name in keys:
            words += [name, as_option(value)]
    return words


def path_from_here(path: str, cwd: str) -> str:
    """A path of a run, which is relative to the folder where its command was given.

    If nothing is there, as after a move to another machine, it stays relative to this folder.
    """
    there = os.path.join(cwd, path)
    is_path = path not in ("", PRETRAINED)
    return there if is_path and os.path.exists(there) else path


def as_option(value: Any) -> str:
    """A value as the command line has it."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
