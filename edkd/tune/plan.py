"""What a study will do: its configurations are checked before the first trial."""

import io
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

from yacs.config import CfgNode

from edkd.engine.config.compare import flatten, identifying, unused_groups
from edkd.engine.config.load import load_config
from edkd.engine.config.table import table
from edkd.engine.run_name import portable
from edkd.errors import UserError
from edkd.sweep.options import Options, words_of
from edkd.tune.file import Halving, TuneFile, read_tune
from edkd.tune.space import Choices, Interval

EPOCHS = "SOLVER.EPOCHS"
SPLIT = "DATASET.VAL_SPLIT"
EVALUATE = "DATASET.TEST.EVALUATE"

TRIALS = "trials"
"""The folder of all trials within that of a study."""

_OWN = (SPLIT, EVALUATE)
"""Keys that the study sets itself."""

_TASK = ("DATASET.TYPE", "DATASET.ROOT", "DATASET.LIST")
"""Keys of the task: accuracies on different images cannot be compared."""

_PATHS = ("DISTILLER.TEACHER_CKPT", *_TASK)
"""Keys that all trials share, although they do not identify a result."""

_DECISIONS = 2
"""Decisions on the way of a full trial, where the file does not name `min_epochs`."""


class Plan(NamedTuple):
    """A study whose file and configurations are right."""

    source: TuneFile
    cfg: CfgNode
    """Of a final run: the configuration with the options of `set`."""
    trial_options: Options
    """Of all trials, on top of the configuration."""
    start: dict[str, Any] | None
    """The configuration's own values as Optuna has them; None where one is not in the search."""
    epochs: int
    """Of a trial."""
    min_epochs: int
    """Of a trial that ends early; as many as `epochs` where none does."""

    @property
    def folder(self) -> Path:
        """Of the study."""
        return Path(self.cfg.LOG.PREFIX).expanduser() / "tune" / portable(self.source.name)

    @property
    def halving(self) -> Halving | None:
        """When a trial ends early."""
        return self.source.halving

    def options(self, number: int, values: Mapping[str, str]) -> Options:
        """All options of a trial.

        Args:
            number: of the trial, from 0.
            values: that it tries, by keys.
        """
        named = {
            "EXPERIMENT.PROJECT": f"tune/{self.source.name}/{TRIALS}",
            "EXPERIMENT.NAME": str(number),
        }
        return {**self.trial_options, **values, **named}

    def trial_config(self, number: int, values: Mapping[str, str]) -> CfgNode:
        """The configuration of a trial; UserError where its values contradict one another."""
        return load_config(self.source.config, words_of(self.options(number, values)))

    def identity(self) -> dict[str, Any]:
        """What the trials of a study have in common, for a later call."""
        first = self.trial_config(0, {})
        halving = [self.min_epochs, self.halving.reduction] if self.halving else "off"
        return {
            "search": {key: str(dimension) for key, dimension in self.source.space.items()},
            "seed": self.source.seed,
            "halving": halving,
            **identifying(first),
            **{key: value for key, value in flatten(first) if key in _PATHS},
            "SOLVER.SEED": first.SOLVER.SEED,
        }


def plan_study(file: str) -> Plan:
    """Read the file of a study, and check its configuration with each end of each range.

    Raises:
        UserError: the file or a configuration is wrong; nothing was written.
    """
    source = read_tune(file)
    cfg = _loaded(source, source.fixed)
    _refuse_fixed(source)
    for key in source.space:
        _check_key(source, cfg, key)

    epochs = source.epochs or cfg.SOLVER.EPOCHS
    shortened = _shortened(source, cfg, epochs)
    options = {
        "LOG.WANDB": "False",
        "LOG.PRINT": "False",
        "LOG.SAVE_CHECKPOINT_FREQ": "0",
        **source.fixed,
        **shortened,
        SPLIT: repr(source.val_split),
        EVALUATE: "False",
    }

    start = _start(source, cfg, options)
    return Plan(source, cfg, options, start, epochs, _min_epochs(source, epochs))


