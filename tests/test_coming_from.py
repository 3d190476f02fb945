"""docs/coming-from.md: its commands and its Python blocks run as they are written.

Their small form: 8 images, one epoch and small networks under the known names; the long tests take
the networks themselves. It is set in copies of the YAML files, so that the commands stay as they
are.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

from edkd.engine.checkpoint import save_checkpoint
from edkd.engine.config.plugins import import_plugin
from edkd.models import get_model
from edkd.registry import DATASETS, MODELS
from tests.small import TinyNet

CHECKOUT = Path(__file__).resolve().parents[1]
PLUGIN = CHECKOUT / "tests" / "few_images.py"
TEXT = (CHECKOUT / "docs" / "coming-from.md").read_text(encoding="utf-8")

SECTIONS = {
    section.splitlines()[0]: section for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
}
PYTHON = {
    f"{title} {number}": block
    for title, section in SECTIONS.items()
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", section, re.DOTALL), 1)
}
WITH_COMMANDS = [title for title, section in SECTIONS.items() if "```bash" in section]

MODEL_NAMES = ("ResNet18", "resnet32x4", "resnet8x4", "resnet20", "resnet8")

SMALL = {"SOLVER": {"EPOCHS": 1, "AMP": "off"}, "LOG": {"WANDB": False, "TENSORBOARD_FREQ": 0}}


def commands_of(section):
    """The commands of a section, continued lines joined, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def changed(settings, changes):
    """A nested dictionary with other values for some of its keys."""
    merged = dict(settings)
    for key, value in changes.items():
        merged[key] = changed(merged.get(key, {}), value) if isinstance(value, dict) else value
    return merged


def write_changed(text, path, changes):
    """Write a YAML text with other values for some of its keys."""
    path.write_text(yaml.safe_dump(changed(yaml.safe_load(text), changes)))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """An empty folder with the configurations of the checkout, as the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(CHECKOUT / "configs", "configs")
    return tmp_path


@pytest.fixture(params=["few", pytest.param("few_cifar", marks=pytest.mark.slow)])
def small(request, checkout):
    """The same, with the small form in the bases, and a teacher for CIFAR-100."""
    import_plugin(str(PLUGIN))
    data = request.param
    torch.manual_seed(0)
    teacher = get_model(DATASETS.find(data).info["family"], "resnet32x4", 10)
    save_checkpoint({"model": teacher.state_dict()}, checkout / "resnet32x4")

    few = changed(SMALL, {"DATASET": {"TYPE": data}})
    of_cifar100 = changed(few, {"DISTILLER": {"TEACHER_CKPT": "resnet32x4"}})
    for name, changes in {"cifar100": of_cifar100, "cifar10": few, "digits": few}.items():
        folder = checkout / "configs" / name
        for path in [folder / "_base_.yaml", *folder.glob("kd.yaml")]:
            write_changed(path.read_text(), path, changes)

    yield few
    for name in ("few", "few_cifar"):
        DATASETS.remove(name)
    for name in MODEL_NAMES:
        MODELS.remove(name, "few")


@pytest.mark.parametrize("title", WITH_COMMANDS)
def test_commands(title, small, tool):
    for name, text in re.findall(r"```yaml\n# (\S+)\n(.*?)```", SECTIONS[title], re.DOTALL):
        write_changed(text, Path(name), small)

    for words in commands_of(SECTIONS[title]):
        assert words[0] == "python"
        name = Path(words[1]).stem
        data = small["DATASET"]["TYPE"]
        more = {"train": ["--plugin", PLUGIN], "eval": ["--plugin", PLUGIN, "-d", data]}
        done = tool(name, *words[2:], *more.get(name, []))
        assert done.code == 0, (words, done.err)


@pytest.mark.parametrize("block", PYTHON.values(), ids=PYTHON)
def test_python_blocks(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    images = TensorDataset(torch.randn(16, 3, 32, 32), torch.arange(16) % 4)
    names = {
        "student": TinyNet(channels=6),
        "teacher": TinyNet(channels=12),
        "train_loader": DataLoader(images, 8, shuffle=True),
        "val_loader": DataLoader(images, 16),
    }
    exec(compile(block, "docs/coming-from.md", "exec"), names)


def test_the_links_of_the_table_lead_to_sections():
    anchors = {re.sub(r"[^\w -]", "", title).replace(" ", "-").lower() for title in SECTIONS}
    assert set(re.findall(r"\]\(#(\S+)\)", TEXT)) == anchors


@pytest.mark.slow
def test_the_two_steps_on_the_real_digits(checkout, tool):
    """Not in the small form: with T 20, the student learns."""
    *steps, _ = commands_of(SECTIONS["Teacher/student scripts"])
    for words in steps[:2]:
        done = tool("train", *words[2:])
        assert done.code == 0, done.err
    reached = float(re.findall(r"best_test_top1 ([\d.]+)", done.out)[-1])
    assert reached > 85
