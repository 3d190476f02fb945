"""Paths on which no run can be written, or from which nothing can be read."""

import json
import os

import pytest

from edkd.engine.config.load import load_config
from edkd.errors import UserError
from tests.runs import assert_refused


def test_a_file_where_a_folder_is_needed(train_tiny, tmp_path):
    """A kind of report: "cannot create the folder a/b/c: Not a directory" does not say which.

    It came after the data were loaded. The message now names the file, and comes first.
    """
    file = tmp_path / "file"
    file.touch()
    for prefix in (file, file / "below"):
        assert_refused(train_tiny("a", "LOG.PREFIX", prefix), f"{file} is a file, not a folder")


def test_a_file_in_the_place_of_the_run(train_tiny, tmp_path):
    """A kind of report: "is not empty" about what is no folder."""
    (tmp_path / "distill").mkdir()
    (tmp_path / "distill" / "a").touch()
    assert_refused(train_tiny("a"), "distill/a is a file; remove it, or give")


def test_a_link_to_a_disk_that_is_not_mounted(train_tiny, tmp_path):
    """A kind of report: the output is a link to another disk; its message was about the run."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk")
    message = f"{link} is a link to {tmp_path / 'disk'}, which does not exist"
    assert_refused(train_tiny("a", "LOG.PREFIX", link), message)
    assert not (tmp_path / "disk").exists()


def test_a_working_folder_that_was_deleted(train_tiny, tmp_path, monkeypatch):
    """A kind of report: oneMKL ends the process with an error about a library of torch."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert_refused(train_tiny("a"), "no longer exists; change to another one with cd")


@pytest.mark.parametrize("command", ["train", "report"])
def test_a_folder_without_permission(tool, train_tiny, tmp_path, monkeypatch, command):
    """A kind of report: a traceback, or "no finished run", about a folder of another user."""
    closed = tmp_path / "closed"
    closed.mkdir()

    def refusing(call, start):
        def refuse(path=".", *args, **kwargs):
            if str(path).startswith(start):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *args, **kwargs)

        return refuse

    monkeypatch.setattr(os, "listdir", refusing(os.listdir, str(closed)))
    monkeypatch.setattr(os, "stat", refusing(os.stat, f"{closed}/"))
    if command == "train":
        done = train_tiny("a", "LOG.PREFIX", closed)
    else:
        monkeypatch.setattr(os.path, "isdir", lambda path: True)
        done = tool("report", closed)
    assert_refused(done, rf"cannot access {closed}.*Permission denied", 5)


def test_one_damaged_cache_does_not_hide_the_others(tool, train_tiny, tmp_path):
    """A kind of report: `memo list` ends at the first cache that it cannot read."""
    assert train_tiny("a", "DISTILLER.TYPE", "KD", "SOLVER.EPOCHS", 1).code == 0
    caches = tmp_path / "teacher_memo"
    damaged = caches / "tiny_a_0123456789abcdef"
    damaged.mkdir()
    (damaged / "about.json").touch()

    done = tool("memo", "list", "--folder", caches)
    assert "71 of" in done.out
    assert_refused(done, "tiny_a_0123456789abcdef/about.json is damaged; delete the folder")

    file = damaged / "about.json"
    assert_refused(tool("memo", "list", "--folder", file), f"{file} is a file")


def test_shipped_configurations_are_found_from_every_folder(tmp_path, monkeypatch):
    """A kind of report: the commands of the README fail in the folder of one's own images."""
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/folder/kd.yaml").DISTILLER.TYPE == "KD"

    (tmp_path / "configs/folder").mkdir(parents=True)
    (tmp_path / "configs/folder/kd.yaml").write_text("DISTILLER: {TYPE: DKD}")
    assert load_config("configs/folder/kd.yaml").DISTILLER.TYPE == "DKD"
    with pytest.raises(UserError, match="no such file"):
        load_config("configs/folder/dkd.yaml.yaml")


@pytest.mark.parametrize("name", ["~\0", "~\ud800", "${\ud800}", "a\0.yaml", "x" * 300], ids=ascii)
def test_a_name_that_no_file_can_have(tmp_path, name):
    """A tilde before such a character ended in a ValueError of the password database."""
    with pytest.raises(UserError, match="no file can be called|is a .yaml file"):
        load_config(name)

    file = tmp_path / "x.yaml"
    file.write_text(f"_BASE_: {json.dumps(name)}\n")
    with pytest.raises(UserError, match="must be the name|no file can be called|is a .yaml file"):
        load_config(str(file))
