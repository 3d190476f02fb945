"""Downloads of data sets and published teachers: resumed, verified, and moved into place whole."""

import http.client
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from edkd.archive import (
    has_sum,
    is_archive_to_its_end,
    is_whole,
    megabytes,
    remove_remains,
    room,
    set_aside,
    unpack,
    verify,
)
from edkd.catalogue import CATALOGUE, Source
from edkd.errors import UserError
from edkd.folder_lock import lock
from edkd.invocation import command
from edkd.paths import free_bytes
from edkd.streams import Guard

_CHUNK = 1 << 16
"""Bytes that are read and written at a time."""


class Options(NamedTuple):
    """When a transfer is repeated or given up."""

    retries: int = 4
    """Attempts after the first."""
    pause: float = 1.0
    """Seconds before the first retry, doubled for each further one."""
    timeout: float = 30.0
    """Seconds without data after which a connection counts as broken."""
    free: Callable[[Path], int] = free_bytes
    """Free bytes at a folder."""


DEFAULT = Options()


class _NetworkError(Exception):
    """A failed transfer; not an OSError, so that errors of the disk stay apart.

    Args:
        reason: for the message.
        may_pass: whether another attempt can succeed.
    """

    def __init__(self, reason: object, may_pass: bool = True) -> None:
        super().__init__(str(reason) or type(reason).__name__)
        self.may_pass = may_pass


def _say_nothing(line: str) -> None:
    pass


def fetch(
    name: str,
    root: Path,
    say: Callable[[str], None] = _say_nothing,
    catalogue: Mapping[str, Callable[[], list[Source]]] = CATALOGUE,
    options: Options = DEFAULT,
) -> None:
    """Download an entry of the catalogue; files that are in place and complete are kept.

    Args:
        name: key of the catalogue.
        root: the data root; files go below `root / source.folder`.
        say: called with a line for each event.

    Raises:
        UserError: the network fails, a sum is wrong, or an archive is damaged.
        StorageError: a file cannot be written.
    """
    for source in catalogue[name]():
        folder = root / source.folder
        with room(folder):
            _fetch_source(name, source, folder, say, options)


def _fetch_source(
    name: str, source: Source, folder: Path, say: Callable[[str], None], options: Options
) -> None:
    path = folder / source.url.rsplit("/", 1)[1]
    if source.arrange:
        source.arrange(folder)  # an archive may have been unpacked by hand
    if all(is_whole(folder / file, check) for file, check in source.files.items()):
        say(f"{name}: {path.name} is already in place and complete in {folder}")
        return

    folder.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        _bring(name, source, folder, say, options)
    say(f"{name}: {path.name} is in place in {folder}")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from the same download: all would append to one partial file."""
    name = f".{path.name}.lock"
    with lock(path.parent, name):
        try:
            yield
        finally:
            path.with_name(name).unlink(missing_ok=True)


def _bring(
    name: str, source: Source, folder: Path, say: Callable[[str], None], options: Options
) -> None:
    """Download and unpack what is not in place."""
    path = folder / source.url.rsplit("/", 1)[1]

    # An archive may have been placed by hand, whole or in part, or its unpacking was interrupted.
    is_archive = path.name not in source.files
    is_placed = is_archive and path.is_file() and _seems_whole(path, source.check)
    if not is_placed:
        say(f"{name}: downloading {source.url}")
        download(source.url, path, source.check, say, options)

    if is_archive:
        remove_remains(path, folder)
        unpack(path, folder, source.files, options.free, source.arrange)


def _seems_whole(path: Path, check: str) -> bool:
    """Whether a file has its sum; where none is known, whether an archive has its end."""
    if not check and ".tar" in path.name:
        return is_archive_to_its_end(path)
    return has_sum(path, check)


def download(
    url: str,
    path: Path,
    check: str = "",
    say: Callable[[str], None] = _say_nothing,
    options: Options = DEFAULT,
) -> None:
    """Download a file to `path`, which appears only when it is complete and verified.

    Data goes to `path`.part, where a later call continues. So does it where a user has placed a
    part of the file as `path` or as `path`.part. A file that turns out to be another one is kept as
    `path`.damaged. Network errors are retried.

    Raises:
        UserError: the network fails, or the sum is wrong.
        StorageError, OSError: the file cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    _adopt(path, part, say)
    given = 0 if _tag(part).is_file() else _size(part)
    _transfer(url, path, part, say, options)

    # What the user has placed was no part of it.
    if given and not _tag(part).is_file() and not _seems_whole(part, check):
        os.truncate(part, given)
        _put_aside(part, f"is not the beginning of {url}", say)
        _transfer(url, path, part, say, options)

    verify(part, check)
    os.replace(part, path)
    _tag(part).unlink(missing_ok=True)


