"""docs/extending.md: each recipe is one new file, and its commands run as they are written."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
TEXT = (CHECKOUT / "docs" / "extending.md").read_text(encoding="utf-8")

SECTIONS = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
RECIPES = [section for section in SECTIONS if "```python\n# " in section]


def code_of(section: str) -> dict[str, str]:
    """The files of a recipe: name -> content."""
    blocks = re.findall(r"```python\n(# (\S+\.py).*?)```", section, flags=re.DOTALL)
    return {name: text for text, name in blocks}


def commands_of(section: str) -> list[str]:
    """The commands of a recipe, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0] for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.slow
@pytest.mark.parametrize("section", RECIPES, ids=lambda section: section.splitlines()[0])
def test_a_recipe_runs_as_written(section, tmp_path):
    for name, text in code_of(section).items():
        (tmp_path / name).write_text(text)
    for folder in ("configs", "tools"):
        (tmp_path / folder).symlink_to(CHECKOUT / folder)

    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}
    commands = commands_of(section)
    assert commands
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "python", command
        if words[1] == "tools/train.py":
            words += ["LOG.WANDB", "False"]
        run = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, f"{command}\n{run.stderr}"


def test_there_is_a_recipe_for_each_part():
    titles = " ".join(section.splitlines()[0].lower() for section in RECIPES)
    for part in ("method", "model", "data set", "update rule", "key"):
        assert part in titles
