"""The notebooks run in Jupyter."""

import json
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NAMES = ("hinton_distiller", "mutual_learning", "your_own_method")


def run(name, folder):
    """Run a notebook in a folder; return its outputs."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    used = [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
    assert not used, "clear the outputs"

    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def check(name, folder, outputs):
    """Files lie below output/, which git ignores; bars and pictures are shown; students learn."""
    assert {entry.name for entry in folder.iterdir()} == {"output"}
    kinds = Counter(kind for output in outputs for kind in output.get("data", ()))
    assert kinds["application/vnd.jupyter.widget-view+json"]  # progress bars
    assert kinds["image/png"] == (name == "mutual_learning")
    assert not any("Warning" in output.get("text", "") for output in outputs)
    for result in folder.glob("output/distill/*/result.json"):
        assert json.loads(result.read_text())["last_test_top1"] > 80


def test_a_notebook_runs(tmp_path):
    check("your_own_method", tmp_path, run("your_own_method", tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_twice_in_the_same_folder(name, tmp_path):
    run(name, tmp_path)
    check(name, tmp_path, run(name, tmp_path))


def test_all_notebooks_are_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)
