"""Reports about plugins: names, imports beside them, notebook cells, and broken files."""

import shutil
import subprocess
import sys
import types

import pytest

from edkd.distillers import Distiller, distiller_dict, find_method
from edkd.engine.config.load import load_config
from edkd.errors import UserError
from edkd.registry import METHODS, Registry, import_files
from tests.conftest import CHECKOUT

METHOD = """
from edkd.distillers import Distiller, register

@register("{name}")
class Method(Distiller):
    defaults = dict(WEIGHT=1.0)

    def losses(self, student, teacher, batch):
        {body}
"""


@pytest.fixture(autouse=True)
def restored():
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", "") or ""
        if "pytest-" in file:
            del sys.modules[name]


def write(folder, text, name="my_kd.py"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def result(name):
    """What `losses` of a registered method returns."""
    return find_method(name).losses(None, None, None, None)


# Two files, or one file twice.


def test_two_files_of_one_name_do_not_replace_one_another(tmp_path):
    """The report: of `a/my_kd.py` and `b/my_kd.py` the second silently wins.

    As in modelscope/ms-swift #9953, and got-feedBack/feedBack #354 for the files beside them.
    """
    plugins = []
    for name in ("one", "two"):
        write(tmp_path / name, f"ME = {name!r}\n", "helper_of_mine.py")
        text = METHOD.format(name=f"TEST_{name}", body="return helper_of_mine.ME")
        plugins.append(write(tmp_path / name, f"import helper_of_mine\n{text}"))
    load_config(plugins=plugins)
    assert (result("TEST_one"), result("TEST_two")) == ("one", "two")


def test_a_file_that_is_named_twice_runs_once(tmp_path, monkeypatch):
    """Also under another spelling of its path, or through a link."""
    text = METHOD.format(name="TEST_ONCE", body="return None")
    plugin = write(tmp_path, f"open(__file__ + '.ran', 'a').write('x')\n{text}")
    (tmp_path / "link.py").symlink_to(plugin)
    monkeypatch.chdir(tmp_path)
    load_config(plugins=[plugin, "my_kd.py", f"{tmp_path}/./my_kd.py", "link.py"])
    assert (tmp_path / "my_kd.py.ran").read_text() == "x"


# Imports beside a plugin.


def test_a_plugin_imports_a_file_beside_it_also_later(tmp_path):
    """The report: `import helper` beside the plugin fails; at least when a function does it."""
    write(tmp_path, "import second_helper\nVALUE = second_helper.VALUE\n", "first_helper.py")
    write(
        tmp_path,
        "def third():\n    import third_helper\n    return 3\nVALUE = 2\n",
        "second_helper.py",
    )
    write(tmp_path, "VALUE = 3\n", "third_helper.py")
    body = "import first_helper, second_helper; return first_helper.VALUE + second_helper.third()"
    load_config(plugins=[write(tmp_path, METHOD.format(name="TEST_LATER", body=body))])
    assert str(tmp_path) not in sys.path
    assert result("TEST_LATER") == 5


def test_a_file_beside_a_plugin_hides_nothing_from_others(tmp_path):
    """A file as `queue.py` or `wandb.py` beside it must not be what other code imports."""
    names = ("queue", "colorsys", "wandb_of_mine", "a_library")
    for name in names:
        write(tmp_path, "raise RuntimeError('imported')\n", f"{name}.py")
    body = "import colorsys; return colorsys.rgb_to_hsv"
    load_config(plugins=[write(tmp_path, METHOD.format(name="TEST_HIDES", body=body))])

    sys.modules.pop("colorsys", None)
    assert result("TEST_HIDES").__module__ == "colorsys"
    for name in ("wandb_of_mine", "a_library"):
        with pytest.raises(ModuleNotFoundError):
            __import__(name)


def test_a_plugin_may_be_a_package(tmp_path):
    """A folder with `__init__.py`; its modules import one another in either way."""
    text = METHOD.format(name="TEST_PACKAGE", body="return VALUE")
    package = tmp_path / "package_of_mine"
    write(package, f"from .inner import VALUE\n{text}", "__init__.py")
    write(package, "from package_of_mine.other import VALUE\n", "inner.py")
    write(package, "VALUE = 7\n", "other.py")
    for _ in range(2):
        load_config(plugins=[str(package)])
        assert result("TEST_PACKAGE") == 7

    write(package, "VALUE = 88\n", "other.py")
    load_config(plugins=[f"{package}/"])
    assert result("TEST_PACKAGE") == 88


def test_a_relative_import_beside_a_plugin_says_how(tmp_path):
    """In a plugin file the dot means edkd.distillers, as published methods need it."""
    write(tmp_path, "", "mine.py")
    plugin = write(tmp_path, "from ._base import Distiller\nfrom .mine import X\n")
    with pytest.raises(
        UserError, match=r"line 2: ModuleNotFound.*; write 'import mine' for a file"
    ):
        load_config(plugins=[plugin])


def test_a_method_that_is_not_registered_causes_a_warning(tmp_path, capsys):
    """A published file has only the class; its registration is in another file there."""
    text = METHOD.format(name="X", body="return None").replace('@register("X")', "")
    load_config(plugins=[write(tmp_path, text)])
    assert (
        'the method Method is not registered; write @register("Method")' in capsys.readouterr().err
    )


# A cell of a notebook.


@pytest.mark.parametrize("module", ["__main__", "gone"])
def test_a_taken_name_in_a_cell_gets_the_registrys_message(monkeypatch, module):
    """The report: OSError "source code not available" instead of the message.

    As in Quantinuum/guppylang #373: `inspect` finds no source of a class of a cell.
    """
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    cell = (
        "class KD(Distiller):\n    def losses(self, student, teacher, batch):\n        return {}\n"
    )
    names = {"__name__": module, "Distiller": Distiller}
    exec(compile(cell, "<ipython-input-3>", "exec"), names)
    with pytest.raises(
        UserError, match="method 'KD' of .* is already registered by .*kd.py; rename"
    ):
        METHODS.add("KD", names["KD"])

    METHODS.add("TEST_CELL", names["KD"])
    again = dict(names)
    exec(compile(cell, "<ipython-input-4>", "exec"), again)
    METHODS.add("TEST_CELL", again["KD"])  # the cell is run again
    assert distiller_dict["TEST_CELL"] is again["KD"]


# A broken file in the folder.


@pytest.fixture
def folder_package(tmp_path, monkeypatch):
    """A package folder and its registry: load({file: text}) -> registry."""
    registry = Registry("method", upper=False)

    def load(files):
        package = tmp_path / "methods_of_mine"
        write(package, "", "__init__.py")
        for name, text in files.items():
            write(package, text, name)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr("builtins.REGISTRY_OF_TEST", registry, raising=False)
        import_files("methods_of_mine", [str(package)], registry)
        return registry

    return load


def test_a_file_that_cannot_be_imported_costs_only_itself(folder_package, capsys):
    """The report: one such file in the folder of methods breaks every command."""
    good = "REGISTRY_OF_TEST.add('GOOD', len)\n"
    registry = folder_package(
        {
            "at.py": "from ._common import Nothing\n",
            "crd.py": "import a_library_that_is_not_here\n",
            "half.py": "class X(\n",
            "leaves.py": "raise SystemExit(1)\n",
            "zgood.py": good,
        }
    )
    assert registry.names() == ["GOOD"]
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 4
    start = "edkd: warning: method unavailable: methods_of_mine/crd.py: ModuleNotFoundError: "
    assert any(line.startswith(start) for line in warnings)

    with pytest.raises(UserError, match=r"method 'CRD' is unavailable: methods_of_mine/crd.py: "):
        registry.find("CRD")
    with pytest.raises(UserError, match="unknown method 'ELSE'"):
        registry.find("ELSE")


@pytest.mark.slow
def test_commands_go_on_with_a_broken_file_in_the_folder(tmp_path):
    shutil.copytree(CHECKOUT / "edkd", tmp_path / "edkd")
    (tmp_path / "edkd" / "distillers" / "mine.py").write_text("from ._nowhere import MyLoss\n")
    command = [sys.executable, "-m", "edkd", "keys", "KD"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert "KD.TEMPERATURE" in done.stdout
    assert "edkd: warning: method unavailable: edkd/distillers/mine.py: " in done.stderr
