"""The study of Optuna: which values come next, and a file from which a later call continues."""

import contextlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edkd.dataset.sampling import seed_for
from edkd.engine.config.scalars import shown
from edkd.errors import StorageError, UserError, reason_of
from edkd.results.finding import STUDY
from edkd.tune.plan import Plan

JOURNAL = STUDY
"""In the folder of a study: every step of it, a line each."""

_NAME = "edkd"
_IDENTITY = "identity"


def import_optuna() -> Any:
    """The library, without its own log.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("tune needs Optuna: pip install 'edkd[tune]'") from None

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module="optuna")
    return optuna


def open_study(plan: Plan) -> Any:
    """The study of a plan, new or continued.

    Raises:
        UserError: its folder holds a study with another configuration or search, or a damaged one.
    """
    optuna = import_optuna()
    journal = plan.folder / JOURNAL
    try:
        backend = optuna.storages.journal.JournalFileBackend(str(journal))
        storage = optuna.storages.JournalStorage(backend)
        study = _stored(optuna, storage, _pruner(optuna, plan))
        _check_identity(study, plan)
    except (ValueError, KeyError, AssertionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{journal} is damaged ({reason_of(error)}); remove {plan.folder} to start again"
        ) from None

    return study


def next_trial(study: Any, plan: Plan) -> Any:
    """The trial that was interrupted, else a new one; None where all are done.

    The values of a trial depend on the seed of the search, its number and the earlier trials alone,
    so a study that was interrupted draws the same ones.
    """
    optuna = import_optuna()
    state = optuna.trial.TrialState
    if plan.start is not None and not study.get_trials(deepcopy=False):
        study.enqueue_trial(plan.start)
    trials = study.get_trials(deepcopy=False)
    running = [trial for trial in trials if trial.state == state.RUNNING]
    if not running and len(ended(study)) >= plan.source.trials:
        return None

    number = running[0].number if running else len(ended(study))
    study.sampler = optuna.samplers.TPESampler(seed=seed_for(plan.source.seed, number) % 2**32)
    if running:
        return optuna.trial.Trial(study, running[0]._trial_id)
    return study.ask()


def ended(study: Any) -> list[Any]:
    """The trials that have ended: complete, ended early, or failed."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def reported(trial: Any) -> list[int]:
    """The epochs of a trial whose figures the study has."""
    (found,) = [
        frozen for frozen in trial.study.get_trials(deepcopy=False) if frozen.number == trial.number
    ]
    return sorted(found.intermediate_values)


def importance(study: Any, keys: Sequence[str]) -> dict[str, float]:
    """The importance of each key, with a sum of 1; empty where it cannot be found."""
    optuna = import_optuna()
    with contextlib.suppress(ValueError, RuntimeError):
        return optuna.importance.get_param_importances(study, params=list(keys))
    return {}


def _stored(optuna: Any, storage: Any, pruner: Any) -> Any:
    """The study of a file; a new one in an empty file."""
    options = {"study_name": _NAME, "storage": storage, "pruner": pruner}
    if storage.get_all_studies():
        return optuna.load_study(**options)
    return optuna.create_study(direction="maximize", **options)


def _pruner(optuna: Any, plan: Plan) -> Any:
    if plan.halving is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=plan.min_epochs, reduction_factor=plan.halving.reduction
    )


def _check_identity(study: Any, plan: Plan) -> None:
    """Refuse a study of another search; that of more trials goes on."""
    now = json.loads(json.dumps(plan.identity(), default=str))
    before = study.user_attrs.get(_IDENTITY)
    if before is None:
        study.set_user_attr(_IDENTITY, now)
        return

    for name in before:  # not those of a later version
        if before[name] != now.get(name):
            raise UserError(
                f"{plan.folder} holds a study with another {name}: it was "
                f"{shown(before[name])} and is {shown(now.get(name))}; give this one another "
                "name in its file (name: ...), or remove that folder"
            )


def cut_torn_line(journal: Path) -> None:
    """Drop the last line where the machine failed while it was written.

    Only for the process that has the lock: another one may be writing that line.
    """
    try:
        content = journal.read_bytes() if journal.is_file() else b""
        if content and not content.endswith(b"\n"):
            with open(journal, "r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
    except OSError as error:
        raise StorageError(f"cannot read {journal}: {reason_of(error)}") from None
