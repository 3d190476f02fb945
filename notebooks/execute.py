"""Run the notebooks and save their outputs: python notebooks/execute.py [NAME ...]

Each runs in an empty folder. Progress bars, which only a running notebook can draw, are not saved.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(path: Path, folder: Path, settings: Mapping[str, Any] | None = None) -> Any:
    """A notebook with its outputs.

    Args:
        path: the notebook.
        folder: in which it runs.
        settings: values that replace those of its cell with the tag `parameters`.
    """
    notebook = nbformat.read(path, as_version=4)
    if settings:
        lines = [f"{name} = {value!r}" for name, value in settings.items()]
        cell = nbformat.v4.new_code_cell("\n".join(lines))
        notebook.cells.insert(number_of_parameters(notebook) + 1, cell)

    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=900, resources=resources, record_timing=False)
    client.execute()
    return notebook


def number_of_parameters(notebook: Any) -> int:
    """The number of the cell with the tag `parameters`."""
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    return next(number for number, names in enumerate(tags) if "parameters" in names)


def without_bars(notebook: Any) -> Any:
    """The notebook without progress bars and their state."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            outputs = cell.outputs
            cell.outputs = [output for output in outputs if WIDGET not in output.get("data", {})]
    return notebook


def main(names: list[str]) -> None:
    """Run the notebooks of these names, or all."""
    paths = [FOLDER / f"{name}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            notebook = without_bars(execute(path, Path(folder)))
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
