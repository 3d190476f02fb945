"""From a configuration to a trained student: the folder, the data, the networks, the trainer."""

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from edkd.dataset import DataSet, dataset_dict, get_dataset
from edkd.dataset.sampling import seed_for
from edkd.distillers import Distiller, distiller_dict
from edkd.engine.checkpoint import check_room, load_latest, load_weights, save_text
from edkd.engine.device import amp_dtype, autocast, deterministic, pick_device
from edkd.engine.evaluate import evaluate
from edkd.engine.folder import claim, find_run, lock, refuse_used, run_folder
from edkd.engine.trainer import trainer_dict
from edkd.errors import NonFiniteError, UserError
from edkd.models import DOWNLOADS, get_model, published_weights
from edkd.paths import CONFIGS
from edkd.stop import hold


def train(cfg: CfgNode, opts: Sequence[str] = (), device: str = "auto", resume: bool = False) -> dict[str, Any]:
    """Train what `cfg` describes; return the summary of the run, which lies in `run_folder(cfg, opts)`.

    Nothing is written before data, weights and configuration have been found in order.

    Args:
        opts: the KEY, VALUE, ... of the command line; they name the run.
        device: auto, cuda, cuda:N, mps or cpu.
        resume: go on with the run of that folder, from its last checkpoint.

    Raises:
        UserError: the folder holds a run (without `resume`), or none, or one of another configuration (with it);
            data or weights are absent or damaged.
    """
    where = pick_device(device)
    amp_dtype(cfg.SOLVER.AMP, where)  # raises where the device cannot, before anything is loaded
    folder = run_folder(cfg, opts)
    checkpoint = None
    with ExitStack() as held:
        held.enter_context(deterministic(cfg.SOLVER.DETERMINISTIC))
        if resume:
            folder = find_run(cfg, folder)
            held.enter_context(lock(folder))
            checkpoint = load_latest(folder)
        else:
            refuse_used(folder)
        data = get_dataset(cfg, where)
        distiller = build_distiller(cfg, data).to(where).to(memory_format=torch.channels_last)
        with hold():  # the optimizer imports much, and an import that a signal cuts short is broken for good
            trainer = trainer_dict[cfg.SOLVER.TRAINER](cfg, distiller, data, folder, where, checkpoint)
        check_room(folder, trainer.room())
        if not resume:
            claim(folder)
            held.enter_context(lock(folder))
        save_text(cfg.dump(), folder / "config.yaml")
        return trainer.train()


def build_distiller(cfg: CfgNode, data: DataSet) -> Distiller:
    """Student, teacher and method, on the CPU. The first student's first weights depend on SOLVER.SEED alone."""
    method = distiller_dict[cfg.DISTILLER.TYPE]
    torch.manual_seed(seed_for(cfg.SOLVER.SEED, 0))
    student = build_student(cfg, data)
    teacher = load_teacher(cfg, data) if method.needs_teacher else None
    torch.manual_seed(seed_for(cfg.SOLVER.SEED, 0, 0))
    return method(student, teacher, cfg)


def build_student(cfg: CfgNode, data: DataSet) -> nn.Module:
    """The network that the method trains, or an `nn.ModuleList` of those of a cohort."""
    method, family = distiller_dict[cfg.DISTILLER.TYPE], dataset_dict[cfg.DATASET.TYPE].family
    students = [get_model(family, name, data.num_classes) for name in method.student_names(cfg)]
    return nn.ModuleList(students) if method.is_cohort else students[0]


def evaluate_checkpoint(cfg: CfgNode, ckpt: str, device: str = "auto") -> dict[str, float]:
    """Evaluate DISTILLER.STUDENT with the weights of a file on the test set of DATASET.

    Args:
        ckpt: a file, or "pretrain" for the published weights of that model.

    Returns:
        What `evaluate` returns.

    Raises:
        UserError: data or weights are absent, damaged, or of another model.
    """
    where = pick_device(device)
    dtype = amp_dtype(cfg.SOLVER.AMP, where)
    path = find_weights(cfg, cfg.DISTILLER.STUDENT, "" if ckpt == "pretrain" else ckpt, "-m", "-c")
    data = get_dataset(cfg, where)
    model = get_model(dataset_dict[cfg.DATASET.TYPE].family, cfg.DISTILLER.STUDENT, data.num_classes)
    load_weights(model, path)
    model.eval().to(where).to(memory_format=torch.channels_last)
    with autocast(dtype, where):
        result = evaluate(lambda image: model(image)[0], data.test)
    if not math.isfinite(result["loss"]):
        raise NonFiniteError(f"the loss of {path} on the test set is {result['loss']}: weights of a run that diverged")
    return result


def load_teacher(cfg: CfgNode, data: DataSet) -> nn.Module:
    """DISTILLER.TEACHER with the weights of TEACHER_CKPT, else with the published ones; see `find_weights`."""
    distiller = cfg.DISTILLER
    path = find_weights(cfg, distiller.TEACHER, distiller.TEACHER_CKPT, "DISTILLER.TEACHER", "DISTILLER.TEACHER_CKPT")
    teacher = get_model(dataset_dict[cfg.DATASET.TYPE].family, distiller.TEACHER, data.num_classes)
    load_weights(teacher, path)
    return teacher


def find_weights(cfg: CfgNode, name: str, given: str, model_key: str, path_key: str) -> Path:
    """The file of a model's weights: the given one, else the published one.

    Args:
        name: of the model, in the family of DATASET.TYPE.
        given: a file, or "".
        model_key, path_key: how the user says the one and the other, for messages.

    Raises:
        UserError: it is absent; the message names what fetches and what trains it.
    """
    train_it = (
        f"train it with 'python tools/train.py --cfg {training_config(cfg.DATASET.TYPE, name)}' "
        f"and give {path_key} the student_best of that run"
    )
    given = os.path.expanduser(given)
    if given and not os.path.isfile(given):  # of a name that is too long it says so, where Path raises
        raise UserError(f"{path_key}: no weights of {name} at {given}; mend the path, or {train_it}")
    spec = dataset_dict[cfg.DATASET.TYPE]
    path = given or (published_weights(spec.family, name) if spec.has_published_weights else None)
    if not path:
        raise UserError(f"{model_key} {name} has no published weights for {cfg.DATASET.TYPE}; {train_it}")
    if not Path(path).is_file():
        download = DOWNLOADS.get(spec.family)
        fetch_it = f"fetch the published ones with 'python tools/download.py {download}', or " if download else ""
        raise UserError(f"{model_key}: no weights of {name} at {path}; {fetch_it}{train_it}")
    return Path(path)


def training_config(dataset: str, model: str) -> str:
    """What trains a model alone: its own YAML file, or another's with the key that makes it this one's."""
    files = sorted(CONFIGS.glob(f"{dataset}/vanilla/*.yaml"), key=lambda file: file.stem != model)
    if not files:
        return f"<your YAML> DISTILLER.STUDENT {model}"
    override = "" if files[0].stem == model else f" DISTILLER.STUDENT {model}"
    return f"configs/{dataset}/vanilla/{files[0].name}{override}"
