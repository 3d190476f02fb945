"""The Python interface: train from a configuration, or distil networks and data of your own."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim

from edkd.dataset.external import external_dataset
from edkd.distillers import Distiller, canonical_name, find_method, method_names
from edkd.engine.build import Networks
from edkd.engine.config.command_line import pairs
from edkd.engine.config.compare import saved_config
from edkd.engine.config.load import load_config
from edkd.engine.config.table import table
from edkd.engine.device import as_current_gpu, pick_device
from edkd.engine.given_back import flags_kept, layouts_kept, modes_kept, rates_kept
from edkd.engine.given_networks import check_apart, check_precision, check_trainable
from edkd.engine.log.background import Record
from edkd.engine.run import evaluate_checkpoint as evaluate
from edkd.engine.run import train
from edkd.engine.run_folder import CONFIG, run_folder
from edkd.errors import EXPECTED, UserError
from edkd.hints import hint
from edkd.known_elsewhere import key_note
from edkd.models._hooked import as_network
from edkd.registry import METHODS

__all__ = ["distill", "evaluate", "load_config", "train"]

STAGES = "SOLVER.LR_DECAY_STAGES"

ARGUMENTS = {
    "--resume": "resume=True",
    "EXPERIMENT.NAME": "name",
    "LOG.PREFIX": "output",
}
"""Words of the command line, and the arguments of `distill` that take their place."""

CUSTOM = "custom"
"""DATASET.TYPE of a run whose data the caller gives."""


def distill(
    student: nn.Module | Sequence[nn.Module],
    teacher: nn.Module | Sequence[nn.Module] | None,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any],
    method: str | type[Distiller] = "DKD",
    epochs: int = 10,
    *,
    optimizer: optim.Optimizer | Sequence[optim.Optimizer] | None = None,
    test_loader: Iterable[Any] | None = None,
    num_classes: int | None = None,
    output: str | Path = "output",
    name: str | None = None,
    resume: bool = False,
    device: str | torch.device = "auto",
    plugins: Sequence[str] = (),
    on_epoch: Callable[[Record], None] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Distil a teacher into a student, with the whole engine: logs, checkpoints, resume, checks.

    Args:
        student: any module that returns logits (N,C) or (logits, features); trained in place. A
            list of modules for a method in which students learn from one another.
        teacher: the same, or several; it is not changed. None for a method without a teacher.
        train_loader: yields batches (images, targets), as a torch DataLoader.
        val_loader: the same; chooses the best epoch.
        method: a DISTILLER.TYPE, as "KD", "DKD", "EDKD", "KD+DKD", "DML", "NONE"; or a class
            derived from Distiller.
        epochs: passes over `train_loader`.
        optimizer: one or several of your own; their learning rates are scaled by the schedule.
            Default: the one that SOLVER names.
        test_loader: evaluated once, at the end, with the last and the best weights.
        num_classes: of the labels; default: found from the training set.
        output: folder of all runs.
        name: folder of this run within `<output>/distill`; default: method and networks.
        resume: continue the run of that folder, perhaps up to more epochs; the stages of the
            learning rate stay.
        device: auto, cuda, cuda:N, mps or cpu; the networks are moved there.
        plugins: Python files that register methods or update rules.
        on_epoch: called with the record of each finished epoch.
        settings: configuration keys, in full through a dictionary, as
            `**{"SOLVER.WEIGHT_DECAY": 0.01}`, or by their last part, as `lr=0.1`, `T=4`, `beta=2`;
            the method's own keys come first.

    Returns:
        The content of `result.json`, and "folder", the folder of the run. Its `student_best` is the
        file {"model": state_dict} of the best epoch. The student itself holds the weights of the
        last epoch; with a `test_loader`, those of the best one. With `ema`, these are averages.

    Raises:
        UserError: a setting is unknown, the data or the networks do not fit, or the folder
            already holds a run.

    Example:
        result = edkd.distill(student, teacher, train_loader, val_loader, method="KD", lr=0.1)
        print(result["best_test_top1"], result["folder"])
    """
    students = _as_list(student)
    teachers = _as_list(teacher)
    if not students:
        raise UserError("distill: give a student")
    if not isinstance(epochs, Integral):
        raise UserError(f"distill: epochs is {epochs!r}, but must be an integer")

    with as_current_gpu(str(device)), _arguments_named(), _name_of(method) as kind:
        given = {"student": _class_names(students), "teacher": _class_names(teachers)}

        opts = _options(kind, epochs, given, output, name, plugins, settings)
        batch_size = getattr(train_loader, "batch_size", None)
        if isinstance(batch_size, int):
            opts += ["SOLVER.BATCH_SIZE", str(batch_size)]

        cfg = load_config(opts=opts, plugins=plugins, networks=given)
        if resume:
            opts += _saved_stages(run_folder(cfg), opts)
            cfg = load_config(opts=opts, plugins=plugins, networks=given)
        _check_networks(cfg.DISTILLER.TYPE, students, teachers)

        where = pick_device(str(device))
        data = external_dataset(
            train_loader, val_loader, test_loader, num_classes, where, cfg.SOLVER.SEED
        )
        optimizers = _optimizers(optimizer)
        networks = Networks(
            students=[as_network(network) for network in students],
            teachers=[as_network(network) for network in teachers],
            optimizers=optimizers,
        )
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            modes_kept([*students, *teachers]),
            flags_kept([*students, *teachers]),
            layouts_kept([*students, *teachers], optimizers),
            rates_kept(optimizers),
        ):
            result = train(cfg, (), where, resume, data, networks, on_epoch)
        return result | {"folder": str(run_folder(cfg))}


