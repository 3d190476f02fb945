"""The command report: its files, its options and its errors."""

import os
import re
import sys
from pathlib import Path

import pytest

from edkd.report.page import MARKER
from tests.runs import assert_refused, tree


@pytest.fixture
def run(tmp_path, write_run):
    """A finished run without weights."""
    return write_run(tmp_path / "runs" / "kd")


def test_it_writes_the_page_and_prints_the_table(tool, run, tmp_path):
    page = tmp_path / "my report.html"
    done = tool("report", run, "--output", page)
    assert done.code == 0
    assert "| kd | 78,042 | 1 | 70.00 | 70.00 |" in done.out
    assert done.out.endswith(f"report: {page}\n")
    text = page.read_text()
    assert "Not evaluated: kd: no weights in the folder" in text
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["my report.html"]


def test_the_default_is_report_html_in_the_working_folder(tool, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = tool("report", run, "--no-analysis")
    assert done.out.endswith("report: report.html\n")
    assert MARKER in (tmp_path / "report.html").read_text()[:4096]


def test_without_analysis_nothing_is_loaded(tool, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "edkd.report.analysis", None)  # an import would fail
    page = tmp_path / "report.html"
    assert tool("report", run, "--output", page, "--no-analysis").code == 0
    assert "Calibration" not in page.read_text()


def test_real_runs_are_evaluated(tool, train_tiny, tiny_folder, tmp_path):
    """A run with a plugin, and a run that is not finished."""
    assert train_tiny("a", "DISTILLER.TYPE", "KD", "SOLVER.EPOCHS", 1).code == 0
    unfinished = tiny_folder / "b"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("")

    page = tmp_path / "report.html"
    done = tool("report", tiny_folder, "--output", page, "--device", "cpu")
    assert done.code == 0, done.err
    text = page.read_text()
    for title in ("Calibration", "Agreement with the teacher", "Errors", "Environment"):
        assert f">{title}</h3>" in text
    assert f"<li>{unfinished} holds no finished run; it is left out</li>" in text
    assert "Confusion matrix" in text
    assert "only the student right" in text


def test_missing_weights_are_a_reason_in_the_page(tool, train_tiny, tiny_folder, tmp_path):
    for name in ("a", "b"):
        opts = ["DISTILLER.TYPE", "NONE", "SOLVER.EPOCHS", 1]
        assert train_tiny(name, *opts).code == 0
    for name in ("best", "student_best"):
        (tiny_folder / "b" / name).unlink()

    page = tmp_path / "report.html"
    done = tool("report", tiny_folder, "--output", page, "--device", "cpu")
    assert done.code == 0, done.err
    text = page.read_text()
    assert re.search("Not evaluated: b: .*has no student_best", text)
    assert "1 row could not be evaluated, see Calibration." in text


def test_a_report_is_replaced_and_another_file_is_not(tool, run, tmp_path):
    page = tmp_path / "page.html"
    assert tool("report", run, "--output", page, "--no-analysis").code == 0
    assert tool("report", run, "--output", page, "--no-analysis").code == 0

    other = tmp_path / "thesis.html"
    other.write_text("<html>my thesis</html>")
    before = tree(tmp_path)
    done = tool("report", run, "--output", other)
    assert_refused(done, "thesis.html exists and is no report of edkd, so it is not replaced")
    assert tree(tmp_path) == before


def test_wrong_targets_are_refused(tool, run, tmp_path):
    before = tree(tmp_path)
    refused = tool("report", run, "--output", tmp_path)
    assert_refused(refused, "is a folder; give the name of a file")
    refused = tool("report", run, "--output", tmp_path, "--picture", tmp_path / "curves.png")
    assert_refused(refused, "is a folder; give the name of a file")
    refused = tool("report", run, "--output", tmp_path / "nowhere" / "page.html")
    assert_refused(refused, "there is no folder .*nowhere; create it")
    assert tree(tmp_path) == before


@pytest.mark.skipif(os.name == "nt" or not os.getuid(), reason="the superuser may write anywhere")
def test_a_folder_without_permission_is_refused(tool, run, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert_refused(tool("report", run, "--output", folder / "page.html"), "is not writable")


def test_a_failed_write_keeps_the_old_page(tool, run, tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    assert tool("report", run, "--output", page, "--no-analysis").code == 0
    before = tree(tmp_path)

    def full(*names):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    refused = tool("report", run, "--output", page, "--no-analysis")
    assert_refused(refused, "cannot write .*page.html: No space left on device")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("package", ["plotly.offline", "jinja2"])
def test_a_missing_package_is_named(tool, run, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    refused = tool("report", run, "--output", tmp_path / "page.html")
    assert_refused(refused, "a report needs plotly and Jinja: pip install plotly jinja2")
    assert "| kd |" in refused.out
    assert not (tmp_path / "page.html").exists()


def test_a_picture_alone_needs_neither(tool, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert tool("report", run, "--picture", "curves.png").code == 0
    assert Path("curves.png").is_file()
    assert not Path("report.html").exists()
