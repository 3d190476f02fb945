"""Fetching data sets and published teachers into place: resumed, verified, and never half there."""

import errno
import hashlib
import http.client
import os
import pickle
import shutil
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from edkd.errors import StorageError, UserError

RETRIES, PAUSE, TIMEOUT = 4, 1.0, 30.0
"""Tries after the first; seconds before the first of them, doubled each time; seconds of silence that are an error."""

TORCH = "torch"
"""The check where no sum is published: a whole zip (torch >= 1.6), or the magic number of the older format."""

_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


class Source(NamedTuple):
    """What a URL serves; a check is "md5:<hex>", "sha256:<start of the hex>", TORCH, or "" where nothing is known."""

    url: str
    folder: str  # under the data root: where the archive is unpacked, or the single file lies
    files: Mapping[str, str]  # each expected file under `folder`, and its check; an archive is not among them
    check: str  # of what the URL serves


def _cifar(dataset: str) -> list[Source]:
    import torchvision.datasets  # publishes the sums, and is slow to import

    cifar = getattr(torchvision.datasets, dataset)
    sums = [*cifar.train_list, *cifar.test_list, (cifar.meta["filename"], cifar.meta["md5"])]
    files = {f"{cifar.base_folder}/{name}": f"md5:{md5}" for name, md5 in sums}
    return [Source(cifar.url, "data", files, f"md5:{cifar.tgz_md5}")]


def _teachers() -> list[Source]:
    names = ("resnet56", "resnet110", "resnet32x4", "ResNet50", "wrn_40_2", "vgg13")
    files = {f"cifar_teachers/{name}_vanilla/ckpt_epoch_240.pth": TORCH for name in names}
    url = "https://github.com/megvii-research/mdistiller/releases/download/checkpoints/cifar_teachers.tar"
    return [Source(url, "download_ckpts", files, check="")]  # no md5 of it is published


def _imagenet_teachers() -> list[Source]:
    names = ("resnet18-5c106cde", "resnet34-333f7ec4", "resnet50-19c8e357", "resnet101-5d3b4d8f")
    checks = {f"{name}.pth": f"sha256:{name.split('-')[1]}" for name in names}
    url, folder = "https://download.pytorch.org/models/", "download_ckpts/imagenet_teachers"
    return [Source(url + name, folder, {name: check}, check) for name, check in checks.items()]


CATALOGUE: dict[str, Callable[[], list[Source]]] = {
    "cifar100": partial(_cifar, "CIFAR100"),
    "cifar10": partial(_cifar, "CIFAR10"),
    "teachers": _teachers,
    "imagenet_teachers": _imagenet_teachers,
}
"""What `fetch` knows by name."""


class _NetworkError(Exception):
    """Apart from what the disk says, which is an OSError too."""

    def __init__(self, reason: object, may_pass: bool = True) -> None:
        super().__init__(str(reason) or type(reason).__name__)
        self.may_pass = may_pass


def fetch(name: str, root: Path, say: Callable[[str], None] = lambda line: None) -> None:
    """Bring the catalogue's entry `name` into place under `root`; what is there and whole is left alone.

    `say` is given a line for each event. Raises UserError (network, a wrong sum, a bad archive) or StorageError.
    """
    for source in CATALOGUE[name]():
        folder = root / source.folder
        path = folder / source.url.rsplit("/", 1)[1]
        is_archive = path.name not in source.files
        with _room(folder):
            if all(is_whole(folder / file, check) for file, check in source.files.items()):
                say(f"{name}: {path.name} is in place already, whole, in {folder}")
                continue
            folder.mkdir(parents=True, exist_ok=True)
            if is_archive and path.is_file():  # placed by hand, or its unpacking was interrupted
                _verify(path, source.check)
            else:
                say(f"{name}: fetching {source.url}")
                download(source.url, path, source.check, say)
            if is_archive:
                unpack(path, folder, source.files)
            say(f"{name}: {path.name} is in place in {folder}")


def download(url: str, path: Path, check: str = "", say: Callable[[str], None] = lambda line: None) -> None:
    """Fetch `url` to `path` by way of `path`.part, where a later call goes on; `path` appears verified or not at all.

    Network errors are tried again RETRIES times. Raises UserError (the network, a wrong sum) or OSError (the disk).
    """
    part = path.with_name(path.name + ".part")
    for attempt in range(RETRIES + 1):
        try:
            _download_rest(url, part)
            break
        except _NetworkError as error:
            if attempt == RETRIES or not error.may_pass:
                hint = f"run this again to go on from {_mb(_size(part))}, or first place the file by hand as {path}"
                raise UserError(f"could not fetch {url}: {error}; {hint}") from error
            say(f"{url}: {error}; going on from {_mb(_size(part))} in {PAUSE * 2**attempt:g} s")
            time.sleep(PAUSE * 2**attempt)
    _verify(part, check)
    os.replace(part, path)
    part.with_suffix(".tag").unlink(missing_ok=True)


