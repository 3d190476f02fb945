"""The folder of a run: where it is, who may use it, and how a resumed run finds it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from edkd.engine.abandoned import clear_abandoned, is_abandoned
from edkd.engine.config.compare import changed_keys, differences, saved_config
from edkd.engine.config.tags import is_same_tag
from edkd.engine.run_name import old_names, portable, run_name
from edkd.errors import StorageError, UserError
from edkd.folder_lock import is_in_use
from edkd.hints import hint

CONFIG = "config.yaml"


def run_folder(cfg: CfgNode, opts: Sequence[str] = ()) -> Path:
    """<LOG.PREFIX>/<PROJECT>/<name>; see `run_name` for the name.

    Raises:
        UserError: the name leads out of LOG.PREFIX, or is too long for a file system.
    """
    prefix = Path(cfg.LOG.PREFIX).expanduser()
    name = run_name(cfg, opts)
    project = prefix / portable(cfg.EXPERIMENT.PROJECT)
    folder = project / name

    for key, word in (("EXPERIMENT.PROJECT", cfg.EXPERIMENT.PROJECT), ("EXPERIMENT.NAME", name)):
        if len(word.encode()) > 200:
            raise UserError(
                f"the name of the run is too long ({word[:40]!r}...); give it a shorter {key}"
            )

    is_in_project = project.resolve() in folder.resolve().parents
    if not is_in_project or not project.resolve().is_relative_to(prefix.resolve()):
        raise UserError(
            f"EXPERIMENT.PROJECT and NAME lead to {folder}, which is not inside LOG.PREFIX {prefix}"
        )
    return folder


def refuse_used(folder: Path, cfg: CfgNode | None = None) -> None:
    """Raise UserError where a new run must not write because the folder is in use.

    Args:
        folder: of the new run.
        cfg: its configuration; the message then says how that of the folder differs.
    """
    if (folder / CONFIG).is_file():
        is_used = is_in_use(folder) if is_abandoned(folder) else None
        if is_used:
            raise UserError(f"{folder} is in use by another process; wait for it, or stop it")
        if is_used is False:
            return
        raise UserError(f"{folder} already holds a run{_way_out(folder / CONFIG, cfg)}")
    if not folder.exists():
        _refuse_obstacle(folder)
        return

    if not folder.is_dir():
        raise UserError(f"{folder} is a file; remove it, or give this run another EXPERIMENT.NAME")
    if not all(file.name.startswith(".") for file in folder.iterdir()):
        raise UserError(f"{folder} is not empty; give this run another EXPERIMENT.NAME")


def _refuse_obstacle(folder: Path) -> None:
    """Raise UserError where no folder can be made because of a file or a link above it."""
    for path in (folder, *folder.parents):
        if path.is_dir():
            return
        if path.is_symlink():
            raise UserError(
                f"{path} is a link to {os.readlink(path)}, which does not exist; create that "
                "folder, or set LOG.PREFIX to another"
            )
        if path.exists():
            raise UserError(f"{path} is a file, not a folder; set LOG.PREFIX to another folder")


def _way_out(config: Path, cfg: CfgNode | None) -> str:
    saved = saved_values(config)
    if cfg is None or saved is None:
        return "; continue it with --resume, or give this run another EXPERIMENT.NAME"

    changes = changed_keys(saved, cfg)
    if changes:
        return (
            f" with another configuration ({'; '.join(changes)}); give this run another "
            "EXPERIMENT.NAME"
        )
    epochs = differences(saved, cfg).get("SOLVER.EPOCHS", "")
    about = f" ({epochs})" if epochs else ""
    return f"{about}; continue it with --resume, or give this run another EXPERIMENT.NAME"


def claim(folder: Path) -> None:
    """Create the folder of a new run. Of two runs started together, one is refused (UserError)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).touch(exist_ok=False)
    except FileExistsError:
        refuse_used(folder)
    except OSError as error:
        raise StorageError(
            f"cannot create the folder {folder}: {error.strerror}; set LOG.PREFIX to another"
        ) from None


def take_over(folder: Path) -> list[str]:
    """Clear a claimed and locked folder; return lines for the log.

    Raises:
        UserError: another process has used the folder since it was claimed.
    """
    if not is_abandoned(folder):
        refuse_used(folder)
    line = clear_abandoned(folder)
    return [line] if line else []


