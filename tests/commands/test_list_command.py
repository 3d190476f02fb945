"""The command list: a line for each thing, from the registry and the files that are shipped."""

import json
import os
import re
import subprocess
import sys

import pytest

from edkd.engine.config.table import table
from edkd.figures import FIGURES
from edkd.listing import cached
from edkd.listing.kinds import KINDS
from edkd.registry import METHODS
from tests.conftest import PLUGIN, forget_tiny
from tests.runs import CHECKOUT, assert_refused


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget_tiny()


def test_methods_have_their_papers(tool):
    done = tool("list", "methods")
    assert (done.code, done.err) == (0, "")
    names = [line.split()[0] for line in done.out.splitlines()]
    assert sorted(names) == sorted(entry.name for entry in METHODS.entries())
    (line,) = [line for line in done.out.splitlines() if line.startswith("DKD ")]
    expected = "DKD Decoupled knowledge distillation B. Zhao et al., CVPR 2022, arXiv:2203.08679"
    assert " ".join(line.split()) == expected


def test_every_method_has_a_source(tool):
    without = [
        record["name"]
        for record in json.loads(tool("list", "methods", "--json").out)
        if not record["source"]
    ]
    assert without == ["NONE"]


@pytest.mark.parametrize(
    ("words", "found", "other"),
    [
        (["models", "SHUFFLE", "cifar"], "cifar/ShuffleV2", "tiny_imagenet/ShuffleV2"),
        (["datasets", "digits"], "svhn", "cifar100"),
        (["keys", "temperature", "both"], "KD.TEMPERATURE", "NORMKD.TEMPERATURE_NORM"),
        (["updates", "momentum"], "dot", "base"),
        (["suites"], "configs/suites/digits.yaml", "kd.yaml"),
    ],
)
def test_words_choose_lines(tool, words, found, other):
    done = tool("list", *words)
    assert (done.code, done.err) == (0, "")
    names = [line.split()[0] for line in done.out.splitlines() if line]
    assert found in names
    assert other not in names
    assert_refused(tool("list", words[0], "nosuchword"), f"no {words[0]} with nosuchword")


def test_models_of_libraries_are_listed_by_a_word(tool):
    assert "torchvision/resnet50" not in tool("list", "models").out
    assert "models of " in tool("list", "models").out.splitlines()[-1]
    assert "torchvision/resnet50 " in tool("list", "models", "torchvision").out


def test_configs_have_what_their_headers_say(tool):
    records = json.loads(tool("list", "configs", "res56_res20", "--json").out)
    found = {record["name"]: record for record in records}
    dkd = found["configs/cifar100/dkd/res56_res20.yaml"]
    assert (dkd["method"], dkd["teacher"], dkd["student"]) == ("DKD", "resnet56", "resnet20")
    assert (dkd["dataset"], dkd["epochs"], dkd["published"]) == ("cifar100", 240, 71.97)
    assert dkd["source"] == "mdistiller README"
    assert all(record["title"].count(",") >= 1 for record in records)


def test_every_config_is_listed(tool):
    listed = {record["name"] for record in json.loads(tool("list", "configs", "--json").out)}
    files = {
        path.relative_to(CHECKOUT).as_posix()
        for path in (CHECKOUT / "configs").rglob("*.yaml")
        if not path.name.startswith("_") and path.parent.name not in ("suites", "tune", "wandb")
    }
    assert listed == files


def test_protocols_are_found():
    protocols = {record["protocol"] for record in KINDS["configs"].read(())}
    assert {"P240", "PINb"} <= protocols


def test_figures_are_those_of_the_command_figure(tool):
    listed = json.loads(tool("list", "figures", "--json").out)
    assert [record["name"] for record in listed] == list(FIGURES)
    assert all(record["title"] for record in listed)
    assert "Tian et al., ICLR 2020" in tool("list", "figures", "correlation").out


def test_an_installed_package_has_no_configs(tool, tmp_path, monkeypatch):
    monkeypatch.setattr("edkd.listing.configs.CONFIGS", tmp_path / "configs")
    for kind in ("configs", "suites"):
        assert tool("list", kind, "--json").out == "[]\n"
        assert_refused(tool("list", kind), f"no {kind} are installed; a checkout")


@pytest.fixture
def own_configs(tmp_path, monkeypatch):
    """A folder of configurations, which has one that is sound."""
    folder = tmp_path / "configs"
    (folder / "digits").mkdir(parents=True)
    (folder / "suites").mkdir()
    base = "DATASET: {TYPE: digits}\nSOLVER: {EPOCHS: 9}\n"
    (folder / "digits" / "_base_.yaml").write_text(base)
    (folder / "digits" / "sound.yaml").write_text("_BASE_: _base_.yaml\nDISTILLER: {TYPE: KD}\n")
    monkeypatch.setattr("edkd.listing.configs.CONFIGS", folder)
    return folder