def _download_rest(url: str, part: Path) -> None:
    """Append to `part` what it lacks of `url`, or start over where the server has another file or ignores Range."""
    have, tag = _size(part), part.with_suffix(".tag")  # the tag is the server's name for this version of the file
    headers = {"User-Agent": "edkd"} | ({"Range": f"bytes={have}-"} if have else {})
    if have and tag.is_file() and (version := tag.read_text()):
        headers["If-Range"] = version
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
            return  # nothing is lacking
        if error.code == 416:
            part.unlink(missing_ok=True)
        raise _NetworkError(error, may_pass=error.code >= 500 or error.code in (408, 416, 429)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _NetworkError(error) from error
    with response:
        if response.status != 206:
            have = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink(missing_ok=True)
            raise _NetworkError("the server sent another range than was asked for")
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if have else "wb") as file, _room(part.parent, total - have if total else 0):
            if not have:  # now that `part` is empty: an old beginning never meets a new tag
                etag = response.headers.get("ETag", "W/")  # a weak one promises no equal bytes: If-Range forbids it
                tag.write_text(response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag)
            with tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True, disable=None) as bar:
                for chunk in _chunks(response):
                    file.write(chunk)
                    file.flush()  # a full disk is noticed here, not on closing
                    bar.update(len(chunk))
    if total not in (None, _size(part)):
        raise _NetworkError(f"the connection broke after {_mb(_size(part))} of {_mb(total)}")


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read(1 << 16):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _NetworkError(error) from error


def unpack(archive: Path, folder: Path, files: Mapping[str, str]) -> None:
    """Unpack the tar `archive` into `folder`, one whole file at a time, and delete it.

    `files` maps what the archive must hold to its check; until all of it lies in a temporary folder, nothing is put in
    place. A file that exists is kept, unless `files` names it and it fails its check. Raises UserError where a member
    is a link, a device or leads out of the folder, or the archive is damaged; StorageError where there is no room.
    """
    try:
        with (
            tarfile.open(archive) as tar,
            _room(folder, sum(member.size for member in tar)),
            tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as temporary,
        ):
            tar.extractall(temporary, filter=_plain_files)
            _merge(Path(temporary), folder, files)
    except (tarfile.TarError, EOFError, ValueError, zlib.error) as error:
        archive.unlink()
        raise UserError(f"{archive} is no sound archive ({error}) and is deleted; fetch it anew") from error
    archive.unlink()


def _plain_files(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """tarfile's "data" filter, and no links at all: none of these archives needs one."""
    if member.issym() or member.islnk():
        raise tarfile.FilterError(f"{member.name!r} is a link to {member.linkname!r}")
    return tarfile.data_filter(member, folder)


def _merge(temporary: Path, folder: Path, files: Mapping[str, str]) -> None:
    """Move what `temporary` holds into `folder`, but for what is there already."""
    if lacking := [file for file, check in files.items() if not is_whole(temporary / file, check)]:
        raise tarfile.ReadError(f"it lacks a whole {', '.join(lacking)}")
    for source in (path for path in temporary.rglob("*") if path.is_file()):
        file = source.relative_to(temporary).as_posix()
        goal = folder / file
        if not (is_whole(goal, files[file]) if file in files else goal.exists()):
            goal.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, goal)


def is_whole(path: Path, check: str) -> bool:
    """Whether the file `path` exists and passes `check` (see Source)."""
    if not path.is_file() or check != TORCH:
        return path.is_file() and _sum(path, check).startswith(check)
    with path.open("rb") as file:
        return file.read(len(_LEGACY_MAGIC)) == _LEGACY_MAGIC or zipfile.is_zipfile(file)


def _verify(path: Path, check: str) -> None:
    """Delete `path` and raise UserError unless its sum is the published one."""
    if not (found := _sum(path, check)).startswith(check):
        path.unlink()
        raise UserError(f"{path} has {found}, not the published {check}, and is deleted; fetch it anew")


def _sum(path: Path, check: str) -> str:
    """The file's sum, written as `check` is; "" where there is nothing to compare."""
    if not check:
        return ""
    algorithm = check.split(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, path.read_bytes(), usedforsecurity=False).hexdigest()}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


@contextmanager
def _room(folder: Path, needed: int = 0) -> Iterator[None]:
    """Ask for `needed` bytes in `folder`; an OSError within (the disk's) becomes a StorageError that names them."""
    try:
        if needed and needed > shutil.disk_usage(folder).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except StorageError:
        raise
    except OSError as error:
        need = f"; {_mb(needed)} are needed, make room" if needed else ""
        raise StorageError(f"{error.filename or folder}: {error.strerror or error}{need}") from error
