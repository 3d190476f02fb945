"""Pages that are run as a newcomer would: their Python blocks, and the first runs on digits."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

from tests.docs.pages import CHECKOUT, DOCS, Command, code, commands
from tests.small import TinyNet


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the configurations of the checkout, as the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(CHECKOUT / "configs", "configs")
    return tmp_path


def loaders():
    """Two loaders of 16 images of noise."""
    images = TensorDataset(torch.randn(16, 3, 32, 32), torch.arange(16) % 4)
    return DataLoader(images, 8, shuffle=True), DataLoader(images, 16)


def test_the_blocks_of_the_python_page(folder, monkeypatch):
    """The first block has networks and loaders of the reader's own; here they are tiny."""
    import edkd

    distill, train, losses = code(DOCS / "python.md", "python")
    torch.manual_seed(0)
    train_loader, val_loader = loaders()
    names = dict(student=TinyNet(6), teacher=TinyNet(12))
    names |= dict(train_loader=train_loader, val_loader=val_loader)
    exec(compile(distill, "docs/python.md", "exec"), names)
    assert (folder / "output/distill").is_dir()

    # One epoch of digits takes seconds; the form of the call is what is tested here.
    called = []
    result = {"last_test_top1": 1.0, "best_test_top1": 1.0, "best_epoch": 1}
    monkeypatch.setattr(edkd, "train", lambda cfg: called.append(cfg) or result, raising=False)
    exec(compile(train, "docs/python.md", "exec"), {})
    assert called[0].SOLVER.EPOCHS == 1

    exec(compile(losses, "docs/python.md", "exec"), {})


@pytest.fixture
def short(folder):
    """The same folder, where a run on digits has one epoch."""
    base = Path("configs/digits/_base_.yaml")
    settings = yaml.safe_load(base.read_text())
    settings["SOLVER"]["EPOCHS"] = 1
    base.write_text(yaml.safe_dump(settings))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["getting-started", "ideas", "combining", "questions"])
def test_commands_on_digits(name, short, tool):
    """Each command as it is written, in the order of the page."""
    typed = [each for each in commands(DOCS / f"{name}.md") if "digits" in " ".join(each.words)]
    if name != "getting-started":
        typed.insert(0, Command("", "train", ["--cfg", "configs/digits/vanilla/resnet20.yaml"]))

    for command in typed:
        if command.name == "sweep" and "--list" not in command.words:
            continue  # ten runs, which tests/sweep has in a small form
        if "output/digits_suite" in command.words:
            continue  # the table of these runs
        done = tool(command.name.replace("-", "_"), *command.words)
        assert done.code == 0, (command, done.err)

    for block in code(DOCS / f"{name}.md", "python"):
        exec(compile(block, name, "exec"), {})
