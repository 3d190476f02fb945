"""Files that came from a server: checked, unpacked without leaving their folder, moved in whole."""

import errno
import gzip
import hashlib
import itertools
import os
import pickle
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from edkd.errors import StorageError, UserError
from edkd.invocation import command
from edkd.paths import free_bytes

TORCH = "torch"
"""The check where no sum is published.

The file is a complete zip (torch >= 1.6), or starts with the magic number of the older format.
"""

_BLOCK = 1 << 20
"""Bytes that are read at a time: an archive may be larger than the memory."""

_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def unpack(
    archive: Path,
    folder: Path,
    files: Mapping[str, str],
    free: Callable[[Path], int] = free_bytes,
    arrange: Callable[[Path], None] | None = None,
) -> None:
    """Unpack an archive, .tar, .tar.gz, .zip or .gz, and delete it; each file appears whole.

    Everything is unpacked and checked in a temporary folder first. Existing files are kept, unless
    `files` names them and they fail their check.

    Args:
        archive: deleted at the end; where it is damaged, it is kept under another name.
        folder: the destination.
        files: the check of each file that the archive must contain.
        free: free bytes at a folder.
        arrange: moves the unpacked files below a folder before they are checked.

    Raises:
        UserError: the archive is damaged, incomplete, or has a member that is a link or a device,
            or that leads out of the folder.
        StorageError: there is no room.
    """
    try:
        with (
            _opened(archive) as (needed, extract),
            room(folder, needed, free),
            tempfile.TemporaryDirectory(prefix=_prefix(archive), dir=folder) as temporary,
        ):
            extract(temporary)
            if arrange:
                arrange(Path(temporary))
            _merge(Path(temporary), folder, files)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError, zlib.error) as error:
        kept = set_aside(archive)
        raise UserError(
            f"{archive} is not a sound archive ({error}) and was renamed to {kept.name}; download "
            f"it again with '{command('download')}'"
        ) from error
    archive.unlink()


def remove_remains(archive: Path, folder: Path) -> None:
    """Remove what processes that were killed while they unpacked an archive have left.

    No other process may unpack that archive there.
    """
    start = _prefix(archive)
    for path in folder.iterdir():
        if path.name.startswith(start):
            shutil.rmtree(path, ignore_errors=True)


def _prefix(archive: Path) -> str:
    """How the names of the temporary folders of an archive begin."""
    return f".unpacking-{archive.name}-"


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[int, Callable[[str], None]]]:
    """The size of an archive's content in bytes, and a function that unpacks it into a folder."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            needed = sum(member.file_size for member in packed.infolist())
            yield needed, packed.extractall  # it checks the sum of each file, and drops ".."

    elif archive.suffix == ".gz" and ".tar" not in archive.name:
        yield _size_in_gzip(archive), partial(_extract_gzip, archive)

    else:
        with tarfile.open(archive) as tar:
            needed = sum(member.size for member in tar)
            yield needed, partial(tar.extractall, filter=_plain_files)


def _size_in_gzip(archive: Path) -> int:
    """The size of the packed file, which the last four bytes have."""
    return int.from_bytes(archive.read_bytes()[-4:], "little")


def _extract_gzip(archive: Path, folder: str) -> None:
    """Unpack a single file, which gets the name without ".gz"."""
    target = Path(folder, archive.stem)
    try:
        with gzip.open(archive) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file)
    except gzip.BadGzipFile as error:  # an OSError, but the disk is sound
        raise ValueError(str(error)) from error


def _plain_files(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """tarfile's "data" filter without links: none of these archives needs one."""
    if member.issym() or member.islnk():
        raise tarfile.FilterError(f"{member.name!r} is a link to {member.linkname!r}")
    return tarfile.data_filter(member, folder)


def _merge(temporary: Path, folder: Path, files: Mapping[str, str]) -> None:
    """Move unpacked files into `folder`, except those that are there already."""
    missing = [file for file, check in files.items() if not is_whole(temporary / file, check)]
    if missing:
        raise tarfile.ReadError(f"missing or damaged in it: {', '.join(missing)}")

    for source in sorted(temporary.rglob("*")):
        file = source.relative_to(temporary).as_posix()
        target = folder / file
        if source.is_file() and not _is_kept(target, files.get(file)):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)


def _is_kept(target: Path, check: str | None) -> bool:
    return target.exists() if check is None else is_whole(target, check)


def is_whole(path: Path, check: str) -> bool:
    """Whether a file exists and passes its check (see `edkd.catalogue.Source`)."""
    if not path.is_file():
        return False
    if check != TORCH:
        return _sum(path, check).startswith(check)
    with path.open("rb") as file:
        return file.read(len(_LEGACY_MAGIC)) == _LEGACY_MAGIC or zipfile.is_zipfile(file)


def verify(path: Path, check: str) -> None:
    """Rename a file and raise UserError where its sum is not the published one."""
    if has_sum(path, check):
        return
    found = _sum(path, check)
    kept = set_aside(path)
    raise UserError(
        f"{path} has {found}, not the published {check}, and was renamed to {kept.name}; download "
        f"it again with '{command('download')}'"
    )


def is_archive_to_its_end(path: Path) -> bool:
    """Whether a tar file can be read up to the mark of its end, which a partial file lacks."""
    try:
        with tarfile.open(path) as tar:
            end = max((member.offset_data + member.size for member in tar), default=0)
            tar.fileobj.seek(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
            return tar.fileobj.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except (tarfile.TarError, EOFError, ValueError, OSError, zlib.error):
        return False


def has_sum(path: Path, check: str) -> bool:
    """Whether a file has the published sum; True where none is published."""
    return _sum(path, check).startswith(check)


def set_aside(path: Path) -> Path:
    """Rename a file that is of no use, but may be the user's, to a free name; returns the name."""
    for number in itertools.count(1):
        suffix = ".damaged" if number == 1 else f".damaged{number}"
        kept = path.with_name(f"{path.name.removesuffix('.part')}{suffix}")
        if not kept.exists():
            break
    os.replace(path, kept)
    return kept


def _sum(path: Path, check: str) -> str:
    """The sum of a file in the form of `check`; "" where there is nothing to compare."""
    if not check:
        return ""
    algorithm = check.split(":")[0]
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        for block in iter(partial(file.read, _BLOCK), b""):
            digest.update(block)
    return f"{algorithm}:{digest.hexdigest()}"


def megabytes(size: int) -> str:
    """A number of bytes for a message."""
    return f"{size / 1e6:.1f} MB"


@contextmanager
def room(folder: Path, needed: int = 0, free: Callable[[Path], int] = free_bytes) -> Iterator[None]:
    """Check that a folder has `needed` free bytes; an OSError in the block becomes StorageError."""
    try:
        if needed and needed > free(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except StorageError:
        raise
    except OSError as error:
        where = error.filename or folder
        need = f"; {megabytes(needed)} are needed, make room" if needed else ""
        raise StorageError(f"{where}: {error.strerror or error}{need}") from error
