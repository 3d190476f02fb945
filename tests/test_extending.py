"""The recipes for parts of one's own: each is one new file, and its commands run as written.

docs/extending.md and the pages docs/add-*.md.
"""

import os
import re
import subprocess
import sys

import pytest

from tests.docs.pages import CHECKOUT, DOCS, code, commands

RECIPES = [*sorted(DOCS.glob("add-*.md")), DOCS / "extending.md"]


def files_of(page):
    """The files of a recipe: name -> content."""
    blocks = [*code(page, "python"), *code(page, "yaml")]
    named = [(re.match(r"# (\S+\.(?:py|yaml))\n", block), block) for block in blocks]
    return {name[1]: block for name, block in named if name}


@pytest.mark.slow
@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_a_recipe_runs_as_written(page, tmp_path):
    """All commands but whole sweeps, which take minutes; those are listed."""
    for name, text in files_of(page).items():
        (tmp_path / name).write_text(text)
    (tmp_path / "configs").symlink_to(CHECKOUT / "configs")

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}
    typed = [each for each in commands(page) if each.name != "sweep" or "--list" in each.words]
    assert typed
    for _, name, words in typed:
        more = ["LOG.WANDB", "False"] if name == "train" else []
        done = subprocess.run(
            [sys.executable, "-m", "edkd", name, *words, *more],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{name} {' '.join(words)}\n{done.stderr}"


def test_there_is_a_recipe_for_each_part():
    titles = " ".join(page.read_text(encoding="utf-8").lower() for page in RECIPES)
    for part in ("a method", "a model", "a data set", "an update rule"):
        assert f"# add {part}" in titles
    assert "## a configuration key" in titles
    assert all(files_of(page) for page in RECIPES)


def test_the_method_of_the_readme_is_the_smallest_one():
    """The README shows the file of docs/add-a-method.md, with a comment of its own."""
    shown, *_ = code(CHECKOUT / "README.md", "python")
    tested = files_of(DOCS / "add-a-method.md")["my_method.py"]
    assert shown.split("\n", 1)[1] == tested.split("\n", 1)[1]
