"""The row store: shared without locks, never trusted unverified, and never the end of a run."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from edkd.engine.memo.files import (
    ABOUT,
    folder_size,
    memo_files,
    memo_folders,
    segment_files,
    segment_name,
)
from edkd.engine.memo.store import KEY_BYTES, Store
from edkd.whole_files import replace_file

NAME = "memo_0123456789abcdef"
ABOUT_STORE = {"num_keys": 100, "row_bytes": 8}


def make_store(root, lines=None, name=NAME, limit=1e9, about=ABOUT_STORE):
    lines = [] if lines is None else lines
    return Store(root, name, about, limit, lines.append)


def make_rows(keys, row_bytes=8):
    """Rows that depend on their keys alone."""
    keys = np.asarray(keys)[:, None]
    return ((keys * 7 + np.arange(row_bytes)) % 256).astype(np.uint8)


def add(store, *keys):
    store.add(np.array(keys), make_rows(keys))


def assert_holds(store, *keys):
    rows, found = store.read(np.array(keys))
    assert found.all()
    assert (rows == make_rows(keys)).all()


def test_rows_are_read_by_key_from_this_store_and_another(tmp_path):
    lines = []
    store = make_store(tmp_path, lines)
    add(store, 5, 99, 0)
    for each in (store, make_store(tmp_path, lines)):
        rows, found = each.read(np.array([0, 1, 5, 99]))
        assert found.tolist() == [True, False, True, True]
        assert (rows[found] == make_rows([0, 5, 99])).all()
        assert not rows[1].any()
        assert each.contains().nonzero()[0].tolist() == [0, 5, 99]
    assert not lines


def test_a_segment_takes_no_more_than_its_keys_and_rows(tmp_path):
    store = make_store(tmp_path)
    add(store, 5, 99, 0)
    (segment,) = segment_files(store.folder)
    assert segment.stat().st_size == 3 * (KEY_BYTES + 8)


def test_refresh_finds_what_another_store_wrote(tmp_path):
    one, two = make_store(tmp_path), make_store(tmp_path)
    add(one, 1, 2)
    assert not two.read(np.array([1, 2]))[1].any()
    two.refresh()
    assert_holds(two, 2, 1)


def test_rows_of_many_segments_and_of_the_same_keys(tmp_path):
    store = make_store(tmp_path)
    for start in range(0, 50, 10):
        add(store, *range(start, start + 15))
    assert_holds(store, *range(54, -1, -3))
    assert_holds(make_store(tmp_path), *range(55))


def test_no_keys_and_no_files(tmp_path):
    store = make_store(tmp_path / "absent")
    rows, found = store.read(np.array([], int))
    assert rows.shape == (0, 8)
    assert found.shape == (0,)
    assert not store.contains().any()


# Damaged and foreign files.


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)


def change_a_key(path):
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def make_a_key_too_large(path):
    path.write_bytes(b"\x7f" * path.stat().st_size)


def make_keys_negative(path):
    path.write_bytes(b"\xff" * path.stat().st_size)


def cut_a_row(path):
    os.truncate(path, path.stat().st_size - KEY_BYTES - 8)  # the size alone does not show it


def cut_in_half(path):
    os.truncate(path, path.stat().st_size // 2 + 1)


def make_empty(path):
    os.truncate(path, 0)


DAMAGES = [
    flip_a_bit,
    change_a_key,
    make_a_key_too_large,
    make_keys_negative,
    cut_a_row,
    cut_in_half,
    make_empty,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_segment_is_refused_and_can_be_written_again(tmp_path, damage):
    writer = make_store(tmp_path)
    add(writer, 1, 2, 3)
    (victim,) = segment_files(writer.folder)
    add(writer, 50, 51)
    damage(victim)

    lines = []
    store = make_store(tmp_path, lines)
    rows, found = store.read(np.array([1, 2, 3, 50, 51]))
    assert found.tolist() == [False, False, False, True, True]
    assert not rows[:3].any()
    assert len(lines) == 1
    assert f"{victim} is damaged" in lines[0]
    assert not victim.exists()

    add(store, 1, 2, 3)
    assert_holds(store, 1, 2, 3, 50, 51)
    assert_holds(make_store(tmp_path, lines), 1, 2, 3, 50, 51)
    assert len(lines) == 1


def test_a_segment_of_another_store_is_refused(tmp_path):
    foreign = make_store(tmp_path, name="memo_fedcba9876543210")
    add(foreign, 1, 2)
    own = make_store(tmp_path)
    own.folder.mkdir()
    for path in segment_files(foreign.folder):
        path.rename(own.folder / path.name)

    lines = []
    assert not make_store(tmp_path, lines).read(np.array([1, 2]))[1].any()
    assert "belongs to another cache" in lines[0]


def test_a_segment_that_was_cut_after_it_was_verified(tmp_path):
    store = make_store(tmp_path)
    add(store, 1, 2, 3)
    assert_holds(store, 1, 2, 3)
    (path,) = segment_files(store.folder)
    cut_a_row(path)
    assert not store.read(np.array([1, 2, 3]))[1].any()


def test_a_removed_segment_is_absent(tmp_path):
    store = make_store(tmp_path)
    add(store, 1, 2, 3)
    (path,) = segment_files(store.folder)
    path.unlink()
    assert not store.read(np.array([1, 2, 3]))[1].any()
    add(store, 1, 2, 3)
    assert_holds(store, 1, 2, 3)


def test_an_error_of_the_disk_is_not_damage(tmp_path):
    """A folder in the file's place raises an OSError when it is read."""
    lines = []
    add(make_store(tmp_path), 1)
    store = make_store(tmp_path, lines)
    (path,) = segment_files(store.folder)
    kept = path.rename(tmp_path / "kept")
    path.mkdir()
    assert not store.read(np.array([1]))[1].any()
    assert not lines

    path.rmdir()
    kept.rename(path)
    store.refresh()
    assert_holds(store, 1)
    assert not lines


