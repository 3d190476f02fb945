"""Downloads from a server on the loopback; no test reaches a network."""

import hashlib
import io
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edkd import download as dl
from edkd.archive import TORCH, is_whole, unpack
from edkd.commands._command_line import run_command
from edkd.commands.download import main
from edkd.errors import StorageError, UserError
from edkd.folder_lock import lock

BODY = bytes(range(256)) * 4000  # about 1 MB: many chunks
CHUNK = 1 << 16
DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"

PATIENT = dl.Options(pause=0.0)
IMPATIENT = dl.Options(retries=0, pause=0.0)


class Server(ThreadingHTTPServer):
    """Serves `files`; the other attributes are its faults."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files = {"/file.bin": BODY}

        self.has_ranges = True
        self.breaks = 0  # responses that end after half of the body
        self.status = 0  # sent instead of a file
        self.shift = 0  # bytes by which a range is wrong
        self.etag = '"v1"'
        self.modified = ""
        self.before = lambda: None  # called before a response
        self.halfway = lambda: None  # called after half of a body

        self.requests = []  # (path, Range)
        self.versions = []  # If-Range
        self.sent = 0

    def handle_error(self, request, client_address):
        """The client was interrupted, which is what some tests do."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        version = self.headers.get("If-Range")
        server.requests.append((self.path, wanted))
        server.before()

        body = server.files.get(self.path)
        if body is None or server.status:
            self.send_error(server.status or 404)
            return
        server.versions.append(version)

        start = 0
        if wanted and server.has_ranges and version in (None, server.etag, server.modified):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_body(body, start)

    def send_body(self, body, start):
        server = self.server
        self.send_response(206 if start else 200)
        if start:
            start += server.shift
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.modified:
            self.send_header("Last-Modified", server.modified)
        rest = body[start:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()

        middle = len(rest) // 2
        parts = [rest[:middle]]
        if server.breaks:
            server.breaks -= 1
        else:
            parts.append(rest[middle:])
        server.sent += sum(map(len, parts))  # first, because the client may be done at once
        self.wfile.write(parts[0])
        server.halfway()
        for part in parts[1:]:
            self.wfile.write(part)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        serve = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        serve.start()
        yield server
        server.shutdown()
        serve.join()


@pytest.fixture
def get(server, tmp_path):
    """get(check="", say=..., options=...): download /file.bin; returns its path."""
    path = tmp_path / "file.bin"

    def get(check=MD5, say=lambda line: None, options=PATIENT):
        dl.download(f"{server.url}/file.bin", path, check, say, options)
        return path

    return get


def make_tar(path, members):
    """A tar of {name: bytes or TarInfo}."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path.read_bytes()


def torch_file(text):
    """The smallest file that passes the TORCH check."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", text)
    return buffer.getvalue()


MEMBERS = {
    "toy/a/x.pth": torch_file("a"),
    "toy/b/x.pth": torch_file("b"),
    "toy/readme.txt": b"hello",
}


@pytest.fixture
def toy(server, tmp_path):
    """A catalogue with the archive "toy": two expected files, and one more."""
    server.files["/toy.tar"] = make_tar(tmp_path / "made.tar", MEMBERS)
    files = {"toy/a/x.pth": TORCH, "toy/b/x.pth": TORCH}
    check = f"md5:{hashlib.md5(server.files['/toy.tar']).hexdigest()}"
    source = dl.Source(f"{server.url}/toy.tar", "download_ckpts", files, check)
    return {"toy": lambda: [source]}


def fetch(catalogue, root, say=lambda line: None, options=IMPATIENT):
    (name,) = catalogue
    dl.fetch(name, root, say, catalogue, options)


def tree(folder):
    paths = [path for path in folder.rglob("*") if not path.is_dir()]
    return {path.relative_to(folder).as_posix() for path in paths}


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)


# A single file.


def test_only_the_file_remains(server, get, tmp_path):
    assert get().read_bytes() == BODY
    assert tree(tmp_path) == {"file.bin"}
    assert server.requests == [("/file.bin", None)]


