"""The runs of a sweep: each with its configuration, checked before the first one starts."""

import hashlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import NamedTuple

from yacs.config import CfgNode

from edkd.distillers import find_method
from edkd.engine.config.compare import unused_groups
from edkd.engine.config.load import load_config
from edkd.engine.config.plugins import import_plugins
from edkd.engine.config.scalars import as_list
from edkd.engine.run_folder import CONFIG, find_run, refuse_used, run_folder
from edkd.errors import UserError
from edkd.sweep.file import Resources, SweepFile, read_sweep
from edkd.sweep.options import SEED, SEED_IN_TEXT, Options, seeded, words_of

NAME = "EXPERIMENT.NAME"


class Planned(NamedTuple):
    """A run of a sweep."""

    number: int
    """From 1."""
    config: str
    """The YAML file."""
    options: Options
    """What the sweep changes of it."""
    folder: Path
    cfg: CfgNode
    needs: tuple[int, ...]
    """Numbers of earlier runs whose weights it loads."""

    @property
    def words(self) -> list[str]:
        """The options as on a command line."""
        return words_of(self.options)


class Sweep(NamedTuple):
    """What is to be done."""

    file: Path
    plugins: list[str]
    runs: list[Planned]
    retries: int
    """Further attempts of a run that failed."""
    resources: Resources

    @property
    def folder(self) -> Path:
        """For the results and the outputs of all runs; another one for each path of a file."""
        prefix = Path(self.runs[0].cfg.LOG.PREFIX).expanduser()
        path = os.fsencode(self.file.resolve())
        return prefix / "sweeps" / f"{self.file.stem}-{hashlib.sha256(path).hexdigest()[:6]}"


def plan(file: str) -> Sweep:
    """Read the file of a sweep, and load and check the configuration of each run.

    A key of a method, or of another part, that a configuration does not use is left out there; of
    the runs that are then equal, one remains.

    Raises:
        UserError: the file or a configuration is wrong, two runs would share a folder, or a folder
            holds something else; nothing was written.
    """
    source = read_sweep(file)
    import_plugins(source.plugins)

    # Load each configuration with its options, once.
    found: dict[tuple[str, str], tuple[str, Options, CfgNode]] = {}
    for config, options in _combinations(source):
        used, cfg = _loaded(source.path, config, options)
        found.setdefault((config, repr(sorted(used.items()))), (config, used, cfg))
    _refuse_unused(source, [used for _, used, _ in found.values()])

    # Find each folder.
    runs: list[Planned] = []
    for number, (config, used, cfg) in enumerate(found.values(), 1):
        folder = _checked_folder(source.path, config, used, cfg)
        runs.append(Planned(number, config, used, folder, cfg, _needs(cfg, runs)))
    _refuse_untested(source.path, runs)
    _refuse_shared(source.path, runs)
    return Sweep(source.path, source.plugins, runs, source.retries, source.resources)


def _combinations(source: SweepFile) -> Iterator[tuple[str, Options]]:
    """The runs in their order: all of the first seed, then all of the next one."""
    seeds: Sequence[int | None] = source.seeds or [None]
    for seed in seeds:
        for config in source.configs:
            for variant in source.variants:
                _refuse_twice(source, variant)
                options = {**source.fixed, **variant}
                yield config, seeded(source.path, options, seed)


def _loaded(path: Path, config: str, options: Options) -> tuple[Options, CfgNode]:
    """The options that a configuration uses, and the configuration with them."""
    try:
        with redirect_stderr(io.StringIO()) as warnings:
            cfg = load_config(config, words_of(options))
        unused = unused_groups(cfg)
        used = {key: text for key, text in options.items() if not key.startswith(unused)}
        if used != options:  # whose warning has told of the keys that are left out here
            return used, load_config(config, words_of(used))
        sys.stderr.write(warnings.getvalue())
        return used, cfg
    except UserError as error:
        raise UserError(f"{_place(path, config, options)}: {error}") from None


def _place(path: Path, config: str, options: Options) -> str:
    """Which run a message is about."""
    return " ".join([f"{path}: {config}", *words_of(options)])


def _checked_folder(path: Path, config: str, options: Options, cfg: CfgNode) -> Path:
    """The folder of a run, which is new, or holds this run."""
    words = words_of(options)
    try:
        folder = run_folder(cfg, words)
        if (folder / CONFIG).is_file():
            return find_run(cfg, folder, words)  # an earlier version may have named it otherwise
        refuse_used(folder)
    except UserError as error:
        raise UserError(f"{_place(path, config, options)}: {error}") from None
    return folder


def _needs(cfg: CfgNode, before: Sequence[Planned]) -> tuple[int, ...]:
    """The earlier runs in whose folders the weights are that a run loads."""
    names = as_list(cfg.DISTILLER.STUDENT_CKPT)
    if find_method(cfg.DISTILLER.TYPE).needs_teacher:
        names += as_list(cfg.DISTILLER.TEACHER_CKPT)

    folders = {Path(name).absolute().parent for name in names if name}
    return tuple(run.number for run in before if run.folder.absolute() in folders)


# What is refused.


def _refuse_twice(source: SweepFile, variant: Options) -> None:
    """A key has one place: its values would contradict one another."""
    twice = [key for key in variant if key in source.fixed]
    if twice:
        raise UserError(f"{source.path}: {twice[0]} is in set and in overrides; remove one of them")
    if source.seeds and SEED in {**source.fixed, **variant}:
        raise UserError(f"{source.path}: {SEED} is given beside seeds; remove one of them")


def _refuse_unused(source: SweepFile, used: Sequence[Options]) -> None:
    """A key that no configuration uses."""
    given = [*source.fixed, *(key for variant in source.variants for key in variant)]
    for key in given:
        if not any(key in options for options in used):
            raise UserError(
                f"{source.path}: {key} changes nothing: no run of this sweep uses it; remove it"
            )


def _refuse_untested(path: Path, runs: Sequence[Planned]) -> None:
    """Runs without test figures: the table of a sweep has nothing else."""
    for run in runs:
        if not run.cfg.DATASET.TEST.EVALUATE:
            raise UserError(
                f"{_place(path, run.config, run.options)}: DATASET.TEST.EVALUATE is False, but the "
                "table of a sweep has figures of the test set; remove it, or search with edkd tune"
            )


def _refuse_shared(path: Path, runs: Sequence[Planned]) -> None:
    """Two runs in one folder, whose names have nothing in which they differ."""
    seen: dict[Path, Planned] = {}
    for run in runs:
        other = seen.setdefault(run.folder.resolve(), run)
        if other is run:
            continue

        keys = [key for key in run.options if run.options[key] != other.options.get(key)]
        differs = ", ".join(keys) if other.config == run.config else f"{other.config}, {run.config}"
        raise UserError(
            f"{path}: runs {other.number} and {run.number} would share the folder {run.folder}, "
            f"whose name does not tell {differs} apart; {_way_to_names(run, other, keys)}"
        )


def _way_to_names(run: Planned, other: Planned, keys: Sequence[str]) -> str:
    """How two runs get different names.

    Args:
        run: one of them.
        other: the other one.
        keys: the options in which they differ.
    """
    if NAME not in run.options:
        kind = "NAME" if run.cfg.EXPERIMENT.NAME else "TAG"
        return f"give them different EXPERIMENT.{kind}s"

    if run.config == other.config and keys == [SEED]:
        example = f"{run.options[NAME]},{SEED_IN_TEXT}"
        return f"write {SEED_IN_TEXT} into {NAME}, as {example}"
    return f"remove {NAME}, which is the whole name, or give each run its own"
