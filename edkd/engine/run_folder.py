"""The folder of a run: its name, its lock, and how a resumed run finds it."""

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from yacs.config import CfgNode

from edkd.engine.abandoned import HELD, clear_abandoned, is_abandoned, is_in_use
from edkd.engine.config.compare import changed_keys, saved_config
from edkd.engine.config.load import pairs
from edkd.engine.config.table import table
from edkd.errors import StorageError, UserError, warn

try:
    import fcntl
except ImportError:  # Windows: a second process in the folder is not detected
    fcntl = None  # type: ignore[assignment]

CONFIG = "config.yaml"

_UNSAFE = re.compile(r"[^\w.,+\-\[\]]+")


def run_folder(cfg: CfgNode, opts: Sequence[str] = ()) -> Path:
    """<LOG.PREFIX>/<PROJECT>/<NAME or TAG>[,KEY=VALUE...].

    The pairs are those of the command line whose keys name a run. An EXPERIMENT.NAME on the command
    line is the whole name.

    Raises:
        UserError: the name leads out of LOG.PREFIX, or is too long for a file system.
    """
    prefix = Path(cfg.LOG.PREFIX).expanduser()
    project = prefix / cfg.EXPERIMENT.PROJECT
    name = _run_name(cfg, opts)
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


def _run_name(cfg: CfgNode, opts: Sequence[str]) -> str:
    given = dict(pairs(opts))
    name = cfg.EXPERIMENT.NAME or cfg.EXPERIMENT.TAG
    if "EXPERIMENT.NAME" in given:
        return name

    keys = table()
    naming = [key for key in given if key not in keys or keys[key].names_run]
    return ",".join([name, *(f"{key}={_UNSAFE.sub('_', given[key])}" for key in naming)])


def refuse_used(folder: Path) -> None:
    """Raise UserError where a new run must not write because the folder is in use.

    A run that ended before its first checkpoint does not count, see `is_abandoned`.
    """
    if (folder / CONFIG).is_file():
        is_used = is_in_use(folder) if is_abandoned(folder) else None
        if is_used:
            raise UserError(f"{folder} is in use by another process; wait for it, or stop it")
        if is_used is False:
            return
        raise UserError(
            f"{folder} already holds a run; continue it with --resume, or give this run another "
            "EXPERIMENT.NAME"
        )
    if not folder.exists():
        return

    is_empty = folder.is_dir() and all(file.name.startswith(".") for file in folder.iterdir())
    if not is_empty:
        raise UserError(f"{folder} is not empty; give this run another EXPERIMENT.NAME")


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


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock the folder of a run. Raises UserError where another process has locked it.

    The system releases the lock when the process ends, however it ends; child processes do not
    inherit it.
    """
    if folder.resolve() in HELD:  # to open and close the file would end that lock
        raise UserError(f"{folder} is in use by this process; wait for that run")
    try:
        file = open(folder / ".lock", "w")  # noqa: SIM115  closed, and so unlocked, below
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}") from None

    with file:
        if fcntl:
            _lock_file(file, folder)
        HELD.add(folder.resolve())
        try:
            yield
        finally:
            HELD.discard(folder.resolve())


def _lock_file(file: TextIO, folder: Path) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f"{folder} is in use by another process; wait for it, or stop it"
            ) from None
        warn(
            f"{folder} cannot be locked ({error.strerror}): a second process in it would not be "
            "detected"
        )


def find_run(cfg: CfgNode, folder: Path) -> Path:
    """The folder of the run to resume.

    Where `folder` is not a run, this is the one run beside it with the same NAME and TAG that
    differs only in keys that may change on resume, as SOLVER.EPOCHS.

    Raises:
        UserError: there is none, or its configuration differs in other keys.
    """
    if not (folder / CONFIG).is_file():
        folder = _run_beside(cfg, folder)

    config = folder / CONFIG
    has_checkpoint = any(folder.glob("*latest*"))
    if not config.stat().st_size and not has_checkpoint:  # it died right after `claim`
        return folder

    changes = _changes(config, cfg)
    if changes:
        raise UserError(
            f"--resume: {folder} was run with another configuration: {'; '.join(changes)}; give "
            "the same values, or start a run with another EXPERIMENT.NAME"
        )
    return folder


def _run_beside(cfg: CfgNode, folder: Path) -> Path:
    configs = sorted(folder.parent.glob(f"*/{CONFIG}"))
    alike = [file.parent for file in configs if not _changes(file, cfg, keep_names=True)]
    if len(alike) == 1:
        return alike[0]

    found = ""
    if alike:
        found = f"; runs of this configuration: {', '.join(map(str, alike))}"
    raise UserError(f"--resume: no run at {folder}{found}; leave --resume out to start one")


def _changes(file: Path, cfg: CfgNode, keep_names: bool = False) -> list[str]:
    """Differences to a saved configuration; with `keep_names`, also in EXPERIMENT.*."""
    try:
        saved = saved_config(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [f"{file} cannot be read ({type(error).__name__})"]
    return changed_keys(saved, cfg, only_names=keep_names)