def test_broken_connections_are_resumed_and_nothing_is_sent_twice(server, get):
    server.breaks = 3
    lines = []
    assert get(say=lines.append).read_bytes() == BODY

    starts = [start for _, start in server.requests]
    assert starts == [None, "bytes=512000-", "bytes=768000-", "bytes=896000-"]
    assert server.sent == len(BODY)
    assert len(lines) == 3
    assert "resuming from 0.5 MB" in lines[0]


def test_a_later_call_continues(server, get, tmp_path):
    server.breaks = 1
    error = f"could not download {server.url}/file.bin: .*resume from 0.5 MB.*by hand as {tmp_path}"
    with pytest.raises(UserError, match=error):
        get(options=IMPATIENT)
    assert (tmp_path / "file.bin.part").stat().st_size == 512000
    assert not (tmp_path / "file.bin").exists()

    assert get().read_bytes() == BODY
    assert server.requests[1:] == [("/file.bin", "bytes=512000-")]
    assert server.sent == len(BODY)
    assert tree(tmp_path) == {"file.bin"}


def test_a_server_without_ranges_sends_everything_again(server, get):
    server.breaks = 1
    server.has_ranges = False
    assert get().read_bytes() == BODY
    assert len(server.requests) == 2
    assert server.sent == len(BODY) * 3 // 2


def test_a_file_that_changed_is_downloaded_from_its_start(server, get):
    server.breaks = 1
    with pytest.raises(UserError):
        get(check="", options=IMPATIENT)

    server.files["/file.bin"] = BODY[::-1]
    server.etag = '"v2"'
    assert get(check="").read_bytes() == BODY[::-1]  # without a sum, If-Range alone detects it


@pytest.mark.parametrize(
    ("etag", "modified", "sent"),
    [
        ('"v1"', DATE, '"v1"'),
        ('W/"v1"', DATE, DATE),
        ("", DATE, DATE),
        ('W/"v1"', "", None),
        ("", "", None),
    ],
)
def test_only_a_strong_etag_or_a_date_is_sent_back(server, get, tmp_path, etag, modified, sent):
    server.etag = etag
    server.modified = modified
    server.breaks = 1
    get()
    assert server.versions == [None, sent]
    assert server.sent == len(BODY)
    assert tree(tmp_path) == {"file.bin"}


@pytest.mark.parametrize(("part", "sent"), [(BODY, 0), (BODY + b"more", len(BODY))])
def test_a_part_that_is_complete_or_too_long(server, get, tmp_path, part, sent):
    (tmp_path / "file.bin.part").write_bytes(part)
    assert get().read_bytes() == BODY
    assert server.sent == sent


def test_a_wrong_range_is_not_appended(server, get):
    server.breaks = 1
    server.shift = 7
    assert get().read_bytes() == BODY


def test_wrong_bytes_are_deleted(server, get, tmp_path):
    server.files["/file.bin"] = BODY[:-1] + b"!"
    with pytest.raises(UserError, match=f"not the published {MD5}"):
        get()
    assert not [name for name in tree(tmp_path) if name in ("file.bin", "file.bin.part")]


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (503, 3), (429, 3)])
def test_only_temporary_errors_are_retried(server, get, status, tries):
    server.status = status
    with pytest.raises(UserError, match=f"could not download .*/file.bin: .*{status}"):
        get(options=dl.Options(retries=2, pause=0.0))
    assert len(server.requests) == tries


def test_a_refused_connection(server, get):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="could not download .*refused"):
        get(options=dl.Options(retries=1, pause=0.0))


def test_a_silent_server_times_out(server, get):
    done = threading.Event()
    server.before = lambda: done.wait(5)
    start = time.monotonic()
    try:
        with pytest.raises(UserError, match="timed out"):
            get(options=dl.Options(retries=0, timeout=0.2))
    finally:
        done.set()
    assert time.monotonic() - start < 2


def test_ctrl_c_keeps_the_part(server, get, tmp_path):
    part = tmp_path / "file.bin.part"
    closed = threading.Event()

    def interrupt():
        wait_for(lambda: part.exists() and part.stat().st_size >= CHUNK)
        os.kill(os.getpid(), signal.SIGINT)
        closed.wait(5)

    server.halfway = interrupt
    with pytest.raises(KeyboardInterrupt):
        get()
    closed.set()
    size = part.stat().st_size
    assert part.read_bytes() == BODY[:size]

    server.halfway = lambda: None
    assert get().read_bytes() == BODY
    assert server.requests[-1][1] == f"bytes={size}-"


