"""From a configuration to a trained student: the folder, the data, the networks, the trainer."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from edkd.dataset import DataSet, dataset_dict, get_dataset
from edkd.dataset.sampling import seed_for
from edkd.distillers import Distiller, distiller_dict
from edkd.engine.checkpoint import load_checkpoint, load_weights, save_text
from edkd.engine.config import FREE_OF_A_NAME, changed_keys
from edkd.engine.device import amp_dtype, autocast, pick_device
from edkd.engine.evaluate import evaluate
from edkd.engine.trainer import trainer_dict
from edkd.errors import StorageError, UserError
from edkd.models import DOWNLOADS, get_model, published_weights

_UNSAFE = re.compile(r"[^\w.,:+\-\[\]]+")
_PLACES = ("EXPERIMENT.", "LOG.", "DATASET.ROOT", "DISTILLER.TEACHER_CKPT")


def train(cfg: CfgNode, opts: Sequence[str] = (), device: str = "auto", resume: bool = False) -> dict[str, Any]:
    """Train what `cfg` describes; return the summary of the run, which lies in `run_folder(cfg, opts)`.

    Nothing is written before data, weights and configuration have been found in order.

    Args:
        opts: the KEY, VALUE, ... of the command line; they name the run.
        device: auto, cuda, cuda:N, mps or cpu.
        resume: go on with the run of that folder, from its last epoch.

    Raises:
        UserError: the folder holds a run (without `resume`), or none, or one of another configuration (with it);
            data or weights are absent or damaged.
    """
    where = pick_device(device)
    amp_dtype(cfg.SOLVER.AMP, where)
    folder = run_folder(cfg, opts)
    checkpoint = None
    if resume:
        folder, checkpoint = find_run(cfg, folder)
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"{folder} already holds a run; go on with it by --resume, or give this one another EXPERIMENT.NAME"
        )
    data = get_dataset(cfg, where)
    distiller = build_distiller(cfg, data).to(where).to(memory_format=torch.channels_last)
    trainer = trainer_dict[cfg.SOLVER.TRAINER](cfg, distiller, data, folder, where, checkpoint)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror}; set LOG.PREFIX to another") from None
    save_text(cfg.dump(), folder / "config.yaml")
    return trainer.train()


def run_folder(cfg: CfgNode, opts: Sequence[str] = ()) -> Path:
    """<LOG.PREFIX>/<PROJECT>/<NAME or TAG>[,KEY:VALUE...].

    Pairs of the command line that say where something lies are left out; a NAME among them is the whole name.

    Raises:
        UserError: the name leads out of LOG.PREFIX, or is too long for a file system.
    """
    pairs = dict(zip(opts[::2], opts[1::2], strict=True))
    name = cfg.EXPERIMENT.NAME or cfg.EXPERIMENT.TAG
    if "EXPERIMENT.NAME" not in pairs:
        shown = {key: value for key, value in pairs.items() if not key.startswith(_PLACES)}
        name = ",".join([name, *(f"{key}:{_UNSAFE.sub('_', value)}" for key, value in shown.items())])
    prefix = Path(cfg.LOG.PREFIX)
    folder = prefix / cfg.EXPERIMENT.PROJECT / name
    if prefix.resolve() not in folder.resolve().parents:
        raise UserError(f"EXPERIMENT.PROJECT and NAME lead to {folder}, which is not inside LOG.PREFIX {prefix}")
    if len(name.encode()) > 200:
        raise UserError(f"the name of the run is too long ({name[:40]}...); give it a short EXPERIMENT.NAME")
    return folder


def find_run(cfg: CfgNode, folder: Path) -> tuple[Path, dict[str, Any] | None]:
    """The folder and `latest` (None: it ended before its first epoch did) of the run to go on with.

    Where `folder` is no run, it is the one run beside it of the same NAME and TAG that differs only in what may
    change, as in EPOCHS.
    """
    if not (folder / "config.yaml").is_file():
        configs = folder.parent.glob("*/config.yaml")
        alike = [file.parent for file in configs if not changed_keys(file.read_text(), cfg, free=FREE_OF_A_NAME)]
        if len(alike) != 1:
            found = f"; runs of this configuration: {', '.join(map(str, alike))}" if alike else ""
            raise UserError(f"--resume: no run at {folder}{found}; leave --resume out to begin one")
        folder = alike[0]
    latest = folder / "latest"
    checkpoint = load_checkpoint(latest) if latest.exists() else None
    if checkpoint and "config" not in checkpoint:
        raise UserError(f"--resume: {latest} is no checkpoint of a run of this framework; move it away to begin anew")
    text = checkpoint["config"] if checkpoint else (folder / "config.yaml").read_text()
    if changes := changed_keys(text, cfg):
        way_out = "give the same, or begin a run of another EXPERIMENT.NAME"
        raise UserError(f"--resume: {folder} was run with another configuration: {'; '.join(changes)}; {way_out}")
    return folder, checkpoint


def build_distiller(cfg: CfgNode, data: DataSet) -> Distiller:
    """Student, teacher and method, on the CPU. The student's first weights depend on SOLVER.SEED alone."""
    method = distiller_dict[cfg.DISTILLER.TYPE]
    family = dataset_dict[cfg.DATASET.TYPE].family
    torch.manual_seed(seed_for(cfg.SOLVER.SEED, 0))
    student = get_model(family, cfg.DISTILLER.STUDENT, data.num_classes)
    teacher = load_teacher(cfg, data) if method.needs_teacher else None
    torch.manual_seed(seed_for(cfg.SOLVER.SEED, 0, 0))
    return method(student, teacher, cfg)


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
        return evaluate(lambda image: model(image)[0], data.test)


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
        f"train it with 'python tools/train.py --cfg configs/{cfg.DATASET.TYPE}/vanilla.yaml DISTILLER.STUDENT {name}' "
        f"and give {path_key} the student_best of that run"
    )
    if given and not Path(given).is_file():
        raise UserError(f"{path_key}: no weights of {name} at {given}; mend the path, or {train_it}")
    family = dataset_dict[cfg.DATASET.TYPE].family
    path = given or published_weights(family, name)
    if not path:
        raise UserError(f"{model_key} {name} has no published weights; {train_it}")
    if not Path(path).is_file():
        fetch = f"fetch the published ones with 'python tools/download.py {DOWNLOADS[family]}', or " * (
            family in DOWNLOADS
        )
        raise UserError(f"{model_key}: no weights of {name} at {path}; {fetch}{train_it}")
    return Path(path)
