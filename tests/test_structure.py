"""The structure: imports point one way, the engine names no method, the code has air."""

import ast
import importlib.util
from pathlib import Path

import pytest

from edkd.dataset import dataset_dict
from edkd.distillers import method_names
from edkd.models import model_names
from edkd.registry import METHODS, MODELS

CHECKOUT = Path(__file__).resolve().parents[1]
FILES = sorted(path for folder in ("edkd", "tools") for path in (CHECKOUT / folder).rglob("*.py"))
PARTS = ("distillers", "models", "dataset")
TOP = {"api.py", "__main__.py", "__init__.py"}

NO_TORCH = [
    "registry.py",
    "keys.py",
    "errors.py",
    "signals.py",
    "invocation.py",
    "paths.py",
    "engine/memo/store.py",
    "engine/memo/keys.py",
    "engine/memo/admin.py",
    "engine/config/shared.py",
    "engine/abandoned.py",
    "folder_lock.py",
    "engine/log/background.py",
    "engine/log/status_file.py",
    "engine/log/time_left.py",
    "listing/cached.py",
    "listing/configs.py",
    "listing/kinds.py",
    "listing/papers.py",
    "results/runs.py",
    "results/table.py",
    "results/figures.py",
    "sweep/child.py",
    "sweep/job.py",
    "sweep/ray_task.py",
]

# Published default values of keys, and the names of commands.
ALLOWED = {"cifar100", "imagenet", "digits", "NONE", "resnet32", "ResNet50"}


def imports(path: Path) -> list[str]:
    """Modules that a file imports, those within functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module or "")
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def room_of(path: Path) -> str:
    """The package below edkd/ that a file belongs to; "base" for single files."""
    if not path.is_relative_to(CHECKOUT / "edkd"):
        return "tools"
    first, *rest = path.relative_to(CHECKOUT / "edkd").parts
    if rest:
        return first
    return "top" if first in TOP else "base"


def forbidden(room: str) -> set[str]:
    """Packages that a package must not import."""
    programs = {
        "edkd.notebook",
        "edkd.report",
        "edkd.sweep",
        "edkd.tune",
        "edkd.commands",
        "edkd.api",
    }
    above = {"edkd.engine", "edkd.results"} | programs
    parts = {f"edkd.{part}" for part in PARTS}
    if room == "base":
        return above | parts
    if room in PARTS:
        return above | parts - {f"edkd.{room}"}
    if room == "engine":
        return above - {"edkd.engine"}
    if room == "results":
        return (above | parts | {"torch"}) - {"edkd.results"}
    if room == "watch":
        return programs | parts | {"torch", "edkd.results"}
    if room == "listing":
        return programs
    if room == "notebook":
        return {"edkd.results", "edkd.report", "edkd.sweep", "edkd.tune", "edkd.commands"}
    if room in ("report", "sweep"):
        return programs - {f"edkd.{room}"}
    if room == "tune":  # a study ends with a sweep over the seeds
        return programs - {"edkd.sweep", "edkd.tune"}
    return set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_imports_point_one_way(path):
    wrong = [
        name
        for name in imports(path)
        for bad in forbidden(room_of(path))
        if name == bad or name.startswith(f"{bad}.")
    ]
    assert wrong == []


@pytest.mark.parametrize("name", NO_TORCH)
def test_files_without_torch(name):
    found = imports(CHECKOUT / "edkd" / name)
    assert not [module for module in found if module.split(".")[0] in ("torch", "torchvision")]


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if room_of(path) in ("engine", "tools")],
    ids=lambda path: path.name,
)
def test_the_engine_names_no_method_model_or_data_set(path):
    models = [name for family in MODELS.scopes() for name in model_names(family)]
    names = {*dataset_dict, *method_names(), *models} - ALLOWED
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert constants & names == set()


def test_every_method_is_one_file_named_like_it():
    for entry in METHODS.entries():
        module = entry.value.__module__
        if module.startswith("edkd.") and "._plugin_" not in module:
            stem = module.rsplit(".", 1)[1]
            assert entry.name.lower() == stem or (entry.name, stem) == ("NONE", "vanilla")


def load_air():
    spec = importlib.util.spec_from_file_location("air", CHECKOUT / "benchmarks" / "air.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_code_has_air():
    """The targets of benchmarks/air.py, for each file of edkd/ and for all together."""
    air = load_air()
    counts = {
        str(path.relative_to(CHECKOUT)): air.count(path.read_text(encoding="utf-8"))
        for path in FILES
    }
    missed = [line for name, count in counts.items() for line in air.problems(name, count)]
    package = [count for name, count in counts.items() if name.startswith("edkd/")]
    missed += air.problems("edkd/", air.total(package), air.MAX_NODES)
    assert missed == []