# Archives.


def link(name, target, kind):
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = target
    return member


MALICIOUS = {
    "traversal": {"../evil": b"x"},
    "hidden traversal": {"good/../../evil": b"x"},
    "absolute symlink": {
        "good/out": link("good/out", "/etc", tarfile.SYMTYPE),
        "good/out/evil": b"x",
    },
    "relative symlink": {"good/out": link("good/out", "../..", tarfile.SYMTYPE)},
    "hard link": {"good/hard": link("good/hard", "/etc/passwd", tarfile.LNKTYPE)},
    "link within": {"good/near": link("good/near", "a", tarfile.SYMTYPE)},
    "fifo": {"good/pipe": link("good/pipe", "", tarfile.FIFOTYPE)},
}


@pytest.mark.parametrize("members", MALICIOUS.values(), ids=MALICIOUS)
def test_a_member_that_is_a_link_or_leads_outside_is_rejected(tmp_path, members):
    folder = tmp_path / "deep" / "data"
    folder.mkdir(parents=True)
    make_tar(folder / "bad.tar", {"good/a": b"fine"} | members)
    with pytest.raises(UserError, match=r"bad\.tar is not a sound archive"):
        unpack(folder / "bad.tar", folder, {"good/a": ""})
    assert tree(tmp_path) == {"deep/data/bad.tar.damaged"}


def test_an_absolute_name_stays_inside(tmp_path):
    outside = tmp_path / "outside"
    folder = tmp_path / "data"
    folder.mkdir()
    make_tar(folder / "bad.tar", {"good/a": b"fine", str(outside): b"x"})
    unpack(folder / "bad.tar", folder, {"good/a": ""})
    assert not outside.exists()
    assert all(name.startswith("data/") for name in tree(tmp_path))


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-15000], lambda data: b"<html>no</html>" * 9]
)
def test_a_damaged_archive_puts_nothing_in_place(tmp_path, damage):
    archive = tmp_path / "a.tar"
    whole = make_tar(archive, {"good/a": b"fine", "good/b": b"x" * 9000})
    archive.write_bytes(damage(whole))
    content = archive.read_bytes()
    with pytest.raises(UserError, match=r"(?s)not a sound archive .* renamed to a\.tar\.damaged;"):
        unpack(archive, tmp_path, {"good/a": ""})
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.damaged"]
    assert (tmp_path / "a.tar.damaged").read_bytes() == content


def test_an_incomplete_archive_puts_nothing_in_place(tmp_path):
    make_tar(tmp_path / "a.tar", {"good/a": b"fine", "good/b": b"not a checkpoint"})
    with pytest.raises(UserError, match="missing or damaged in it: good/b, good/c"):
        unpack(tmp_path / "a.tar", tmp_path, {"good/a": "", "good/b": TORCH, "good/c": ""})
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.damaged"]


def test_no_room_for_the_contents_keeps_the_archive(tmp_path):
    make_tar(tmp_path / "a.tar", {"a": b"0" * 500_000})
    with pytest.raises(StorageError, match=r"No space left on device; 0\.5 MB are needed"):
        unpack(tmp_path / "a.tar", tmp_path, {"a": ""}, free=lambda folder: 10_000)
    assert tree(tmp_path) == {"a.tar"}


def test_checks(tmp_path):
    path = tmp_path / "f"
    sha256 = hashlib.sha256(BODY).hexdigest()
    assert not is_whole(path, "")
    assert not is_whole(tmp_path, "")

    path.write_bytes(BODY)
    assert is_whole(path, "")
    assert is_whole(path, MD5)
    assert is_whole(path, f"sha256:{sha256[:8]}")
    assert not is_whole(path, "sha256:00000000")
    assert not is_whole(path, TORCH)

    path.write_bytes(torch_file("x"))
    assert is_whole(path, TORCH)
    path.write_bytes(torch_file("x")[:-10])
    assert not is_whole(path, TORCH)


