"""The folder of a run: its name, whether it is free, and what is found there to go on with."""

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from yacs.config import CfgNode

from edkd.engine.load_cfg import FREE_OF_A_NAME, FREE_ON_RESUME, changed_keys, saved_config
from edkd.errors import StorageError, UserError, warn

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder are not noticed
    fcntl = None  # type: ignore[assignment]

_UNSAFE = re.compile(r"[^\w.,:+\-\[\]]+")
_PLACES = ("EXPERIMENT.", "LOG.", "DATASET.ROOT", "DISTILLER.TEACHER_CKPT", "TEACHER_MEMO.FOLDER")


def run_folder(cfg: CfgNode, opts: Sequence[str] = ()) -> Path:
    """<LOG.PREFIX>/<PROJECT>/<NAME or TAG>[,KEY:VALUE...].

    Pairs of the command line that say where something lies are left out; a NAME among them is the whole name.

    Raises:
        UserError: the name leads out of LOG.PREFIX, or is no name for a file system.
    """
    pairs = dict(zip(opts[::2], opts[1::2], strict=True))
    name = cfg.EXPERIMENT.NAME or cfg.EXPERIMENT.TAG
    if "EXPERIMENT.NAME" not in pairs:
        shown = {key: value for key, value in pairs.items() if not key.startswith(_PLACES)}
        name = ",".join([name, *(f"{key}:{_UNSAFE.sub('_', value)}" for key, value in shown.items())])
    prefix = Path(cfg.LOG.PREFIX).expanduser()
    project = prefix / cfg.EXPERIMENT.PROJECT
    for key, word in (("EXPERIMENT.PROJECT", cfg.EXPERIMENT.PROJECT), ("EXPERIMENT.NAME", name)):
        if len(word.encode()) > 200:
            raise UserError(f"the name of the run is too long ({word[:40]!r}...); give it a shorter {key}")
    folder = project / name
    if project.resolve() not in folder.resolve().parents or not project.resolve().is_relative_to(prefix.resolve()):
        raise UserError(f"EXPERIMENT.PROJECT and NAME lead to {folder}, which is not inside LOG.PREFIX {prefix}")
    return folder


def refuse_used(folder: Path) -> None:
    """Raise UserError where a new run must not write, because something is there."""
    if (folder / "config.yaml").is_file():
        way_out = "go on with it by --resume, or give this one another EXPERIMENT.NAME"
        raise UserError(f"{folder} already holds a run; {way_out}")
    if folder.exists() and (not folder.is_dir() or any(not file.name.startswith(".") for file in folder.iterdir())):
        raise UserError(f"{folder} is not empty; give this run another EXPERIMENT.NAME")


def claim(folder: Path) -> None:
    """Make the folder of a new run. Of two that are started at once, one is refused (UserError)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").touch(exist_ok=False)
    except FileExistsError:
        refuse_used(folder)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror}; set LOG.PREFIX to another") from None


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the folder of a run. Raises UserError where another process has it.

    The system takes the lock back when the process ends, however it ends; a child process does not inherit it.
    """
    try:
        file = open(folder / ".lock", "w")  # noqa: SIM115  closed, and so unlocked, below
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}") from None
    with file:
        if fcntl:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise UserError(f"{folder} is in use by another process; wait for it, or stop it") from None
                warn(f"{folder} cannot be locked ({error.strerror}): a second process in it is not noticed")
        yield


def find_run(cfg: CfgNode, folder: Path) -> Path:
    """The folder of the run to go on with.

    Where `folder` is no run, it is the one run beside it of the same NAME and TAG that differs only in what may
    change, as in EPOCHS.

    Raises:
        UserError: there is none, or it was run with another configuration.
    """
    if not (folder / "config.yaml").is_file():
        alike = [file.parent for file in folder.parent.glob("*/config.yaml") if not _changes(file, cfg, FREE_OF_A_NAME)]
        if len(alike) != 1:
            found = f"; runs of this configuration: {', '.join(map(str, alike))}" if alike else ""
            raise UserError(f"--resume: no run at {folder}{found}; leave --resume out to begin one")
        folder = alike[0]
    config = folder / "config.yaml"
    if not config.stat().st_size and not any(folder.glob("*latest*")):  # it died between `claim` and its first file
        return folder
    if changes := _changes(config, cfg, FREE_ON_RESUME):
        way_out = "give the same, or begin a run of another EXPERIMENT.NAME"
        raise UserError(f"--resume: {folder} was run with another configuration: {'; '.join(changes)}; {way_out}")
    return folder


def _changes(file: Path, cfg: CfgNode, free: tuple[str, ...]) -> list[str]:
    try:
        return changed_keys(saved_config(file.read_text(encoding="utf-8")), cfg, free)
    except (OSError, ValueError) as error:
        return [f"{file} cannot be read ({type(error).__name__})"]