def _options(
    method: str,
    epochs: int,
    given: dict[str, list[str]],
    output: str | Path,
    name: str | None,
    plugins: Sequence[str],
    settings: dict[str, Any],
) -> list[str]:
    """The KEY VALUE pairs of a call of `distill`."""
    load_config(plugins=plugins)  # registers the plugins' methods
    kind = canonical_name(method)
    values: dict[str, Any] = {
        "DISTILLER.TYPE": kind,
        "DATASET.TYPE": CUSTOM,
        "SOLVER.EPOCHS": epochs,
        STAGES: _stages(epochs),
        "DISTILLER.STUDENT": given["student"][0],
        "LOG.PREFIX": output,
        "LOG.WANDB": False,
        "EXPERIMENT.PROJECT": "distill",
        "EXPERIMENT.NAME": name or "",
        "EXPERIMENT.TAG": ",".join([kind, *given["teacher"], *given["student"]]).lower(),
    }
    if given["teacher"]:
        values["DISTILLER.TEACHER"] = given["teacher"]
    if find_method(kind).is_cohort:
        values[f"{kind}.STUDENTS"] = given["student"]

    values |= {_full_key(key, kind): value for key, value in settings.items()}
    return [word for key, value in values.items() for word in (key, str(value))]


def _stages(epochs: int) -> list[int]:
    """The published stages, 150, 180 and 210 of 240 epochs, in a run of another length."""
    stages = {epochs * stage // 240 for stage in (150, 180, 210)}
    return sorted(stages - {0})


def _saved_stages(folder: Path, opts: Sequence[str]) -> list[str]:
    """The stages with which a run began, so that it can be resumed with more epochs.

    Stages that the caller gave instead of the default are kept, and compared with the run's.
    """
    given = dict(pairs(opts))
    is_default = given[STAGES] == str(_stages(int(given["SOLVER.EPOCHS"])))
    try:
        saved = saved_config((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the engine names the fault
        return []
    return [STAGES, str(saved[STAGES])] if is_default and STAGES in saved else []


def _full_key(name: str, method: str) -> str:
    """The configuration key of a setting: "lr" -> "SOLVER.LR", "beta" -> "DKD.BETA"."""
    known = list(table())
    if name in known:
        return name

    parts = method.split("+")
    others = [node for node in method_names() if node not in parts]
    outside = {key.split(".")[0] for key in known} - {*parts, *others, "SOLVER", "COMBINED"}
    first = ["COMBINED"] if len(parts) > 1 else []
    for groups in (first, parts, ["SOLVER"], sorted(outside)):
        alike = [key for key in known if _is_setting(key, name, groups)]
        if len(alike) == 1:
            return alike[0]
        if alike:
            raise UserError(f"distill: {name} can be {' or '.join(alike)}; give the full key")

    short = [key.rsplit(".", 1)[1].lower() for key in known if key.split(".")[0] not in others]
    about = key_note(name) or hint(name, [*known, *short])
    raise UserError(f"distill: unknown setting {name}{about}")


def _is_setting(key: str, name: str, groups: Sequence[str]) -> bool:
    last = key.rsplit(".", 1)[1].lower()
    is_temperature = {last, name.lower()} == {"t", "temperature"}
    return (last == name.lower() or is_temperature) and key.split(".")[0] in groups


@contextmanager
def _name_of(method: str | type[Distiller]) -> Iterator[str]:
    """The name of a method; a class without one is registered under its own during the block."""
    if isinstance(method, str):
        yield method
        return
    if not (isinstance(method, type) and issubclass(method, Distiller)):
        raise UserError(
            f"distill: method is {method!r}, but must be a name, as 'DKD', or a class derived from "
            "Distiller"
        )

    for entry in METHODS.entries():
        if entry.value is method:
            yield entry.name
            return

    METHODS.add(method.__name__, method)
    try:
        yield method.__name__
    finally:
        METHODS.remove(method.__name__)


@contextmanager
def _arguments_named() -> Iterator[None]:
    """Messages name the arguments of `distill`, not words of the command line."""
    try:
        yield
    except EXPECTED as error:
        if len(error.args) == 1:
            text = str(error)
            for word, argument in ARGUMENTS.items():
                text = text.replace(word, argument)
            error.args = (text,)
        raise


def _as_list(networks: nn.Module | Sequence[nn.Module] | None) -> list[nn.Module]:
    if networks is None:
        return []
    found = [networks] if isinstance(networks, (nn.Module, str)) else list(networks)
    for network in found:
        if not isinstance(network, nn.Module):
            raise UserError(f"distill: a network must be a torch.nn.Module, not {network!r}")
    return found


def _optimizers(given: Any) -> list[optim.Optimizer]:
    """The caller's optimizers as a list."""
    if given is None:
        return []
    found = list(given) if isinstance(given, (list, tuple)) else [given]
    for optimizer in found:
        if not isinstance(optimizer, optim.Optimizer) or isinstance(optimizer, optim.LBFGS):
            raise UserError(
                f"distill: optimizer is {optimizer!r}, but must be a torch optimizer object that "
                "steps without a closure, or a list of them"
            )
    return found


def _class_names(networks: Sequence[nn.Module]) -> list[str]:
    return [type(network).__name__ for network in networks]


def _check_networks(
    kind: str, students: Sequence[nn.Module], teachers: Sequence[nn.Module]
) -> None:
    method = find_method(kind)
    check_apart(students, teachers)
    for student in students:
        check_trainable(student)
        check_precision("student", student)
    for teacher in teachers:
        check_precision("teacher", teacher)

    if method.needs_teacher and not teachers:
        raise UserError(f"distill: {kind} needs a teacher")
    if teachers and not method.needs_teacher:
        raise UserError(f"distill: {kind} does not use a teacher; give None as the teacher")
    if not method.is_cohort and len(students) > 1:
        raise UserError(f"distill: {kind} trains one student, not {len(students)}")
    if method.is_cohort and len(students) < method.min_students:
        raise UserError(
            f"distill: {kind} takes {method.min_students} students or more, not {len(students)}"
        )