@pytest.mark.parametrize("zipped", [True, False])
def test_both_formats_of_torch_are_whole(tmp_path, zipped):
    import torch

    state = {"model": {"w": torch.zeros(3)}}
    torch.save(state, tmp_path / "f", _use_new_zipfile_serialization=zipped)
    assert is_whole(tmp_path / "f", TORCH)


# Entries of the catalogue.


def test_an_archive_is_fetched_once(server, toy, tmp_path):
    root = tmp_path / "root"
    lines = []
    fetch(toy, root, lines.append)
    assert tree(root) == {f"download_ckpts/{name}" for name in MEMBERS}
    for name, content in MEMBERS.items():
        assert (root / "download_ckpts" / name).read_bytes() == content

    fetch(toy, root, lines.append)
    assert len(server.requests) == 1
    assert "already in place" in lines[-1]


def test_a_second_process_is_refused(server, toy, tmp_path):
    """Both would append to the same partial file."""
    folder = tmp_path / "root" / "download_ckpts"
    folder.mkdir(parents=True)
    with (
        lock(folder, ".toy.tar.lock"),
        pytest.raises(UserError, match=f"{folder} is in use by this process"),
    ):
        fetch(toy, tmp_path / "root")
    assert server.requests == []

    fetch(toy, tmp_path / "root")
    assert tree(folder) == set(MEMBERS)


def test_what_a_killed_process_has_unpacked_is_removed(toy, tmp_path):
    folder = tmp_path / "root" / "download_ckpts"
    remains = folder / ".unpacking-toy.tar-abc"
    of_another = folder / ".unpacking-other.tar-abc"
    for path in (remains, of_another):
        path.mkdir(parents=True)
        (path / "half.bin").write_bytes(b"x")

    fetch(toy, tmp_path / "root")
    assert not remains.exists()
    assert of_another.exists()


def test_existing_files_are_kept_and_damaged_ones_replaced(toy, tmp_path):
    folder = tmp_path / "root" / "download_ckpts"
    kept = {
        "toy/a/x.pth": pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + b"the older format",
        "toy/c/x.pth": b"another",
        "toy/readme.txt": b"my notes",
    }
    for name, content in (kept | {"toy/b/x.pth": b"damaged"}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    fetch(toy, tmp_path / "root")
    found = {name: (folder / name).read_bytes() for name in tree(folder)}
    assert found == kept | {"toy/b/x.pth": MEMBERS["toy/b/x.pth"]}


def test_an_archive_placed_by_hand_is_used(server, toy, tmp_path):
    folder = tmp_path / "root" / "download_ckpts"
    folder.mkdir(parents=True)
    (folder / "toy.tar").write_bytes(server.files["/toy.tar"])
    fetch(toy, tmp_path / "root")
    assert server.requests == []
    assert tree(folder) == set(MEMBERS)


def without_sum(toy):
    """The same catalogue; no sum of the archive is published."""
    (source,) = toy["toy"]()
    return {"toy": lambda: [source._replace(check="")]}


@pytest.mark.parametrize("name", ["toy.tar", "toy.tar.part"])
@pytest.mark.parametrize("has_sum", [True, False])
def test_a_part_placed_by_hand_is_resumed(server, toy, tmp_path, name, has_sum):
    """A browser or wget left half of the archive; a slow line must not send it again."""
    catalogue = toy if has_sum else without_sum(toy)
    folder = tmp_path / "root" / "download_ckpts"
    folder.mkdir(parents=True)
    whole = server.files["/toy.tar"]
    (folder / name).write_bytes(whole[:700])

    fetch(catalogue, tmp_path / "root")
    assert server.requests == [("/toy.tar", "bytes=700-")]
    assert tree(folder) == set(MEMBERS)


@pytest.mark.parametrize("name", ["toy.tar", "toy.tar.part"])
@pytest.mark.parametrize("has_sum", [True, False])
@pytest.mark.parametrize("content", [b"something else", b"x" * 99_999], ids=["short", "long"])
def test_a_wrong_file_placed_by_hand_is_kept(toy, tmp_path, name, has_sum, content):
    """It is renamed, unchanged, and the archive is downloaded whole by the same command."""
    catalogue = toy if has_sum else without_sum(toy)
    folder = tmp_path / "root" / "download_ckpts"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)

    lines = []
    fetch(catalogue, tmp_path / "root", lines.append, PATIENT)
    assert tree(folder) == {*MEMBERS, "toy.tar.damaged"}
    assert (folder / "toy.tar.damaged").read_bytes() == content
    assert any("it is kept as toy.tar.damaged" in line for line in lines)


