"""Files that are replaced as a whole, and what cannot be replaced."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edkd.engine.checkpoint import save_text
from edkd.whole_files import replace_file

needs_posix = pytest.mark.skipif(os.name != "posix", reason="for links, pipes and devices of POSIX")

TO_STANDARD_OUTPUT = """\
import sys
from pathlib import Path
from edkd import whole_files
whole_files._OPEN[sys.argv[1]] = whole_files._OPEN["/dev/stdout"]
print("before")
whole_files.replace_file(Path(sys.argv[1]), b"table\\n")
print("after")
"""
"""With another name than /dev/stdout, which a fault would replace for the whole machine."""


def test_a_file_is_replaced(tmp_path):
    file = tmp_path / "a.txt"
    replace_file(file, b"old")
    number = file.stat().st_ino
    replace_file(file, b"new")
    assert file.read_bytes() == b"new"
    assert file.stat().st_ino != number
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "a.txt"
    file.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        replace_file(file, b"new")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]


@needs_posix
@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_stays(tmp_path, is_there):
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "a.txt"
    if is_there:
        target.write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to(Path("far") / "a.txt")

    replace_file(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path / "far") == ["a.txt"]


@needs_posix
def test_a_link_to_itself_is_an_error(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(link)
    with pytest.raises(OSError, match="symbolic links"):
        replace_file(link, b"new")
    assert link.is_symlink()


@needs_posix
def test_a_device_is_written_to(tmp_path):
    """A link to it, so that the test cannot replace the device itself."""
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    replace_file(link, b"new")
    assert link.is_char_device()


@needs_posix
def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    replace_file(pipe, b"new")
    reader.join(10)
    assert read == [b"new"]
    assert pipe.is_fifo()


def test_a_folder_is_an_error(tmp_path):
    with pytest.raises(OSError, match="directory|denied"):
        replace_file(tmp_path, b"new")
    assert tmp_path.is_dir()


@needs_posix
def test_standard_output_is_a_pipe(tmp_path):
    command = [sys.executable, "-c", TO_STANDARD_OUTPUT, tmp_path / "stdout"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "before\ntable\nafter\n"


@needs_posix
def test_standard_output_is_a_file(tmp_path):
    """As with `>>`: what is in the file stays, and nothing overwrites the content."""
    file = tmp_path / "log.txt"
    file.write_text("old\n")
    command = [sys.executable, "-c", TO_STANDARD_OUTPUT, tmp_path / "stdout"]
    with open(file, "a") as output:
        subprocess.run(command, stdout=output, check=True)
    assert file.read_text() == "old\nbefore\ntable\nafter\n"


def test_a_text_that_cannot_be_encoded_is_escaped(tmp_path):
    """A byte of a file's name that is no UTF-8, in a table of predictions."""
    save_text("é \udcff", tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == r"é \udcff"
