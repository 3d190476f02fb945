"""Plugins: what they register, modules beside them, files of one name, and their mistakes."""

import sys

import pytest

from edkd.distillers import distiller_dict
from edkd.engine.config.compare import changed_keys, saved_config
from edkd.engine.config.load import load_config
from edkd.errors import UserError

METHOD = """
from edkd.distillers import Distiller, register

@register("{name}")
class Method(Distiller):
    defaults = dict(WEIGHT={weight}, INNER=dict(A="x"))

    def forward_train(self, image, target, **kwargs):
        pass
"""


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.startswith("beside_my_kd")]:
        del sys.modules[name]


def write(folder, text, name="my_kd.py"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_plugin_brings_its_keys(tmp_path):
    plugin = write(tmp_path, METHOD.format(name="MYKD", weight=1.0))
    file = write(tmp_path, "DISTILLER: {TYPE: MYKD}\nMYKD: {WEIGHT: 2}\n", "x.yaml")
    cfg = load_config(file, ["MYKD.INNER.A", "y"], [plugin])
    assert (cfg.MYKD.WEIGHT, cfg.MYKD.INNER.A) == (2.0, "y")
    assert changed_keys(saved_config(cfg.dump()), cfg) == []
    assert load_config(file, [], [plugin]).MYKD.INNER.A == "x"


def test_an_edited_plugin_is_loaded_again(tmp_path):
    for weight in (1.0, 2.0):
        plugin = write(tmp_path, METHOD.format(name="MYKD", weight=weight))
        cfg = load_config(plugins=[plugin, plugin])
        assert weight == cfg.MYKD.WEIGHT


def test_two_files_of_one_name_both_load(tmp_path):
    first = write(tmp_path / "a", METHOD.format(name="FIRST", weight=1.0))
    second = write(tmp_path / "b", METHOD.format(name="SECOND", weight=2.0))
    cfg = load_config(plugins=[first, second])
    assert (cfg.FIRST.WEIGHT, cfg.SECOND.WEIGHT) == (1.0, 2.0)
    assert distiller_dict["FIRST"].__module__ != distiller_dict["SECOND"].__module__


def test_two_files_that_register_one_name_are_both_named(tmp_path):
    first = write(tmp_path / "a", METHOD.format(name="MYKD", weight=1.0))
    second = write(tmp_path / "b", METHOD.format(name="MYKD", weight=1.0))
    with pytest.raises(UserError, match=r"'MYKD' of .*b/my_kd.py is already .*a/my_kd.py"):
        load_config(plugins=[first, second])


@pytest.mark.parametrize("name", ["beside_my_kd.py", "beside_my_kd/__init__.py"])
def test_modules_beside_a_plugin(tmp_path, name):
    """Also if the folders of two plugins have modules of one name."""
    for folder, weight in (("a", 1.0), ("b", 2.0), ("a", 1.0)):
        write((tmp_path / folder / name).parent, f"WEIGHT = {weight}\n", name.split("/")[-1])
        text = METHOD.format(name=folder.upper(), weight="beside_my_kd.WEIGHT")
        plugin = write(tmp_path / folder, f"import beside_my_kd\n{text}")
        cfg = load_config(plugins=[plugin])
        assert weight == cfg[folder.upper()].WEIGHT
    assert not {str(tmp_path / "a"), str(tmp_path / "b")} & set(sys.path)


def test_a_module_beside_a_plugin_hides_no_other(tmp_path):
    """Neither an installed package nor the standard library, for all others."""
    import yaml

    for name in ("yaml.py", "random.py"):
        write(tmp_path, "MINE = 3.0\n", name)
    text = METHOD.format(name="MINE", weight="yaml.MINE")
    plugin = write(tmp_path, f"import random, yaml\nrandom.random()\n{text}")
    assert load_config(plugins=[plugin]).MINE.WEIGHT == 3.0
    assert sys.modules["yaml"] is yaml
    assert yaml.safe_load("3") == 3


def test_a_key_in_one_new_file(tmp_path):
    """A plugin that declares keys of its own, without a method."""
    plugin = write(
        tmp_path,
        "from edkd.engine.config.table import add_owner\n"
        "from edkd.keys import Key\n"
        "add_owner({'EXPERIMENT.NOTE': Key('', 'free text', free_on_resume=True)})\n",
    )
    before = load_config(plugins=[plugin])
    after = load_config(opts=["EXPERIMENT.NOTE", "1.10"], plugins=[plugin])
    assert after.EXPERIMENT.NOTE == "1.10"
    assert changed_keys(saved_config(before.dump()), after) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\nraise RuntimeError('no')\n", "my_kd.py: line 2: RuntimeError: no"),
        ("import sys\nsys.exit(3)\n", "my_kd.py: line 2: SystemExit: 3"),
        ("x = (\n", "my_kd.py: SyntaxError"),
        ("import nothing_like_this\n", "my_kd.py: line 1: ModuleNotFoundError"),
    ],
)
def test_a_plugin_that_fails_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=f"--plugin .*{message}"):
        load_config(plugins=[write(tmp_path, text)])


def test_a_missing_plugin_is_named(tmp_path):
    for name in ("nowhere.py", str(tmp_path), write(tmp_path, "", "x.txt")):
        with pytest.raises(UserError, match=f"--plugin {name}: no such Python file"):
            load_config(plugins=[name])