def _adopt(path: Path, part: Path, say: Callable[[str], None]) -> None:
    """Continue with a file that was placed by hand as `path`; of two partial ones, the larger."""
    if not path.is_file():
        return
    if _size(path) <= _size(part):
        _put_aside(path, f"is not complete, and {part.name} has more of it", say)
        return

    if part.exists() and not _tag(part).is_file():
        _put_aside(part, f"is shorter than {path.name}", say)
    _tag(part).unlink(missing_ok=True)
    say(f"{path} is not complete or not the published file; trying to resume it as {part.name}")
    os.replace(path, part)


def _put_aside(path: Path, reason: str, say: Callable[[str], None]) -> None:
    kept = set_aside(path)
    say(f"{path} {reason}; it is kept as {kept.name}")


def _transfer(
    url: str, path: Path, part: Path, say: Callable[[str], None], options: Options
) -> None:
    """Download the rest of `part`, with retries."""
    for attempt in range(options.retries + 1):
        try:
            _download_rest(url, part, say, options)
            return
        except _NetworkError as error:
            done = megabytes(_size(part))
            if attempt == options.retries or not error.may_pass:
                raise UserError(
                    f"could not download {url}: {error}; run '{command('download')}' again to "
                    f"resume from {done}, or place the file by hand as {path}"
                ) from error

            pause = options.pause * 2**attempt
            say(f"{url}: {error}; resuming from {done} in {pause:g} s")
            time.sleep(pause)


def _download_rest(url: str, part: Path, say: Callable[[str], None], options: Options) -> None:
    """Append to `part` the rest of the file at `url`.

    It starts over where the server has another version of the file, or does not support ranges. A
    part that the user has placed is then kept under another name.
    """
    start = _size(part)
    response = _open(url, part, start, say, options.timeout)
    if response is None:
        return

    with response:
        if response.status != http.client.PARTIAL_CONTENT:
            _start_over(part, "cannot be resumed: the server sends the whole file", say)
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            _start_over(part, "cannot be resumed", say)
            raise _NetworkError("the server sent another range than the requested one")

        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        _append(response, part, start, total, options)

    done = _size(part)
    if total is not None and done != total:
        raise _NetworkError(f"the connection broke after {megabytes(done)} of {megabytes(total)}")


def _start_over(part: Path, reason: str, say: Callable[[str], None]) -> None:
    """Remove a partial file; one without a tag was placed by the user and is kept."""
    if _tag(part).is_file():
        part.unlink(missing_ok=True)
    elif _size(part):
        _put_aside(part, reason, say)


def _open(
    url: str, part: Path, start: int, say: Callable[[str], None], timeout: float
) -> http.client.HTTPResponse | None:
    """Request a file from byte `start`; None where `part` is complete already."""
    headers = {"User-Agent": "edkd"}
    if start:
        headers["Range"] = f"bytes={start}-"
    if start and _tag(part).is_file():
        version = _tag(part).read_text()
        if version:
            headers["If-Range"] = version

    try:
        return urlopen(Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return None
            _start_over(part, "is longer than the file of the server", say)
        may_pass = error.code >= 500 or error.code in (408, 416, 429)
        raise _NetworkError(error, may_pass) from error
    except (OSError, http.client.HTTPException) as error:
        raise _NetworkError(error) from error


def _append(
    response: http.client.HTTPResponse,
    part: Path,
    start: int,
    total: int | None,
    options: Options,
) -> None:
    """Write the body of a response to `part` from byte `start`, which is its size or 0."""
    needed = total - start if total else 0
    mode = "ab" if start else "wb"

    with part.open(mode) as file, room(part.parent, needed, options.free):
        # `part` is empty here, so that old data never gets the tag of a new version.
        if not start:
            _tag(part).write_text(_version(response))

        bar = tqdm(
            desc=part.stem,
            total=total,
            initial=start,
            unit="B",
            unit_scale=True,
            disable=None,
            file=Guard(sys.stderr),
        )
        with bar:
            for chunk in _chunks(response):
                file.write(chunk)
                file.flush()  # a full disk raises here, and not when the file is closed
                bar.update(len(chunk))


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _NetworkError(error) from error
        if not chunk:
            return
        yield chunk


def _tag(part: Path) -> Path:
    """The file that keeps the server's name for the version of a partial file."""
    return part.with_suffix(".tag")


def _version(response: http.client.HTTPResponse) -> str:
    """What If-Range may send back; "" where the server gives nothing suitable.

    A weak ETag ("W/...") does not promise equal bytes, and the standard forbids it in If-Range.
    """
    etag = response.headers.get("ETag", "W/")
    if etag.startswith("W/"):
        return response.headers.get("Last-Modified", "")
    return etag


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
