"""Reading the files of `train_dml`, <experiment>_model<i>_<tag>.pth, and resuming from them.

Models are numbered from 1, tags are best, final and epoch_<n>. Earlier versions numbered from 0.
"""

import json
import os
import re
import shutil
from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from edkd.engine.checkpoint import LATEST, load_checkpoint, save_checkpoint, save_text
from edkd.engine.device import as_current_gpu, pick_device
from edkd.engine.run_folder import CONFIG
from edkd.errors import StorageError, UserError
from edkd.folder_lock import lock
from edkd.models import get_model
from edkd.notebook._loop import make_folder
from edkd.notebook.settings import FREE_ON_RESUME, NETWORKS

RUNS = "runs"
"""The folder beside these files that has the engine's run folders."""

_KEYS = ("epoch", "model_state_dict", "optimizer_state_dict", "best_acc", "config")
_KEYS_TO_RESUME = ("training_history", "data", "run")

_NAME = re.compile(r"(?P<experiment>.+)_model(?P<number>\d+)_(?P<tag>epoch_\d+|final|best)\.pth")

_SUMMARY = "_summary.json"


def read_model_file(path: Path) -> dict[str, Any]:
    """The content of a file of `train_dml`; raises UserError if it is another file."""
    state = load_checkpoint(path)
    for key in _KEYS:
        if key not in state:
            raise UserError(f"{path} is not a checkpoint of train_dml: {key} is missing")
    return state


def refuse_used_name(folder: Path, experiment: str) -> None:
    """Raise UserError if a folder has files of an experiment already."""
    found = _files_of_experiment(folder, experiment)
    if found:
        raise UserError(
            f"{found[0]} exists already; resume that experiment, or give another experiment_name "
            "or save_dir"
        )


def _files_of_experiment(folder: Path, experiment: str) -> list[Path]:
    """The files <experiment>_model<i>_<tag>.pth of a folder."""
    found = []
    for path in sorted(folder.glob(f"{escape(experiment)}_model*.pth")):
        match = _NAME.fullmatch(path.name)
        if match and match["experiment"] == experiment:
            found.append(path)
    return found


# Loading models.


def load_dml_models(
    checkpoint_paths: str | Path | Sequence[str | Path], device: str | torch.device = "auto"
) -> dict[str, Any]:
    """Load models from the files of `train_dml`.

    Args:
        checkpoint_paths: files, or one; a folder with the files of one experiment, or its
            <experiment>_summary.json, stands for the best weights of each of its models.
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        `models` in eval mode, `configs` of each of them, and the `device` that they are on.

    Raises:
        UserError: a file is absent, damaged, or of another kind.

    Example:
        models = load_dml_models(["checkpoints/x_model1_best.pth"])["models"]
    """
    with as_current_gpu(str(device)):
        where = pick_device(str(device))
    if isinstance(checkpoint_paths, (str, Path)):
        checkpoint_paths = files_of(Path(checkpoint_paths))

    models = []
    configs = []
    for path in map(Path, checkpoint_paths):
        state = read_model_file(path)
        models.append(_model_of(state, path).eval().to(where))
        configs.append(state["config"])
    return {"models": models, "configs": configs, "device": where}


def files_of(path: Path) -> list[Path]:
    """The files that a path stands for: itself, or the best weights of an experiment's models."""
    if path.is_dir():
        return _best_files(path)
    if path.name.endswith(_SUMMARY) and path.is_file():
        experiment = path.name.removesuffix(_SUMMARY)
        return _best_files(_folder_of_summary(path, experiment), experiment)
    return [path]


def _best_files(folder: Path, experiment: str | None = None) -> list[Path]:
    """<experiment>_model<i>_best.pth of each model, by number.

    Raises:
        UserError: the folder has no such files, or, where none is named, several experiments.
    """
    found: dict[str, dict[int, Path]] = {}
    for path in folder.glob("*_best.pth"):
        match = _NAME.fullmatch(path.name)
        if match:
            found.setdefault(match["experiment"], {})[int(match["number"])] = path

    names = sorted(found) if experiment is None else [experiment]
    if len(names) > 1:
        raise UserError(f"{folder} has several experiments ({', '.join(names)}); name their files")
    if not names or names[0] not in found:
        raise UserError(f"{folder} has no files {experiment or '<experiment>'}_model<i>_best.pth")
    return [path for _, path in sorted(found[names[0]].items())]


