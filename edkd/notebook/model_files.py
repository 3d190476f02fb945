"""Reading the files of `train_dml`, <experiment>_model<i>_<tag>.pth, and resuming from them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from edkd.engine.checkpoint import LATEST, load_checkpoint, save_checkpoint, save_text
from edkd.engine.device import pick_device
from edkd.engine.run_folder import CONFIG
from edkd.errors import UserError
from edkd.models import get_model
from edkd.notebook._loop import make_folder
from edkd.notebook.settings import FREE_ON_RESUME, NETWORKS

RUNS = "runs"
"""The folder beside these files that has the engine's run folders."""

_KEYS = ("epoch", "model_state_dict", "optimizer_state_dict", "best_acc", "config")
_KEYS_TO_RESUME = ("training_history", "data", "run")

_NAME = re.compile(r"(?P<experiment>.+)_model\d+_(epoch_\d+|final)\.pth")


def read_model_file(path: Path) -> dict[str, Any]:
    """The content of a file of `train_dml`; raises UserError if it is another file."""
    state = load_checkpoint(path)
    for key in _KEYS:
        if key not in state:
            raise UserError(f"{path} is not a checkpoint of train_dml: {key} is missing")
    return state


# Loading models.


def load_dml_models(
    checkpoint_paths: str | Path | Sequence[str | Path], device: str | torch.device = "auto"
) -> tuple[list[nn.Module], list[dict[str, Any]], torch.device]:
    """Load models from the files of `train_dml`.

    Returns:
        The models in eval mode, their configurations, and the device that they are on.

    Raises:
        UserError: a file is absent, damaged, or of another kind.
    """
    where = pick_device(str(device))
    if isinstance(checkpoint_paths, (str, Path)):
        checkpoint_paths = [checkpoint_paths]

    models = []
    configs = []
    for path in map(Path, checkpoint_paths):
        state = read_model_file(path)
        models.append(_model_of(state, path).eval().to(where))
        configs.append(state["config"])
    return models, configs, where


def build_model(config: dict[str, Any]) -> nn.Module:
    """The network of a configuration, with fresh weights."""
    return get_model("cifar", config["model"].lower(), config["num_classes"])


def _model_of(state: dict[str, Any], path: Path) -> nn.Module:
    """The network of a file, with its weights."""
    config = state["config"]
    known = isinstance(config, dict) and config.get("model") in NETWORKS
    if not known or not isinstance(config.get("num_classes"), int):
        raise UserError(f"{path} is not a checkpoint of train_dml: its config names no network")

    model = build_model(config)
    try:
        model.load_state_dict(state["model_state_dict"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: the weights do not fit {config['model']} ({reason})") from None
    return model


# Resuming.


def read_file_to_resume(path: Path, config: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """The content of the file that `resume` names, and "experiment", from its name.

    Args:
        config: of the resumed run, complete.
        data: facts about its training set.

    Raises:
        UserError: the file cannot be resumed from, or was made with other settings or data.
    """
    match = _NAME.fullmatch(path.name)
    if not match:
        raise UserError(
            f"resume: {path.name} is not <experiment>_model<i>_epoch_<n>.pth or _final.pth"
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
    return state | {"experiment": match["experiment"]}


def restore_run(source: Path, target: Path, epoch: int, stages: list[int]) -> None:
    """Prepare a run folder of the engine, to resume after an epoch.

    Args:
        source: run folder with a checkpoint of that epoch.
        target: run folder to resume; may be the same.
        epoch: from 1.
        stages: SOLVER.LR_DECAY_STAGES of the resumed run, which depend on its number of epochs.

    Raises:
        UserError: there is no intact checkpoint of that epoch.
    """
    checkpoint = _checkpoint_of(source, epoch)
    config = yaml.safe_load(checkpoint["config"])
    config["SOLVER"]["LR_DECAY_STAGES"] = stages

    make_folder(target)
    save_checkpoint(checkpoint, target / LATEST)
    save_text(yaml.safe_dump(config), target / CONFIG)


def _checkpoint_of(run: Path, epoch: int) -> dict[str, Any]:
    numbered = run / f"epoch_{epoch}"
    if numbered.is_file():
        return load_checkpoint(numbered)

    latest = run / LATEST
    if latest.is_file():
        checkpoint = load_checkpoint(latest)
        if checkpoint["epoch"] == epoch:
            return checkpoint
    raise UserError(
        f"resume: {run} has no checkpoint of epoch {epoch}; resume from the file of another epoch"
    )
