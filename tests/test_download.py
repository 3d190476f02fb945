"""edkd/download.py against a server on the loopback: nothing here reaches further."""

import hashlib
import importlib.util
import io
import os
import pickle
import runpy
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edkd import download as dl
from edkd.errors import StorageError, UserError

CHECKOUT = Path(__file__).resolve().parents[1]
TOOL = CHECKOUT / "tools" / "download.py"
BODY = bytes(range(256)) * 4000  # about 1 MB: many blocks
DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; the server's other attributes say how it misbehaves."""

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append((self.path, asked))
        body = server.files.get(self.path)
        if body is None or server.status:
            return self.send_error(server.status or 404)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        server.versions.append(version := self.headers.get("If-Range"))
        if version not in (None, server.etag, server.modified):
            start = 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start + server.shift}-{len(body) - 1}/{len(body)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.modified:
            self.send_header("Last-Modified", server.modified)
        rest = body[start + server.shift if start else 0 :]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            rest = rest[: len(rest) // 2]
        server.sent += len(rest)  # before they go: the client may be done while this thread still waits for its turn
        self.wfile.write(rest)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(dl, "PAUSE", 0.0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.versions, server.sent = {"/file.bin": BODY}, [], [], 0
    server.ranges, server.breaks, server.status, server.shift, server.etag, server.modified = True, 0, 0, 0, '"v1"', ""
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def make_tar(path, members):
    """A tar of {name: bytes or TarInfo}."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path.read_bytes()


def torch_file(text):
    """The smallest thing that passes the TORCH check, told apart by `text`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", text)
    return buffer.getvalue()


@pytest.fixture
def toy(server, tmp_path, monkeypatch):
    """An archive of two expected files and one more, in the catalogue as "toy"."""
    members = {"toy/a/x.pth": torch_file("a"), "toy/b/x.pth": torch_file("b"), "toy/readme.txt": b"hello"}
    server.files["/toy.tar"] = make_tar(tmp_path / "made.tar", members)
    files = {"toy/a/x.pth": dl.TORCH, "toy/b/x.pth": dl.TORCH}
    check = f"md5:{hashlib.md5(server.files['/toy.tar']).hexdigest()}"
    source = dl.Source(f"{server.url}/toy.tar", "download_ckpts", files, check)
    monkeypatch.setitem(dl.CATALOGUE, "toy", lambda: [source])
    return members


def tree(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


# --- download -------------------------------------------------------------------------------------------------------


def test_download_leaves_the_file_and_nothing_else(server, tmp_path):
    dl.download(f"{server.url}/file.bin", tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert tree(tmp_path) == {"file.bin"}
    assert server.asked == [("/file.bin", None)]


def test_broken_connections_are_resumed_without_fetching_anything_twice(server, tmp_path):
    server.breaks = 3
    lines = []
    dl.download(f"{server.url}/file.bin", tmp_path / "file.bin", MD5, lines.append)
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert [start for _, start in server.asked] == [None, "bytes=512000-", "bytes=768000-", "bytes=896000-"]
    assert server.sent == len(BODY)
    assert len(lines) == 3
    assert "going on from 0.5 MB" in lines[0]


def test_a_later_call_goes_on_from_the_part(server, tmp_path, monkeypatch):
    monkeypatch.setattr(dl, "RETRIES", 0)
    server.breaks = 1
    with pytest.raises(UserError, match=f"{server.url}/file.bin.*go on from 0.5 MB.*by hand as {tmp_path}/file.bin"):
        dl.download(f"{server.url}/file.bin", tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin.part").stat().st_size == 512000
    assert not (tmp_path / "file.bin").exists()
    dl.download(f"{server.url}/file.bin", tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert server.asked[1:] == [("/file.bin", "bytes=512000-")]
    assert server.sent == len(BODY)
    assert tree(tmp_path) == {"file.bin"}


def test_a_server_that_ignores_range_sends_it_all_again(server, tmp_path):
    server.breaks, server.ranges = 1, False
    dl.download(f"{server.url}/file.bin", tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert len(server.asked) == 2
    assert server.sent == len(BODY) * 3 // 2


def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(server, tmp_path, monkeypatch):
    monkeypatch.setattr(dl, "RETRIES", 0)
    server.breaks = 1
    with pytest.raises(UserError):
        dl.download(f"{server.url}/file.bin", tmp_path / "file.bin")
    server.files["/file.bin"], server.etag = BODY[::-1], '"v2"'
    dl.download(f"{server.url}/file.bin", tmp_path / "file.bin")  # no sum: If-Range alone notices
    assert (tmp_path / "file.bin").read_bytes() == BODY[::-1]


@pytest.mark.parametrize(
    ("etag", "modified", "sent"),
    [('"v1"', DATE, '"v1"'), ('W/"v1"', DATE, DATE), ("", DATE, DATE), ('W/"v1"', "", None), ("", "", None)],
)
def test_only_a_strong_etag_or_a_date_is_sent_back(server, tmp_path, etag, modified, sent):
    server.etag, server.modified, server.breaks = etag, modified, 1
    dl.download(f"{server.url}/file.bin", tmp_path / "file.bin", MD5)
    assert server.versions == [None, sent]
    assert server.sent == len(BODY)
    assert tree(tmp_path) == {"file.bin"}


@pytest.mark.parametrize("part", [BODY, BODY + b"more"])
def test_a_part_that_holds_it_all_or_too_much(server, tmp_path, part):
    (tmp_path / "file.bin.part").write_bytes(part)
    dl.download(f"{server.url}/file.bin", tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert server.sent == (0 if part == BODY else len(BODY))


def test_another_range_than_asked_for_is_not_appended(server, tmp_path):
    server.breaks, server.shift = 1, 7
    dl.download(f"{server.url}/file.bin", tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_wrong_bytes_are_deleted(server, tmp_path):
    server.files["/file.bin"] = BODY[:-1] + b"!"
    with pytest.raises(UserError, match=f"not the published {MD5}"):
        dl.download(f"{server.url}/file.bin", tmp_path / "file.bin", MD5)
    assert not (tmp_path / "file.bin").exists()
    assert not (tmp_path / "file.bin.part").exists()


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (503, 3), (429, 3)])
def test_only_what_may_pass_is_tried_again(server, tmp_path, monkeypatch, status, tries):
    monkeypatch.setattr(dl, "RETRIES", 2)
    server.status = status
    with pytest.raises(UserError, match=f"could not fetch {server.url}/file.bin: .*{status}"):
        dl.download(f"{server.url}/file.bin", tmp_path / "file.bin")
    assert len(server.asked) == tries


def test_nobody_answers(server, tmp_path, monkeypatch):
    monkeypatch.setattr(dl, "RETRIES", 1)
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"could not fetch .*refused"):
        dl.download(f"{server.url}/file.bin", tmp_path / "file.bin")


def test_a_silent_server_times_out(server, tmp_path, monkeypatch):
    monkeypatch.setattr(dl, "TIMEOUT", 0.2)
    monkeypatch.setattr(dl, "RETRIES", 0)
    done = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", lambda self: done.wait(5))
    start = time.monotonic()
    try:
        with pytest.raises(UserError, match="timed out"):
            dl.download(f"{server.url}/file.bin", tmp_path / "file.bin")
    finally:
        done.set()
    assert time.monotonic() - start < 2


def test_ctrl_c_leaves_the_part(server, tmp_path, monkeypatch):
    chunks = dl._chunks

    def interrupted(response):
        yield next(chunks(response))
        raise KeyboardInterrupt

    monkeypatch.setattr(dl, "_chunks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dl.download(f"{server.url}/file.bin", tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin.part").read_bytes() == BODY[: 1 << 16]
    monkeypatch.setattr(dl, "_chunks", chunks)
    dl.download(f"{server.url}/file.bin", tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert server.asked[-1][1] == f"bytes={1 << 16}-"


# --- unpack ---------------------------------------------------------------------------------------------------------


def link(name, target, kind):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "member",
    [
        {"../evil": b"x"},
        {"good/../../evil": b"x"},
        {"good/out": link("good/out", "/etc", tarfile.SYMTYPE), "good/out/evil": b"x"},
        {"good/out": link("good/out", "../..", tarfile.SYMTYPE)},
        {"good/hard": link("good/hard", "/etc/passwd", tarfile.LNKTYPE)},
        {"good/near": link("good/near", "a", tarfile.SYMTYPE)},
        {"good/pipe": link("good/pipe", "", tarfile.FIFOTYPE)},
    ],
    ids=["traversal", "hidden traversal", "absolute symlink", "relative symlink", "hard link", "link within", "fifo"],
)
def test_a_member_that_leads_out_is_refused(tmp_path, member):
    folder = tmp_path / "deep" / "data"
    folder.mkdir(parents=True)
    make_tar(folder / "bad.tar", {"good/a": b"fine"} | member)
    with pytest.raises(UserError, match=r"bad\.tar is no sound archive"):
        dl.unpack(folder / "bad.tar", folder, {"good/a": ""})
    assert tree(tmp_path) == set()
    assert list(folder.iterdir()) == []


def test_an_absolute_name_stays_inside(tmp_path):
    outside = tmp_path / "outside"
    folder = tmp_path / "data"
    folder.mkdir()
    make_tar(folder / "bad.tar", {"good/a": b"fine", str(outside): b"x"})
    dl.unpack(folder / "bad.tar", folder, {"good/a": ""})
    assert not outside.exists()
    assert all(name.startswith("data/") for name in tree(tmp_path))


@pytest.mark.parametrize("damage", [lambda data: data[:-15000], lambda data: b"<html>no</html>" * 99])
def test_a_damaged_archive_puts_nothing_in_place(tmp_path, damage):
    archive = tmp_path / "a.tar"
    archive.write_bytes(damage(make_tar(archive, {"good/a": b"fine", "good/b": b"x" * 9000})))
    with pytest.raises(UserError, match="no sound archive"):
        dl.unpack(archive, tmp_path, {"good/a": ""})
    assert list(tmp_path.iterdir()) == []


def test_an_archive_without_what_it_should_hold_puts_nothing_in_place(tmp_path):
    make_tar(tmp_path / "a.tar", {"good/a": b"fine", "good/b": b"not a checkpoint"})
    with pytest.raises(UserError, match="lacks a whole good/b, good/c"):
        dl.unpack(tmp_path / "a.tar", tmp_path, {"good/a": "", "good/b": dl.TORCH, "good/c": ""})
    assert list(tmp_path.iterdir()) == []


def test_whole_is_checked_not_assumed(tmp_path):
    path = tmp_path / "f"
    assert not dl.is_whole(path, "")
    path.write_bytes(BODY)
    assert dl.is_whole(path, "")
    assert dl.is_whole(path, MD5)
    assert not dl.is_whole(path, dl.TORCH)
    assert dl.is_whole(path, f"sha256:{hashlib.sha256(BODY).hexdigest()[:8]}")
    assert not dl.is_whole(path, "sha256:00000000")
    assert not dl.is_whole(tmp_path, "")
    path.write_bytes(torch_file("x")[:-10])
    assert not dl.is_whole(path, dl.TORCH)


@pytest.mark.parametrize("zipped", [True, False])
def test_whole_knows_both_formats_of_torch(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    torch.save({"model": {"w": torch.zeros(3)}}, tmp_path / "f", _use_new_zipfile_serialization=zipped)
    assert dl.is_whole(tmp_path / "f", dl.TORCH)


# --- fetch ----------------------------------------------------------------------------------------------------------


def test_fetch_brings_an_archive_into_place_once(server, toy, tmp_path):
    root, lines = tmp_path / "root", []
    dl.fetch("toy", root, lines.append)
    assert tree(root) == {f"download_ckpts/{name}" for name in toy}
    assert all((root / "download_ckpts" / name).read_bytes() == content for name, content in toy.items())
    dl.fetch("toy", root, lines.append)
    assert len(server.asked) == 1
    assert "in place already" in lines[-1]


def test_fetch_keeps_what_exists_and_mends_what_is_broken(server, toy, tmp_path):
    folder = tmp_path / "root" / "download_ckpts"
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + b"mine"
    mine = {"toy/a/x.pth": legacy, "toy/c/x.pth": b"another", "toy/readme.txt": b"my notes"}
    for name, content in (mine | {"toy/b/x.pth": b"broken"}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    dl.fetch("toy", tmp_path / "root")
    expected = mine | {"toy/b/x.pth": toy["toy/b/x.pth"]}
    assert {name: (folder / name).read_bytes() for name in tree(folder)} == expected


def test_fetch_takes_an_archive_placed_by_hand(server, toy, tmp_path):
    folder = tmp_path / "root" / "download_ckpts"
    folder.mkdir(parents=True)
    (folder / "toy.tar").write_bytes(server.files["/toy.tar"])
    dl.fetch("toy", tmp_path / "root")
    assert server.asked == []
    assert tree(folder) == set(toy)
    (folder / "toy/a/x.pth").unlink()
    (folder / "toy.tar").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"toy\.tar has md5:.*not the published"):
        dl.fetch("toy", tmp_path / "root")
    assert tree(folder) == set(toy) - {"toy/a/x.pth"}


def test_an_interrupted_unpacking_is_not_taken_for_whole(server, toy, tmp_path, monkeypatch):
    root = tmp_path / "root"
    replace = os.replace

    def interrupted(source, goal):
        if Path(goal).suffix == ".pth":
            raise KeyboardInterrupt
        replace(source, goal)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dl.fetch("toy", root)
    assert not [name for name in tree(root) if name.endswith(".pth") or ".unpacking" in name]
    monkeypatch.setattr(os, "replace", replace)
    dl.fetch("toy", root)
    assert len(server.asked) == 1
    assert tree(root) == {f"download_ckpts/{name}" for name in toy}


def test_fetch_verifies_single_files(server, tmp_path, monkeypatch):
    check = f"sha256:{hashlib.sha256(BODY).hexdigest()[:8]}"
    source = dl.Source(f"{server.url}/file.bin", "w", {"file.bin": check}, check)
    monkeypatch.setitem(dl.CATALOGUE, "single", lambda: [source])
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "file.bin").write_bytes(b"half a file")
    dl.fetch("single", tmp_path)
    dl.fetch("single", tmp_path)
    assert (tmp_path / "w" / "file.bin").read_bytes() == BODY
    assert len(server.asked) == 1


def fill_the_disk(monkeypatch, free):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(dl.shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - free, free))


def test_no_room_for_a_download_is_told_before_it_starts(server, tmp_path, monkeypatch):
    monkeypatch.setitem(
        dl.CATALOGUE, "single", lambda: [dl.Source(f"{server.url}/file.bin", "w", {"file.bin": MD5}, MD5)]
    )
    fill_the_disk(monkeypatch, 600_000)
    with pytest.raises(StorageError, match=f"^{tmp_path}/w: No space left on device; 1.0 MB are needed"):
        dl.fetch("single", tmp_path)
    assert (tmp_path / "w" / "file.bin.part").stat().st_size == 0
    (tmp_path / "w" / "file.bin.part").write_bytes(BODY[:500_000])  # what is lacking now has room
    dl.fetch("single", tmp_path)
    assert (tmp_path / "w" / "file.bin").read_bytes() == BODY


def test_no_room_for_the_contents_keeps_the_archive(tmp_path, monkeypatch):
    make_tar(tmp_path / "a.tar", {"a": b"0" * 500_000})
    fill_the_disk(monkeypatch, 10_000)
    with pytest.raises(StorageError, match=r"No space left on device; 0\.5 MB are needed"):
        dl.unpack(tmp_path / "a.tar", tmp_path, {"a": ""})
    assert tree(tmp_path) == {"a.tar"}


def test_a_folder_that_cannot_be_written_is_a_storage_error(toy, tmp_path):
    (tmp_path / "root").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="root"):
        dl.fetch("toy", tmp_path / "root")


def test_the_catalogue_is_well_formed():
    torchvision = pytest.importorskip("torchvision")
    assert list(dl.CATALOGUE) == ["cifar100", "cifar10", "teachers", "imagenet_teachers"]
    for name, sources in dl.CATALOGUE.items():
        for source in sources():
            assert source.url.startswith("https://")
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


# --- the command ----------------------------------------------------------------------------------------------------


def run_tool(*arguments):
    """Run it in a process of its own, which reaches no network."""
    nowhere = "http://127.0.0.1:9"
    env = os.environ | {"PYTHONPATH": str(CHECKOUT), "http_proxy": nowhere, "https_proxy": nowhere, "no_proxy": ""}
    command = [sys.executable, TOOL, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def tool_main():
    spec = importlib.util.spec_from_file_location("download_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_main_fetches_each_name(server, toy, tmp_path, capsys):
    tool_main()(["toy", "toy", "--into", str(tmp_path / "root")])
    printed = capsys.readouterr()
    assert tree(tmp_path / "root") == {f"download_ckpts/{name}" for name in toy}
    assert printed.out.splitlines()[-1].startswith("toy: toy.tar is in place already")
    assert printed.err == ""


def test_ctrl_c_exits_130_and_says_how_to_go_on(toy, tmp_path, monkeypatch, capsys):
    def stopped(url, part):
        raise KeyboardInterrupt

    monkeypatch.setattr(dl, "_download_rest", stopped)
    monkeypatch.setattr(sys, "argv", [str(TOOL), "toy", "--into", str(tmp_path / "root")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert stop.value.code == 130
    assert "running this again goes on" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["cifra100"], [], ["cifar100", "--onto", "x"]])
def test_a_wrong_command_line_is_one_line_and_exit_2(arguments):
    done = run_tool(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("edkd: error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.needs("data/cifar-100-python")
def test_real_cifar100_is_found_in_place(real_data):
    done = run_tool("cifar100", "--into", real_data)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"cifar100: cifar-100-python.tar.gz is in place already, whole, in {real_data / 'data'}\n"
