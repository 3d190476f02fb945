"""The notebooks run in Jupyter, show what a lecture needs, and learn."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NAMES = ("hinton_distiller", "mutual_learning", "your_images", "your_own_method")
RUN_TWICE = "your_own_method"
"""It is run again in the same folder, with results that are there."""
SHORT = dict(SEEDS=2, SWEEP_SEEDS=1, EPOCHS=5, TEACHER_EPOCHS=5, RESNET_EPOCHS=1)


def load_executor():
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name, folder, settings=None):
    """Run a notebook in a folder; return its outputs."""
    notebook = load_executor().execute(FOLDER / f"{name}.ipynb", folder, settings)
    return outputs_of(notebook)


def outputs_of(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def check(folder, outputs):
    """Files lie below output/, which git ignores; bars and pictures are shown."""
    assert {entry.name for entry in folder.iterdir()} <= {"output"}
    kinds = Counter(kind for output in outputs for kind in output.get("data", ()))
    assert kinds["application/vnd.jupyter.widget-view+json"]
    assert kinds["image/png"] >= 5
    assert not any("Warning" in output.get("text", "") for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_in_a_short_form(name, tmp_path):
    check(tmp_path, run(name, tmp_path, SHORT))
    if name != RUN_TWICE:
        return

    check(tmp_path, run(name, tmp_path, SHORT))
    results = [*tmp_path.glob("output/*/distill/*/result.json")]
    assert results
    for result in results:
        assert json.loads(result.read_text())["last_test_top1"] > 60


@pytest.mark.parametrize("name", NAMES)
def test_the_saved_outputs(name):
    """Each has pictures, an equation and a verdict, is small, and names no place of a machine."""
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 400_000

    outputs = outputs_of(notebook)
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [
        output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 5
    assert max(map(len, pictures)) < 100_000

    text = "".join(output.get("text", "") for output in outputs)
    assert "student alone" in text
    assert "95 % interval" in text
    assert not [word for word in ("/root", "/tmp", "/home", "Warning", "warning") if word in text]
    prose = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "$$" in prose


def test_all_notebooks_are_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)