BAD_CONFIGS = {
    "invalid": ("SOLVER: {EPOCHS: 1\n", "not valid YAML"),
    "a list": ("- 1\n- 2\n", r"contains \[1, 2\] instead of KEY: VALUE lines"),
    "empty": ("# nothing\n", "the file is empty"),
    "no base": ("_BASE_: _bas_.yaml\n", "_BASE_ _bas_.yaml: no such file, did you mean"),
    "a base that is a list": ("_BASE_: [a.yaml]\n", "_BASE_ must be one name"),
    "itself": ("_BASE_: bad.yaml\n", "_BASE_ bad.yaml: the file is based on itself"),
    "latin-1": ("# Schüler\nSOLVER: {EPOCHS: 3}\n", "cannot be read: 'utf-8' codec"),
    "a value": ("DISTILLER: KD\n", "DISTILLER is a group of keys, not 'KD'"),
    "a group": ("DISTILLER.TYPE: {KD: 1}\n", "DISTILLER.TYPE must be one name, not {'KD': 1}"),
    "twice": ("SOLVER: {EPOCHS: 1}\nSOLVER.EPOCHS: 2\n", "the key SOLVER.EPOCHS is written twice"),
    "a time": ("SOLVER: {EPOCHS: 1:30}\n", "SOLVER.EPOCHS must be a whole number, not '1:30'"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_config_that_cannot_be_read_is_left_out(tool, own_configs, name):
    text, message = BAD_CONFIGS[name]
    (own_configs / "digits" / "bad.yaml").write_bytes(text.encode("latin-1"))
    done = tool("list", "configs", "--json")
    assert done.code == 0
    assert [record["name"] for record in json.loads(done.out)] == ["configs/digits/sound.yaml"]

    (line,) = done.err.splitlines()
    assert re.match(f"edkd: warning: configs/digits/bad.yaml: .*{message}", line), line
    assert line.endswith("; it is left out")


GOOD_CONFIGS = {
    "DISTILLER:\n": ("NONE", "", "", 9),
    "DISTILLER.TYPE: DKD\nDISTILLER: {STUDENT: 007}\n": ("DKD", "", "007", 9),
    "DISTILLER: {TEACHER: [a, b]}\nSOLVER.EPOCHS: 010\n": ("NONE", ["a", "b"], "", 10),
    "MINE: [1, {2: 3}]\nSOLVER: {EPOCHS: 0x10, LR: {}}\n": ("NONE", "", "", 16),
}


@pytest.mark.parametrize("text", GOOD_CONFIGS)
def test_configs_are_read_as_training_reads_them(tool, own_configs, text):
    (own_configs / "digits" / "sound.yaml").write_text(f"_BASE_: _base_.yaml\n{text}")
    done = tool("list", "configs", "--json")
    (record,) = json.loads(done.out)
    found = (record["method"], record["teacher"], record["student"], record["epochs"])
    assert found == GOOD_CONFIGS[text]
    assert (record["dataset"], done.err) == ("digits", "")


def test_a_header_with_several_dots(tool, own_configs):
    file = own_configs / "digits" / "sound.yaml"
    file.write_text("# Mine\n# Published top-1: 71.9.7 (somewhere)\nSOLVER: {EPOCHS: 1}\n")
    (record,) = json.loads(tool("list", "configs", "--json").out)
    assert record["published"] == 71.9


@pytest.mark.parametrize("text", ["configs: [", "- 1", "configs: 3", ""])
def test_a_suite_that_cannot_be_read_is_left_out(tool, own_configs, text):
    (own_configs / "suites" / "bad.yaml").write_text(text)
    (own_configs / "suites" / "good.yaml").write_text("configs: [a.yaml, b.yaml]\n")
    done = tool("list", "suites", "--json")
    (record,) = json.loads(done.out)
    assert (record["name"], record["configs"]) == ("configs/suites/good.yaml", 2)
    (line,) = done.err.splitlines()
    assert line.startswith("edkd: warning: configs/suites/bad.yaml: ")


def test_keys_are_those_of_the_table(tool):
    listed = [record["name"] for record in json.loads(tool("list", "keys", "--json").out)]
    assert listed == list(table())


def test_a_plugin_adds_to_the_list(tool):
    plugin = ["--plugin", PLUGIN]
    assert "narrow" in tool("list", "models", "tiny", *plugin).out
    forget_tiny()
    assert_refused(tool("list", "models", "narrow"), "no models with narrow")
    assert_refused(tool("list", "model"), "invalid choice: 'model'")


# The file that keeps the names.

WITHOUT_TORCH = (
    "import sys; from edkd.__main__ import main; main(['list', 'methods']); "
    "print('torch' in sys.modules)"
)


def test_names_are_kept_until_a_file_changes(tool, tmp_path, monkeypatch):
    before = tool("list", "methods").out
    assert cached.cache_file().is_file()
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{before}False\n"

    # With a new method in the package.
    calls = []
    monkeypatch.setattr(cached, "_registered", lambda plugins: calls.append(1) or {"methods": []})
    assert tool("list", "methods").out == before
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "mine.py").touch()
    monkeypatch.setattr(cached, "PACKAGE", tmp_path / "package")
    assert_refused(tool("list", "methods", "x"), "no methods")
    assert calls == [1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": 1}'])
def test_a_damaged_file_is_made_anew(tool, content):
    path = cached.cache_file()
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert "dkd.DKD" not in tool("list", "updates").out
    assert json.loads(path.read_text())["records"]["updates"]


def test_without_a_home_no_names_are_kept(tool, tmp_path, monkeypatch):
    """As in a container that runs under a number for which there is no user."""

    def raise_error(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(cached.Path, "expanduser", raise_error)
    before = sorted(tmp_path.rglob("*"))
    assert cached.cache_file() is None
    assert tool("list", "updates").code == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_home_that_cannot_be_written_costs_nothing(tool, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert tool("list", "updates").code == 0
