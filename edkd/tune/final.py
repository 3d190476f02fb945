"""The configuration that a study has found, and its final runs."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from edkd.engine.checkpoint import save_text
from edkd.engine.config.compare import changed_keys, flatten
from edkd.engine.config.load import load_config
from edkd.engine.config.strict_yaml import BASE
from edkd.engine.config.table import as_node
from edkd.engine.run_folder import CONFIG, run_folder, saved_values
from edkd.errors import SweepError, UserError
from edkd.sweep.options import SEED, words_of
from edkd.tune.outcome import Row, budget_text, complete, is_start
from edkd.tune.plan import EVALUATE, SPLIT, Plan

BEST = "best.yaml"
FINAL = "final.yaml"

LABEL = "tuned"
"""What is added to the name of the final runs."""

_FINAL_IMAGES = {SPLIT: 0.0, EVALUATE: True}


def refuse_final_runs_of_others(plan: Plan) -> None:
    """Raise UserError where another study, whose final runs have the same names, has trained them.

    Once this study has its own final.yaml, the sweep compares the runs with it.
    """
    if (plan.folder / FINAL).is_file():
        return

    words = words_of({**plan.source.fixed, **_label(plan, plan.cfg.EXPERIMENT.TAG)})
    for folder, _ in _runs_that_exist(plan, plan.source.config, words):
        raise UserError(
            f"{folder} holds a final run of another study; give those of this one another "
            f"name, as set: {{EXPERIMENT.NAME: {plan.source.name}}} in {plan.source.path}"
        )


def write_best(plan: Plan, study: Any) -> Path:
    """Write `best.yaml`: the configuration with the values of the best trial.

    Returns:
        Its path.

    Raises:
        SweepError: no trial is complete.
    """
    rows = complete(study)
    if not rows:
        raise SweepError(
            f"no trial of {plan.folder} is complete; trials.csv there has the errors: change the "
            "ranges, give the study another name, and repeat the command"
        )

    trial = plan.trial_config(rows[0].number, rows[0].values)
    found = _values(plan.cfg, plan.source.fixed) | _values(trial, rows[0].values)
    nested = as_node(found | _all_images(plan) | _label(plan, trial.EXPERIMENT.TAG))
    base = {BASE: _base(plan)}
    text = _header(plan, study, rows) + yaml.safe_dump(base) + nested.dump(sort_keys=False)

    path = plan.folder / BEST
    save_text(text, path)
    return path


def write_final(plan: Plan) -> Path:
    """Write `final.yaml`, a sweep over the seeds of the final runs; return its path."""
    content = {"configs": [BEST], "seeds": plan.source.seeds}
    if plan.source.plugins:
        content["plugins"] = [os.path.abspath(plugin) for plugin in plan.source.plugins]

    path = plan.folder / FINAL
    about = "# The final runs of a study: all training images, one run for each seed.\n"
    save_text(about + yaml.safe_dump(content, sort_keys=False), path)
    return path


def refuse_other_values(plan: Plan) -> None:
    """Raise UserError where final runs were trained with values that are not the best any more."""
    for folder, cfg in _runs_that_exist(plan, str(plan.folder / BEST)):
        saved = saved_values(folder / CONFIG)
        changes = changed_keys(saved, cfg) if saved else []  # the sweep reports a damaged file
        if changes:
            raise UserError(
                f"{folder} was trained with other values than those that are the best now "
                f"({'; '.join(changes)}); rename or remove it, and repeat the command"
            )


def _runs_that_exist(
    plan: Plan, config: str, words: Sequence[str] = ()
) -> Iterator[tuple[Path, CfgNode]]:
    """The folders of final runs that are there, with the configuration that each would have now.

    Args:
        plan: of the study.
        config: a YAML file.
        words: its options, as on a command line.
    """
    for seed in plan.source.seeds:
        own = words_of({SEED: str(seed)})
        cfg = load_config(config, [*words, *own])
        folder = run_folder(cfg, own)
        if (folder / CONFIG).is_file():
            yield folder, cfg


def _values(cfg: CfgNode, keys: Iterable[str]) -> dict[str, Any]:
    """The values of some keys, in the types of YAML."""
    every = dict(flatten(cfg))
    return {key: _plain(every[key]) for key in keys}


def _all_images(plan: Plan) -> dict[str, Any]:
    """What makes the final runs train on all images and evaluate the test set.

    Empty where the configuration does so itself.
    """
    used = dict(flatten(plan.cfg))
    return {key: value for key, value in _FINAL_IMAGES.items() if used[key] != value}


def _label(plan: Plan, tag: str) -> dict[str, str]:
    """The name of the final runs: "kd,res56,res20" becomes "kd,tuned,res56,res20".

    Args:
        plan: of the study.
        tag: EXPERIMENT.TAG of the best trial, which begins with its method.
    """
    experiment = plan.cfg.EXPERIMENT
    if experiment.NAME:
        return {"EXPERIMENT.NAME": f"{experiment.NAME},{LABEL}"}
    method, comma, networks = tag.partition(",")
    return {"EXPERIMENT.TAG": f"{method},{LABEL}{comma}{networks}"}


def _base(plan: Plan) -> str:
    """The path of the configuration from the folder of the study."""
    config = Path(plan.source.config).resolve()
    try:
        return Path(os.path.relpath(config, plan.folder.resolve())).as_posix()
    except ValueError:  # another drive of Windows
        return str(config)


def _header(plan: Plan, study: Any, rows: list[Row]) -> str:
    """How the values were found, as comments."""
    best = rows[0]
    own = [row for row in rows if is_start(plan, row)]
    searched = [f"#   {key}: {each}" for key, each in plan.source.space.items()]
    lines = [
        f"# Found by `edkd tune {plan.source.path}`: trial {best.number}, {best.top1:.2f} % top-1 "
        "after its last epoch,",
        f"# on held-out training images (DATASET.VAL_SPLIT {plan.source.val_split:g}).",
        *(f"# The configuration's own values had {row.top1:.2f} %." for row in own),
        f"# Cost: {budget_text(plan, study)}.",
        "# The test set was not evaluated.",
        "# Searched:",
        *searched,
    ]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
