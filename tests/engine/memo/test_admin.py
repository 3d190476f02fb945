"""Listing, verifying and deleting caches, and the command that does it. No torch."""

import json

import numpy as np
import pytest

from edkd.commands.memo import main
from edkd.engine.memo.admin import delete_memo, find_memos, survey
from edkd.engine.memo.files import ABOUT, segment_files
from edkd.engine.memo.store import Store
from edkd.errors import StorageError, UserError

DESCRIPTION = {
    "dataset": "digits",
    "teacher": "resnet14",
    "num_keys": 50,
    "num_classes": 2,
    "dtype": "float32",
    "row_bytes": 8,
}
ONE = "digits_resnet14_0123456789abcdef"
TWO = "digits_resnet14_fedcba9876543210"


def make_memo(root, name=ONE, keys=range(10), **about):
    store = Store(root, name, DESCRIPTION | about, 1e9, print)
    store.add(np.array(keys), np.ones((len(keys), 8), np.uint8))
    return store.folder


@pytest.fixture
def memo(capsys):
    """Run the command; what it printed."""

    def run(*words):
        main([str(word) for word in words])
        return capsys.readouterr().out

    return run


def test_the_line_of_a_cache(tmp_path):
    folder = make_memo(tmp_path)
    make_memo(tmp_path, keys=[5, 6, 49])
    line, damaged = survey(folder)
    assert line == f"{ONE}: resnet14 on digits, float32, 11 of 50 views (22.0 %), 0.0 MB"
    assert damaged == []


def test_the_line_names_a_view_that_is_not_the_usual_one(tmp_path):
    assert (
        "resnet14 on digits, float32, view strong, 10"
        in survey(make_memo(tmp_path, view="strong")).line
    )


def test_a_cache_without_segments(tmp_path):
    folder = make_memo(tmp_path)
    for path in segment_files(folder):
        path.unlink()
    assert "0 of 50 views (0.0 %)" in survey(folder, verify=True).line


def test_verify_finds_the_damaged_segments(tmp_path):
    folder = make_memo(tmp_path)
    (whole,) = segment_files(folder)
    bad = folder / ("0" * 32)
    bad.write_bytes(b"x")
    assert survey(folder, verify=True).damaged == [bad]
    assert survey(folder).damaged == []
    assert whole.exists()
    assert bad.exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        "[" * 5000,
        json.dumps(DESCRIPTION | {"row_bytes": "x"}),
        json.dumps(DESCRIPTION | {"num_keys": 0}),
        json.dumps(DESCRIPTION | {"num_keys": 1e999}),
        json.dumps(DESCRIPTION | {"row_bytes": -4}),
        json.dumps(DESCRIPTION | {"teacher": "two\nlines"}),
        json.dumps(DESCRIPTION | {"view": "\x1b[31m"}),
        json.dumps({"num_keys": 9}),
    ],
)
def test_a_damaged_description_is_one_line(tmp_path, content):
    folder = make_memo(tmp_path)
    (folder / ABOUT).write_text(content)
    with pytest.raises(UserError, match=r"about.json is damaged; delete the folder"):
        survey(folder)


def test_an_unreadable_file_is_a_storage_error(tmp_path):
    folder = make_memo(tmp_path)
    (folder / ("0" * 32)).symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="cannot read"):
        survey(folder, verify=True)


def test_find(tmp_path):
    one, two = make_memo(tmp_path), make_memo(tmp_path, TWO)
    (tmp_path / "web").mkdir()
    (tmp_path / "web_0123456789abcdef").mkdir()  # without a file of a cache
    assert find_memos(tmp_path) == [one, two]
    assert find_memos(tmp_path, [TWO]) == [two]
    assert find_memos(tmp_path / "absent") == []
    with pytest.raises(UserError, match=f"did you mean '{ONE}'"):
        find_memos(tmp_path, [ONE[:-1]])


def test_a_cache_without_its_description_is_named_and_deleted(tmp_path, memo):
    """Its segments count for TEACHER_MEMO.MAX_GB."""
    folder = make_memo(tmp_path)
    (folder / ABOUT).unlink()
    with pytest.raises(UserError, match=f"{folder}/about.json is damaged; delete the folder"):
        memo("list", "--folder", tmp_path)
    assert memo("delete", "--all", "--folder", tmp_path) == f"deleted {folder}\n"


def test_delete_leaves_other_files(tmp_path):
    folder = make_memo(tmp_path)
    (folder / "thesis.tex").write_text("x")
    with pytest.raises(StorageError, match="cannot delete"):
        delete_memo(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_command_list(tmp_path, memo):
    assert memo("list", "--folder", tmp_path) == f"no teacher caches in {tmp_path}\n"
    make_memo(tmp_path)
    make_memo(tmp_path, TWO)
    assert memo("list", "--folder", tmp_path).count("10 of 50 views") == 2
    assert memo("list", TWO, "--folder", tmp_path).startswith(f"{TWO}: ")


def test_command_verify(tmp_path, memo):
    folder = make_memo(tmp_path)
    make_memo(tmp_path, keys=[49])
    make_memo(tmp_path, TWO)
    assert memo("verify", "--folder", tmp_path).splitlines()[-1] == "all intact (3 files)"
    assert "all intact" not in memo("list", "--folder", tmp_path)

    bad = folder / ("0" * 32)
    bad.write_bytes(b"x")
    with pytest.raises(UserError, match=f"damaged: {bad}; 3 of 4 files are intact; the next run"):
        memo("verify", "--folder", tmp_path)
    memo("verify", TWO, "--folder", tmp_path)


def test_command_delete(tmp_path, memo):
    one, two = make_memo(tmp_path), make_memo(tmp_path, TWO)
    with pytest.raises(UserError, match="--all"):
        memo("delete", "--folder", tmp_path)
    assert memo("delete", ONE, "--folder", tmp_path) == f"deleted {one}\n"
    assert two.exists()
    assert memo("delete", "--all", "--folder", tmp_path) == f"deleted {two}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("list", "--all"), "list has no --all: without names"),
        (("delete", ONE, "--all"), f"give either {ONE} or --all"),
        (("list", "--folder", "absent"), "no folder absent; correct --folder"),
    ],
)
def test_options_that_would_do_nothing(tmp_path, memo, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        memo(*words)


def test_command_delete_leaves_what_is_no_cache(tmp_path, memo):
    mine = tmp_path / "web"
    mine.mkdir()
    (mine / ABOUT).write_text("{}")
    make_memo(tmp_path)
    memo("delete", "--all", "--folder", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["web"]
    assert (mine / ABOUT).exists()
