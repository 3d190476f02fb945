"""Checkpoint files: written atomically and verified, read without running code."""

import errno
import hashlib
import io
import os
import time
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from edkd.engine.facts_text import from_text
from edkd.engine.foreign import AGAIN, is_safetensors, is_whole_model, other_kind
from edkd.engine.unpickling import harmless_globals, refused_global
from edkd.errors import StorageError, UserError, warn
from edkd.paths import free_bytes

LATEST = "latest"
PREVIOUS = "latest.previous"
DAMAGED = "latest.damaged"

PATIENCE = 5.0
"""Seconds in which a file that another program holds open is tried again.

On Windows and some network drives, such a file can be neither replaced nor removed; virus scanners,
viewers and backup programs hold files for a moment.
"""

_RETRY_EVERY = 0.1

_IN_USE = (errno.EACCES, errno.EPERM, errno.EBUSY, errno.ETXTBSY)

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def save_checkpoint(state: dict[str, Any], path: Path, keep: Path | None = None) -> None:
    """Write tensors and plain Python values atomically.

    The new file is read back and its checksums are compared before it replaces the old one.

    Args:
        state: what to write.
        path: afterwards either the old or the new file is there, whatever happens.
        keep: where the old file is kept.

    Raises:
        StorageError: the file could not be written; the old one is untouched.
    """
    _replace(path, lambda file: torch.save(state, file), is_intact, keep)


def save_text(text: str, path: Path, patience: float | None = None) -> None:
    """Write a text file in the same way.

    What UTF-8 does not have, as a byte of a file's name that is no text, is written as an escape.

    Args:
        patience: seconds in which a file that another program holds open is tried again; default:
            PATIENCE.
    """
    save_bytes(text.encode(errors="backslashreplace"), path, patience)


def save_bytes(content: bytes, path: Path, patience: float | None = None) -> None:
    """Write a file in the same way."""
    _replace(
        path,
        lambda file: file.write(content),
        lambda new: new.read_bytes() == content,
        patience=patience,
    )


def _replace(
    path: Path,
    write: Callable[[BinaryIO], Any],
    is_whole: Callable[[Path], bool],
    keep: Path | None = None,
    patience: float | None = None,
) -> None:
    """Write a file beside `path`, verify it, and rename it."""
    partial = path.with_name(f".{path.name}.partial")
    is_moved = False
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if not is_whole(partial):
            raise OSError("the file that was read back differs from the one that was written")

        if keep and path.exists():
            _rename(path, keep, patience)  # a crash here leaves no `path`, but `keep`
            is_moved = True
        _rename(partial, path, patience)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):  # a disk that became read-only refuses this too
            partial.unlink(missing_ok=True)
        if keep and is_moved:
            with suppress(OSError):
                os.replace(keep, path)
        _raise_storage_error(path, write, error)

    with suppress(OSError):  # some file systems do not support it
        _sync_folder(path.parent)


def _rename(source: Path, target: Path, patience: float | None) -> None:
    """Rename a file; where one of both is in use, try again for some seconds."""
    deadline = time.monotonic() + (PATIENCE if patience is None else patience)
    while True:
        try:
            os.replace(source, target)
            return
        except OSError as error:
            if error.errno not in _IN_USE or time.monotonic() > deadline:
                raise
        time.sleep(_RETRY_EVERY)


def _raise_storage_error(
    path: Path, write: Callable[[BinaryIO], Any], error: OSError | RuntimeError
) -> None:
    """Raise StorageError with the cause of a failed write; another error is raised as it is."""
    # torch's writer raises a RuntimeError; its context is the system's error.
    cause = error if isinstance(error, OSError) else error.__context__
    if not isinstance(cause, OSError):
        raise error

    detail = ""
    if cause.errno in _DISK_FULL:
        detail = f"; it takes {_size(write) / 1e6:.1f} MB"
    if cause.errno in _IN_USE and path.exists():
        detail = "; close the program that has it open, or allow writing to its folder"
    reason = cause.strerror or cause
    raise StorageError(f"cannot write {path}: {reason}{detail}; the old file is kept") from error


