"""The house: arrows point one way, and the engine knows no method, model or data set by name."""

import ast
from pathlib import Path

import pytest

from edkd.dataset import dataset_dict
from edkd.distillers import distiller_dict
from edkd.models import model_names

CHECKOUT = Path(__file__).resolve().parents[1]
ROOMS = ("distillers", "models", "dataset")
FILES = sorted(path for folder in ("edkd", "tools") for path in (CHECKOUT / folder).rglob("*.py"))
NAMES = {*dataset_dict, *distiller_dict, *(name for family in ("cifar", "imagenet") for name in model_names(family))}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(CHECKOUT).parts[:-1]
            yield ".".join([*package[: len(package) - node.level + 1], node.module]) if node.level else node.module


def room_of(path):
    return path.relative_to(CHECKOUT / "edkd").parts[0] if path.is_relative_to(CHECKOUT / "edkd") else "tools"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_imports_point_one_way(path):
    room = room_of(path)
    forbidden = {"edkd.tools", "tools"}
    if room in ROOMS:
        forbidden |= {"edkd.engine", *(f"edkd.{other}" for other in ROOMS if other != room)}
    elif room not in ("tools", "engine", "notebook"):  # errors, paths, download: below all rooms
        forbidden |= {"edkd.engine", *(f"edkd.{other}" for other in ROOMS)}
    wrong = [name for name in imports(path) for bad in forbidden if name == bad or name.startswith(f"{bad}.")]
    assert wrong == []


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in ("engine", "tools")], ids=lambda p: p.name)
def test_the_engine_names_no_method_model_or_data_set(path):
    if path.name == "cfg.py":  # the published defaults name some
        return
    constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    assert constants & NAMES == set()


def test_what_a_newcomer_reads_is_short():
    files = ["tools/train.py", "edkd/engine/trainer.py", "edkd/distillers/_base.py", "edkd/distillers/kd.py"]
    assert sum(len((CHECKOUT / file).read_text().splitlines()) for file in files) <= 600


def test_every_method_is_one_file_named_like_it():
    for name, cls in distiller_dict.items():
        module = cls.__module__.rsplit(".", 1)[1]
        assert name.lower() == module or (name, module) == ("NONE", "vanilla")