def test_a_part_placed_by_hand_stays_where_the_server_has_no_ranges(server, toy, tmp_path):
    folder = tmp_path / "root" / "download_ckpts"
    folder.mkdir(parents=True)
    half = server.files["/toy.tar"][:700]
    (folder / "toy.tar").write_bytes(half)
    server.has_ranges = False
    fetch(toy, tmp_path / "root")
    assert tree(folder) == {*MEMBERS, "toy.tar.damaged"}
    assert (folder / "toy.tar.damaged").read_bytes() == half


def test_a_part_placed_by_hand_survives_a_network_that_fails(server, toy, tmp_path):
    folder = tmp_path / "root" / "download_ckpts"
    folder.mkdir(parents=True)
    half = server.files["/toy.tar"][:700]
    (folder / "toy.tar").write_bytes(half)
    server.status = 503
    with pytest.raises(UserError, match="could not download"):
        fetch(toy, tmp_path / "root")
    assert (folder / "toy.tar.part").read_bytes() == half


def test_of_two_parts_the_larger_is_resumed_and_both_are_kept(server, toy, tmp_path):
    folder = tmp_path / "root" / "download_ckpts"
    folder.mkdir(parents=True)
    whole = server.files["/toy.tar"]
    (folder / "toy.tar").write_bytes(whole[:700])
    (folder / "toy.tar.part").write_bytes(whole[:900])
    fetch(toy, tmp_path / "root")
    assert server.requests == [("/toy.tar", "bytes=900-")]
    assert tree(folder) == {*MEMBERS, "toy.tar.damaged"}


def test_a_second_wrong_file_gets_another_name(tmp_path):
    for content in (b"one", b"two"):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(UserError, match="not a sound archive"):
            unpack(tmp_path / "a.tar", tmp_path, {})
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert kept == {"a.tar.damaged": b"one", "a.tar.damaged2": b"two"}


def test_an_unpacking_that_fails_midway_is_repeated(server, toy, tmp_path):
    folder = tmp_path / "root" / "download_ckpts"
    (folder / "toy").mkdir(parents=True)
    (folder / "toy/b").write_bytes(b"a file where a folder belongs")
    with pytest.raises(StorageError, match="toy/b"):
        fetch(toy, tmp_path / "root")
    assert tree(folder) == {"toy.tar", "toy/a/x.pth", "toy/b"}
    assert not list(folder.glob(".unpacking*"))

    (folder / "toy/b").unlink()
    fetch(toy, tmp_path / "root")
    assert len(server.requests) == 1
    assert tree(folder) == set(MEMBERS)


def test_a_single_file_is_verified_and_a_wrong_one_is_kept(server, tmp_path):
    check = f"sha256:{hashlib.sha256(BODY).hexdigest()[:8]}"
    source = dl.Source(f"{server.url}/file.bin", "w", {"file.bin": check}, check)
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "file.bin").write_bytes(b"half a file")

    for _ in range(2):
        fetch({"single": lambda: [source]}, tmp_path)
        assert (tmp_path / "w" / "file.bin").read_bytes() == BODY
    assert server.requests == [("/file.bin", "bytes=11-"), ("/file.bin", None)]
    assert (tmp_path / "w" / "file.bin.damaged").read_bytes() == b"half a file"


def test_half_of_a_single_file_is_resumed(server, tmp_path):
    source = dl.Source(f"{server.url}/file.bin", "w", {"file.bin": MD5}, MD5)
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "file.bin").write_bytes(BODY[:500_000])
    fetch({"single": lambda: [source]}, tmp_path)
    assert server.sent == len(BODY) - 500_000
    assert tree(tmp_path) == {"w/file.bin"}