def _loaded(source: TuneFile, options: Options, tried: Options | None = None) -> CfgNode:
    """The configuration with some options; messages name the file of the study.

    Args:
        options: that are the same for all trials.
        tried: further ones, which messages show.
    """
    tried = tried or {}
    try:
        with redirect_stderr(io.StringIO()):  # keys without an effect are refused, see below
            cfg = load_config(source.config, words_of({**options, **tried}))
    except UserError as error:
        text = str(error).replace(" (command line)", "")
        place = " ".join([f"{source.path}: {source.config}", *words_of(tried)])
        raise UserError(f"{place}: {text}") from None

    for key in {**options, **tried}:
        if key.startswith(unused_groups(cfg)):
            raise UserError(
                f"{source.path}: {key} changes nothing: {source.config} does not use it "
                f"(DISTILLER.TYPE {cfg.DISTILLER.TYPE}); remove it"
            )
    return cfg


# What is refused.


def _refuse_fixed(source: TuneFile) -> None:
    for key in source.fixed:
        if key in source.space:
            raise UserError(f"{source.path}: {key} is in set and in search; remove one of them")
        if key in _OWN:
            raise UserError(
                f"{source.path}: set: {key} is set by the study; remove it (val_split is the share "
                "of the images that is held out)"
            )


def _check_key(source: TuneFile, cfg: CfgNode, key: str) -> None:
    """Refuse a key that must not, or cannot, be searched."""
    where = f"{source.path}: search: {key}"
    if key == EPOCHS:
        raise UserError(f"{where} is the budget of a trial; give it in set, or as epochs")
    if key in (*_OWN, *_TASK):
        raise UserError(f"{where} decides which images are used, and is not searched; remove it")

    is_used = not key.startswith(unused_groups(cfg))
    if is_used and key not in identifying(cfg):
        raise UserError(
            f"{where} is no hyper-parameter: it does not change the accuracy; remove it"
        )
    if source.epochs and table()[key].unit == "epochs":
        raise UserError(
            f"{where} counts epochs, and the final run has other ones than a trial; leave epochs "
            "out, or remove the key"
        )


# The options of a trial.


def _shortened(source: TuneFile, cfg: CfgNode, epochs: int) -> Options:
    """The options of shorter trials: stages and warm-ups keep their share of the run."""
    if epochs == cfg.SOLVER.EPOCHS:
        return {}

    keys = table()
    factor = epochs / cfg.SOLVER.EPOCHS
    found = {EPOCHS: str(epochs)}
    used = identifying(cfg)
    for name, value in flatten(cfg):
        counts_epochs = name in keys and keys[name].unit == "epochs" and name in used
        if counts_epochs and value:
            found[name] = _scaled(value, factor)
    return found


def _scaled(value: Any, factor: float) -> str:
    """Epochs, or a list of them, of a shorter run; none becomes 0."""
    if isinstance(value, (list, tuple)):
        items = [_scaled(item, factor) for item in value]
        return f"[{','.join(items)}]"
    return str(max(round(value * factor), 1)) if value else "0"


def _min_epochs(source: TuneFile, epochs: int) -> int:
    if source.halving is None:
        return epochs
    given = source.halving.min_epochs
    if given is None:
        return max(epochs // source.halving.reduction**_DECISIONS, 1)
    if given >= epochs:
        raise UserError(
            f"{source.path}: halving: min_epochs is {given}, but must be below the {epochs} epochs "
            "of a trial; or set halving: False"
        )
    return given


def _start(source: TuneFile, cfg: CfgNode, options: Options) -> dict[str, Any] | None:
    """Check each end of each range, and each choice; find the configuration's own values."""
    own = dict(flatten(cfg))
    found: dict[str, Any] = {}
    for key, dimension in source.space.items():
        ends = {text: _loaded(source, options, {key: text}) for text in dimension.ends()}
        if isinstance(dimension, Interval):
            found[key] = dimension.position(own[key])
        if isinstance(dimension, Choices):
            equal = [text for text, end in ends.items() if dict(flatten(end))[key] == own[key]]
            found[key] = equal[0] if equal else None
    return None if None in found.values() else found