def find_run(cfg: CfgNode, folder: Path, opts: Sequence[str] = ()) -> Path:
    """The folder of the run to resume.

    Where `folder` is not a run, this is the one run beside it with the same NAME and TAG that
    differs only in keys that may change on resume, as SOLVER.EPOCHS. Earlier versions gave such
    runs other names.

    Raises:
        UserError: there is none, or its configuration differs in other keys.
    """
    old = _run_of_old_name(cfg, folder, opts)
    if old:
        folder = old
    elif not (folder / CONFIG).is_file():
        folder = _run_beside(cfg, folder, opts)

    config = folder / CONFIG
    has_checkpoint = any(folder.glob("*latest*"))
    if not config.stat().st_size and not has_checkpoint:  # it died right after `claim`
        return folder

    saved = saved_values(config)
    if saved is None:
        raise UserError(
            f"--resume: {config} cannot be read; restore it, or start a run with another "
            "EXPERIMENT.NAME"
        )
    changes = changed_keys(saved, cfg)
    if changes:
        raise UserError(
            f"--resume: {folder} was run with another configuration: {'; '.join(changes)}; give "
            "the same values, or start a run with another EXPERIMENT.NAME"
        )
    return folder


def _run_of_old_name(cfg: CfgNode, folder: Path, opts: Sequence[str]) -> Path | None:
    """The run to which an earlier version gave a name for these words of the command line."""
    name = cfg.EXPERIMENT.NAME or cfg.EXPERIMENT.TAG
    for project in _projects(cfg):
        for old in old_names(name, opts):
            run = project / old
            if run != folder and os.path.isfile(run / CONFIG):  # Path refuses long names
                return run
    return None


def _run_beside(cfg: CfgNode, folder: Path, opts: Sequence[str]) -> Path:
    """The run that is meant, among those beside a folder that is none."""
    runs = dict(_runs_of_name(cfg, folder))
    changes = {run: changed_keys(saved, cfg) for run, saved in runs.items()}
    alike = [run for run in runs if not changes[run]]

    named = [run for run in alike if run.name in _old_names(runs[run], opts)]
    if len(named) == 1:
        return named[0]
    if len(alike) == 1:
        return alike[0]

    found = ""
    if alike:
        names = ", ".join(map(str, alike))
        found = f"; runs of this configuration: {names}; name one with EXPERIMENT.NAME"
    elif runs:
        nearest = min(runs, key=lambda run: len(changes[run]))
        found = (
            f"; {nearest} was run with another configuration: {'; '.join(changes[nearest])}; give "
            "the same values to continue it"
        )
    else:
        siblings = [config.parent.name for config in folder.parent.glob(f"*/{CONFIG}")]
        found = hint(folder.name, siblings)
    raise UserError(f"--resume: no run at {folder}{found}; leave --resume out to start one")


def _runs_of_name(cfg: CfgNode, folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The runs of this NAME and TAG beside a folder, with their configurations."""
    for parent in dict.fromkeys([folder.parent, *_projects(cfg)]):
        for config in sorted(parent.glob(f"*/{CONFIG}")):
            saved = saved_values(config)
            if saved is not None and _has_name(saved, cfg):
                yield config.parent, saved


def _projects(cfg: CfgNode) -> list[Path]:
    """The folder of the project, under its name and under that of earlier versions."""
    prefix = Path(cfg.LOG.PREFIX).expanduser()
    name = cfg.EXPERIMENT.PROJECT
    return [prefix / portable(name), prefix / name]


def _has_name(saved: dict[str, Any], cfg: CfgNode) -> bool:
    """Whether a saved configuration has the NAME and the TAG of this one."""
    experiment = cfg.EXPERIMENT
    is_same = saved.get("EXPERIMENT.NAME", "") == experiment.NAME
    return is_same and is_same_tag(str(saved.get("EXPERIMENT.TAG", "")), experiment.TAG)


def _old_names(saved: dict[str, Any], opts: Sequence[str]) -> list[str]:
    name = saved.get("EXPERIMENT.NAME") or saved.get("EXPERIMENT.TAG")
    return list(old_names(str(name), opts))


def saved_values(config: Path) -> dict[str, Any] | None:
    """The values of a saved configuration; None where it cannot be read."""
    try:
        return saved_config(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
