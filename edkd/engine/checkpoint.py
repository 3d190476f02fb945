"""Files of weights: written atomically, read without running code."""

import argparse
import errno
import hashlib
import io
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from edkd.errors import StorageError, UserError, warn

PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32)
LATEST, PREVIOUS, DAMAGED = "latest", "latest.previous", "latest.damaged"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def save_checkpoint(state: dict[str, Any], path: Path, keep: Path | None = None) -> None:
    """Write tensors and plain Python values; `path` holds either the old or the new content, whatever happens.

    What was written is read back and its checksums are compared before it takes its place.

    Args:
        keep: where the old content stays.

    Raises:
        StorageError: the file could not be written; what was there is untouched.
    """

    _replace(path, lambda file: torch.save(state, file), is_intact, keep)


def save_text(text: str, path: Path) -> None:
    """Write a text file in the same way."""
    content = text.encode()
    _replace(path, lambda file: file.write(content), lambda partial: partial.read_bytes() == content)


def _replace(
    path: Path, write: Callable[[BinaryIO], Any], is_whole: Callable[[Path], bool], keep: Path | None = None
) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if not is_whole(partial):
            raise OSError("what was read back is not what was written")
        if keep and path.exists():
            os.replace(path, keep)  # a crash here leaves no `path`, but `keep`
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):  # a disk that can no longer be written refuses this too
            partial.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__  # below a complaint of torch's writer
        if not isinstance(cause, OSError):
            raise
        room = f"; it takes {_size(write) / 1e6:.1f} MB" if cause.errno in FULL else ""
        raise StorageError(
            f"cannot write {path}: {cause.strerror or cause}{room}; the file as it was is kept"
        ) from error
    with suppress(OSError):  # not every file system can
        _sync_folder(path.parent)


def _size(write: Callable[[BinaryIO], Any]) -> int:
    content = io.BytesIO()
    write(content)
    return content.tell()


def _sync_folder(folder: Path) -> None:
    """Make a renaming last."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_intact(path: Path) -> bool:
    """Whether all parts of an archive agree with their checksums, which torch.load does not compare."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


def check_room(folder: Path, size: int) -> None:
    """Raise StorageError where the disk has no room for a folder of `size` bytes, what it holds already included."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    held = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    free = shutil.disk_usage(there).free
    if held + free < size:
        raise StorageError(
            f"{folder}: the run's checkpoints take up to {size / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free; make "
            "room, set LOG.PREFIX to another disk, or set LOG.KEEP"
        )


def remove_numbered(folder: Path, keep: int) -> None:
    """Remove the numbered checkpoints of a run but for the newest `keep`."""
    numbers = sorted(int(path.name[6:]) for path in folder.glob("epoch_*") if path.name[6:].isdigit())
    for number in numbers[:-keep]:
        for path in (folder / f"epoch_{number}", *folder.glob(f"student*_{number}")):
            path.unlink(missing_ok=True)


def load_latest(folder: Path) -> dict[str, Any] | None:
    """`latest` of a run; where it is damaged or gone, the one before it, and a line says so; None: there is none yet.

    Raises:
        UserError: neither can be read.
    """
    latest, previous = folder / LATEST, folder / PREVIOUS
    if not latest.exists() and not previous.exists():
        if (folder / "best").exists():
            raise UserError(
                f"--resume: {latest} is gone; copy 'best' or a numbered checkpoint of that folder to its place"
            )
        return None
    try:
        return load_checkpoint(latest)
    except UserError as error:
        if not previous.exists():
            raise
        state = load_checkpoint(previous)
        if latest.exists():  # else the next save would keep it in place of the good one
            os.replace(latest, folder / DAMAGED)
        warn(f"{error}; going on from {PREVIOUS}, the checkpoint before it")
        return state


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file of tensors and plain values onto the CPU.

    Raises:
        UserError: it is absent, damaged, or holds anything else.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        if zipfile.is_zipfile(path) and not is_intact(path):
            raise zipfile.BadZipFile("wrong checksum")
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():  # of older files
            warnings.simplefilter("ignore")  # the one error that follows says more
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # there is hardly one that damaged bytes cannot raise
        raise UserError(
            f"{path} is damaged, or no checkpoint of tensors ({type(error).__name__}); replace it"
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"{path} holds {type(state).__name__}, not a dictionary of tensors; replace it")
    return state


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a published, a student's or a whole run's checkpoint into a model whose keys and shapes it must match.

    Files from before 2018 lack the batch norms' counters of batches, which count for nothing here.

    Raises:
        UserError: see `load_checkpoint`; or the weights belong to another architecture or number of classes.
    """
    checkpoint = load_checkpoint(path)
    weights = _model_weights(checkpoint.get("model", checkpoint))
    wanted = model.state_dict()
    if weights and all(re.match(r"\d+\.", key) for key in weights):
        raise UserError(f"{path} holds several students; name one's file beside it, as student1_best or student_best")
    weights = {key: tensor for key, tensor in wanted.items() if key.endswith("num_batches_tracked")} | weights
    if misfits := sorted(wanted.keys() ^ weights.keys()):
        lacks = "lacks" if misfits[0] in wanted else "has"
        raise UserError(
            f"{path} is of another architecture: it {lacks} {misfits[0]} (and {len(misfits) - 1} more keys differ); "
            "name the model that it was trained with"
        )
    for key, tensor in wanted.items():
        if tensor.shape != weights[key].shape:
            raise UserError(
                f"{path} is of another architecture or number of classes: {key} is {tuple(weights[key].shape)} there "
                f"but {tuple(tensor.shape)} here; name the model and the data set that it was trained with"
            )
        if not _is_plain(weights[key]) or weights[key].is_floating_point() != tensor.is_floating_point():
            raise UserError(f"{path}: {key} is no plain tensor of numbers like {tensor.dtype}; replace the file")
    model.load_state_dict(weights)


def fingerprint(model: nn.Module) -> str:
    """A SHA-256 of a model's weights and statistics, their names and types."""
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta and tensor.dtype in PLAIN


def _model_weights(entries: Any) -> dict[str, Tensor]:
    """The model's own tensors; in a whole run's checkpoint they are the student's."""
    entries = entries if isinstance(entries, dict) else {}
    weights = {str(key).removeprefix("module."): value for key, value in entries.items() if isinstance(value, Tensor)}
    student = {key.removeprefix("student."): weights[key] for key in weights if key.startswith("student.")}
    return student or weights