def _size(write: Callable[[BinaryIO], Any]) -> int:
    content = io.BytesIO()
    write(content)
    return content.tell()


def _sync_folder(folder: Path) -> None:
    """Make a renaming survive a power loss."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_intact(path: Path) -> bool:
    """Whether all parts of an archive match their checksums, which torch.load does not check."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


def check_room(folder: Path, size: int) -> None:
    """Raise StorageError where the disk has no room for the checkpoints of a run.

    Args:
        folder: of the run; its present files count as room.
        size: bytes that the run takes at most.
    """
    held = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    free = free_bytes(folder)
    if held + free < size:
        raise StorageError(
            f"{folder}: the run's checkpoints take up to {size / 1e6:.1f} MB, and "
            f"{free / 1e6:.1f} MB are free; make room, set LOG.PREFIX to another disk, "
            "or set LOG.KEEP"
        )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file of tensors and plain values onto the CPU.

    Numbers of NumPy become Python's. Its arrays, and settings and paths of the training script, may
    be there too. A file of safetensors is read where that package is installed.

    Raises:
        UserError: the file is absent, damaged, or has other content; the message says which.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")

    try:
        other = other_kind(path)
        has_safetensors = is_safetensors(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if has_safetensors:
        return _load_safetensors(path)
    if other:
        raise UserError(f"{path} {other}")

    try:
        with harmless_globals(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error below says more
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can raise almost any exception
        raise UserError(f"{path} {_reason(path, error)}") from None

    if not isinstance(state, dict):
        kind = type(state).__name__
        raise UserError(
            f"{path} holds {kind}, not a dictionary of tensors; save a state dict with torch.save"
        )
    return state


def _reason(path: Path, error: Exception) -> str:
    """Why torch.load refused a file, and what to do."""
    name = refused_global(error)
    if name and is_whole_model(path):
        return (
            f"is not a checkpoint of tensors but a whole pickled model of the class {name}, and "
            "loading that could run code; load it where the class is defined, and save "
            "model.state_dict()"
        )
    if name:
        return (
            f"is not a checkpoint of tensors alone: it refers to {name}, and loading that could "
            "run code; save the state dict without it"
        )

    kind = type(error).__name__
    return f"is damaged, or not a file that torch.save wrote ({kind}); {AGAIN}"


def _load_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import safe_open
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(
            f"{path} needs the package safetensors: pip install 'edkd[models]'"
        ) from None

    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:  # damaged bytes
        kind = type(error).__name__
        raise UserError(f"{path} is damaged ({kind}); {AGAIN}") from None

    # The facts about a student, where `edkd export` wrote the file.
    facts = from_text(metadata) if "edkd" in metadata else {}
    return {"model": tensors} | facts if facts else tensors


def load_latest(folder: Path) -> dict[str, Any] | None:
    """The last checkpoint of a run; where it is damaged or missing, the one before it.

    Returns:
        None where the run has no checkpoint yet.

    Raises:
        UserError: neither file can be read.
    """
    latest = folder / LATEST
    previous = folder / PREVIOUS
    if not latest.exists() and not previous.exists():
        if (folder / "best").exists():
            raise UserError(
                f"--resume: {latest} is missing; copy 'best' or a numbered checkpoint of that "
                "folder to it"
            )
        return None

    try:
        return load_checkpoint(latest)
    except UserError as error:
        if not previous.exists():
            raise
        state = load_checkpoint(previous)
        if latest.exists():  # otherwise the next save would keep it instead of the good one
            os.replace(latest, folder / DAMAGED)
        warn(f"{error}; resuming from {PREVIOUS}, the checkpoint before it")
        return state


def fingerprint(model: nn.Module) -> str:
    """A SHA-256 of a model's weights and statistics, with their names and types.

    A module around a network that prepares its images says so in the attribute `prepares`.
    """
    digest = hashlib.sha256()
    prepares = getattr(model, "prepares", "")
    if isinstance(prepares, str):
        digest.update(prepares.encode())
    for key, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):  # a module's extra state
            digest.update(f"{key} {tensor!r}".encode())
            continue
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(content.data)
    return digest.hexdigest()