def test_a_link_elsewhere_is_refused_and_its_target_untouched(tmp_path):
    store = make_store(tmp_path / "memos")
    add(store, 1)
    outside = tmp_path / "thesis.tex"
    outside.write_bytes(64 * b"x")
    (store.folder / ("0" * 32)).symlink_to(outside)
    (store.folder / ("1" * 32)).symlink_to(tmp_path)
    assert_holds(make_store(tmp_path / "memos"), 1)
    assert len(segment_files(store.folder)) == 1
    assert outside.read_bytes() == 64 * b"x"


# A disk that is full or fails.


def test_the_limit_ends_writing_and_is_logged_once(tmp_path):
    lines = []
    store = make_store(tmp_path, lines, limit=100)
    add(store, 1, 2)
    add(store, *range(3, 30))
    add(store, 31)
    assert len(lines) == 1
    assert "MAX_GB is reached" in lines[0]
    assert len(segment_files(store.folder)) == 1
    assert_holds(store, 1, 2)


def test_a_full_disk_ends_writing_and_leaves_no_partial_file(tmp_path):
    lines = []
    store = make_store(tmp_path, lines)
    add(store, 1, 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        add(store, *range(50))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    add(store, 3)
    assert len(lines) == 1
    assert "nothing more is written" in lines[0]
    assert len(memo_files(store.folder)) == 2  # about.json and the first segment
    assert_holds(store, 1, 2)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    lines = []
    store = make_store(tmp_path / "file" / "below", lines)
    add(store, 1)
    add(store, 2)
    assert len(lines) == 1
    assert not store.contains().any()


def test_an_interrupted_write_leaves_no_partial_file(tmp_path):
    with pytest.raises(TypeError):
        replace_file(tmp_path / ABOUT, "not bytes")
    assert not list(tmp_path.iterdir())


def test_only_caches_count_and_only_stale_partial_files_are_removed(tmp_path):
    store = make_store(tmp_path)
    add(store, 1)
    other = tmp_path / "web"
    other.mkdir()
    (other / ABOUT).write_text("x" * 10**6)
    for folder in (other, store.folder):
        for name, age in (("0" * 32, 0), ("1" * 32, 1e9)):
            path = folder / f"{name}.ab12.partial"
            path.write_bytes(b"xyz")
            os.utime(path, (1e9, path.stat().st_mtime - age))

    assert folder_size(tmp_path) == sum(p.stat().st_size for p in memo_files(store.folder))
    assert memo_folders(tmp_path) == [store.folder]
    assert len(list(other.iterdir())) == 3
    assert [p.name for p in store.folder.glob("*.partial")] == ["0" * 32 + ".ab12.partial"]


def test_many_segments_need_no_open_files(tmp_path):
    store = make_store(tmp_path)
    for number in range(100):
        add(store, number)
    again = make_store(tmp_path)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert_holds(again, *range(100))
    assert_holds(again, *range(100))
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 1


# Several processes, and what they import.

WRITER = """
import sys
from pathlib import Path
import numpy as np
from edkd.engine.memo.store import Store

store = Store(Path(sys.argv[1]), sys.argv[2], {"num_keys": 100, "row_bytes": 8}, 1e9, print)
for start in range(0, 100, 5):
    store.refresh()
    keys = np.arange(start, start + 5)
    rows, found = store.read(keys)
    computed = ((keys[:, None] * 7 + np.arange(8)) % 256).astype(np.uint8)
    assert (rows[found] == computed[found]).all()
    if not found.all():
        store.add(keys[~found], computed[~found])
"""


def test_processes_share_a_folder_without_a_lock(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path), NAME]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    outputs = [writer.communicate(timeout=60)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert outputs == [b"", b"", b""]

    assert_holds(make_store(tmp_path), *range(100))
    files = segment_files(tmp_path / NAME)
    assert len(files) == 20
    assert all(segment_name(tmp_path / NAME, path.read_bytes()) == path.name for path in files)
    assert not list(tmp_path.rglob("*.partial"))


def test_the_store_and_the_command_import_no_torch():
    script = (
        "import edkd.commands.memo, edkd.engine.memo.keys, sys; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