def _folder_of_summary(path: Path, experiment: str) -> Path:
    """`save_dir` of the experiment of a summary.

    It is found from the folder of the summary, since the working directory may be another one, or
    both folders may have been moved; if it has no such files, it is `save_dir` as it was given.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))["config"]
        save_dir = Path(config["save_dir"])
        from_logs = os.path.relpath(save_dir, config["log_dir"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a summary of train_dml; name the .pth files") from None

    beside = Path(os.path.normpath(path.absolute().parent / from_logs))
    return beside if _files_of_experiment(beside, experiment) else save_dir


def build_model(name: str, num_classes: int) -> nn.Module:
    """One of NETWORKS with fresh weights."""
    return get_model("cifar", name.lower(), num_classes)


def _model_of(state: dict[str, Any], path: Path) -> nn.Module:
    """The network of a file, with its weights."""
    config = state["config"] if isinstance(state["config"], dict) else {}
    name = state.get("network", config.get("model"))  # earlier versions had one for all models
    num_classes = config.get("num_classes")
    if name not in NETWORKS or not isinstance(num_classes, int):
        raise UserError(f"{path} is not a checkpoint of train_dml: its config names no network")

    model = build_model(name, num_classes)
    try:
        model.load_state_dict(state["model_state_dict"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: the weights do not fit {name} ({reason})") from None
    return model


# Resuming.


def read_file_to_resume(path: Path, config: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """The content of the file that `resume` names, with "experiment" and "first_number".

    "first_number" is the number of the first model in the files' names: 0 for experiments of
    earlier versions, else 1.

    Args:
        config: of the resumed run, complete.
        data: facts about its training set.

    Raises:
        UserError: the file cannot be resumed from, or was made with other settings or data.
    """
    match = _NAME.fullmatch(path.name)
    if not match:
        raise UserError(
            f"resume: {path.name} is not <experiment>_model<i>_epoch_<n>.pth, _best.pth or "
            "_final.pth"
        )
    state = read_model_file(path)
    for key in _KEYS_TO_RESUME:
        if key not in state:
            raise UserError(f"resume: {path} was written by another version: {key} is missing")

    for name, value in config.items():
        was = state["config"].get(name, value)
        if name not in FREE_ON_RESUME and was != value:
            raise UserError(f"resume: {name} was {was!r} and is {value!r}; give the same value")
    if config["epochs"] < state["epoch"]:
        raise UserError(f"resume: epochs is {config['epochs']}, but {state['epoch']} are done")
    if state["data"] != data:
        raise UserError(
            f"resume: the training set was {state['data']} and is {data}; give the same data"
        )

    experiment = match["experiment"]
    counts_from_0 = any(path.parent.glob(f"{escape(experiment)}_model0_*.pth"))
    return state | {"experiment": experiment, "first_number": 0 if counts_from_0 else 1}


def restore_run(run: Path, checkpoint: dict[str, Any], stages: list[int]) -> None:
    """Prepare a run folder of the engine, to resume from a checkpoint.

    The last checkpoint that the folder has is kept as `epoch_<n>`.

    Args:
        run: may be absent.
        checkpoint: see `checkpoint_of`.
        stages: SOLVER.LR_DECAY_STAGES of the resumed run, which depend on its number of epochs.

    Raises:
        UserError: another process uses the folder.
    """
    config = yaml.safe_load(checkpoint["config"])
    config["SOLVER"]["LR_DECAY_STAGES"] = stages

    make_folder(run)
    with lock(run):
        _keep_latest(run)
        save_checkpoint(checkpoint, run / LATEST)
        save_text(yaml.safe_dump(config), run / CONFIG)


def keep_for_best(run: Path, number: int) -> None:
    """Keep the last checkpoint of a run, to resume from the best weights of a model.

    Args:
        run: run folder of the engine.
        number: of the model, in the name of its files.
    """
    _copy_latest(run, f"model{number}_best")


def _keep_latest(run: Path) -> None:
    """Copy the last checkpoint to `epoch_<n>`, unless there is none or that file exists."""
    try:
        checkpoint = load_checkpoint(run / LATEST)
    except UserError:  # absent or damaged
        return

    name = f"epoch_{checkpoint['epoch']}"
    if not (run / name).exists():
        _copy_latest(run, name)


def _copy_latest(run: Path, name: str) -> None:
    target = run / name
    partial = target.with_name(f".{name}.partial")
    try:
        shutil.copyfile(run / LATEST, partial)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(f"cannot write {target}: {error.strerror}") from None


def checkpoint_of(run: Path, epoch: int) -> dict[str, Any]:
    """The checkpoint of an epoch in a run folder of the engine.

    Args:
        epoch: from 1.

    Raises:
        UserError: there is no intact checkpoint of that epoch.
    """
    numbered = run / f"epoch_{epoch}"
    if numbered.is_file():
        return load_checkpoint(numbered)

    for path in [run / LATEST, *sorted(run.glob("model*_best"))]:
        checkpoint = load_checkpoint(path) if path.is_file() else {}
        if checkpoint.get("epoch") == epoch:
            return checkpoint
    raise UserError(
        f"resume: {run} has no checkpoint of epoch {epoch}; resume from the file of another epoch"
    )