def test_no_room_is_reported_before_the_download_starts(server, tmp_path):
    source = dl.Source(f"{server.url}/file.bin", "w", {"file.bin": MD5}, MD5)
    catalogue = {"single": lambda: [source]}
    part = tmp_path / "w" / "file.bin.part"
    full = IMPATIENT._replace(free=lambda folder: 600_000)
    error = f"^{tmp_path}/w: No space left on device; 1.0 MB are needed"
    with pytest.raises(StorageError, match=error):
        fetch(catalogue, tmp_path, options=full)
    assert part.stat().st_size == 0

    part.write_bytes(BODY[:500_000])  # there is room for the rest
    fetch(catalogue, tmp_path, options=full)
    assert (tmp_path / "w" / "file.bin").read_bytes() == BODY


def test_a_folder_that_cannot_be_written_is_a_storage_error(toy, tmp_path):
    (tmp_path / "root").write_text("a file where the folder belongs")
    with pytest.raises(StorageError, match="root"):
        fetch(toy, tmp_path / "root")


def test_the_catalogue_is_well_formed():
    import torchvision

    data_sets = [*("cifar100", "cifar10", "mnist", "fashion_mnist", "svhn", "stl10")]
    others = ["tiny_imagenet", "teachers", "imagenet_teachers"]
    assert list(dl.CATALOGUE) == [*data_sets, *others]
    for name, sources in dl.CATALOGUE.items():
        for source in sources():
            # Some servers have no https; the sums find what was changed on the way.
            assert source.url.startswith("https://") or source.check.startswith("md5:")
            assert source.files
            assert source.check or name == "teachers"

    (cifar100,) = dl.CATALOGUE["cifar100"]()
    assert cifar100.url == torchvision.datasets.CIFAR100.url
    assert cifar100.files == {
        "cifar-100-python/train": "md5:16019d7e3df5f24257cddd939b257f8d",
        "cifar-100-python/test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc",
        "cifar-100-python/meta": "md5:7973b15100ade9c7d40fb424638fde48",
    }
    (cifar10,) = dl.CATALOGUE["cifar10"]()
    assert len(cifar10.files) == 7


# The command.


@pytest.fixture
def command(toy, monkeypatch, capsys):
    """Run the command with "toy" in its catalogue: command(*words) -> exit code, stdout, stderr."""
    monkeypatch.setitem(dl.CATALOGUE, "toy", toy["toy"])

    def command(*words):
        code = 0
        try:
            run_command(main, [str(word) for word in words])
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return command


def test_the_command_fetches_each_name(command, tmp_path):
    code, out, err = command("toy", "toy", "--into", tmp_path / "root")
    assert (code, err) == (0, "")
    assert tree(tmp_path / "root") == {f"download_ckpts/{name}" for name in MEMBERS}
    assert out.splitlines()[-1].startswith("toy: toy.tar is already in place")


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_tells_how_to_continue(server, command, tmp_path, number, expected):
    closed = threading.Event()

    def stop():
        os.kill(os.getpid(), number)
        closed.wait(5)

    server.halfway = stop
    code, _, err = command("toy", "--into", tmp_path / "root")
    closed.set()
    assert code == expected
    assert err == "edkd: stopped; the same command resumes the download\n"


@pytest.mark.parametrize("words", [["cifra100"], [], ["cifar100", "--onto", "x"]])
def test_a_wrong_command_line_is_one_line_and_exit_2(command, words):
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert err.startswith("edkd: error: ")
    assert err.count("\n") == 1


def test_the_command_is_run_as_a_tool():
    tool = Path(__file__).resolve().parents[1] / "tools" / "download.py"
    done = subprocess.run(
        [sys.executable, tool, "nothing"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "python " in done.stderr
    assert "tools/download.py --help" in done.stderr


@pytest.mark.needs("data/cifar-100-python")
def test_real_cifar100_is_found_in_place(real_data, command):
    code, out, err = command("cifar100", "--into", real_data)
    assert (code, err) == (0, "")
    folder = real_data / "data"
    archive = "cifar-100-python.tar.gz"
    assert out == f"cifar100: {archive} is already in place and complete in {folder}\n"
