"""`edkd NAME`, `python -m edkd NAME` and `python tools/NAME.py` are one program."""

import runpy
import subprocess
import sys

import pytest
import torch

from edkd import download
from edkd.__main__ import COMMANDS, main
from edkd.commands._command_line import run_command
from tests.runs import CHECKOUT, assert_refused

TOOLS = CHECKOUT / "tools"
MODULE = CHECKOUT / "edkd" / "__main__.py"

WITHOUT_TOOL = {"profile"}
"""Python's own module of this name would not be found from tools/."""

FORMS = {
    "edkd": (["/usr/bin/edkd"], "edkd download teachers"),
    "module": ([str(MODULE)], "python -m edkd download teachers"),
    "tool": (["tools/train.py"], "python tools/download.py teachers"),
    "tool in a folder": (["../tools/train.py"], "python ../tools/download.py teachers"),
}


@pytest.mark.parametrize("form", FORMS)
def test_messages_name_the_command_as_typed(tmp_path, monkeypatch, capsys, form):
    """For a teacher whose published weights are absent."""
    argv, expected = FORMS[form]
    monkeypatch.setattr(sys, "argv", argv)
    missing = tmp_path / "ckpt_epoch_240.pth"
    monkeypatch.setattr(
        "edkd.engine.weight_source.published_weights", lambda family, name: str(missing)
    )
    monkeypatch.setattr("edkd.engine.run.build_data", lambda cfg, device: stub_data())

    words = ["train", "--device", "cpu", "--cfg", str(CHECKOUT / "configs/cifar100/kd.yaml")]
    with pytest.raises(SystemExit) as stopped:
        run_command(main, [*words, "LOG.PREFIX", str(tmp_path / "o")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.count("\n") == 1
    assert f"no weights of resnet32x4 at {missing}; download the published ones" in error
    assert f"'{expected}'" in error
    train = expected.split("download")[0] + ("train.py" if "tools" in expected else "train")
    assert f"'{train} --cfg configs/cifar100/vanilla/resnet32x4.yaml'" in error
    assert not (tmp_path / "o").exists()


def stub_data():
    """As much of a data set as is read before the weights of the teacher."""
    from types import SimpleNamespace

    info = SimpleNamespace(image_shape=(3, 32, 32))
    return SimpleNamespace(num_classes=100, train=SimpleNamespace(has_index=True), info=info)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_tool_and_a_help_text(name, monkeypatch, capsys):
    """The help text shows examples in the form that was typed."""
    if name not in WITHOUT_TOOL:
        tool = TOOLS / f"{name.replace('-', '_')}.py"
        monkeypatch.setattr(sys, "argv", [str(tool), "--help"])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(tool), run_name="__main__")
        assert not stopped.value.code
        text = capsys.readouterr().out
        assert f"usage: python {tool}" in text
        assert f"  python {tool}" in text.partition("examples:\n")[2]
        assert "edkd train" not in text

    monkeypatch.setattr(sys, "argv", ["edkd", name, "--help"])
    with pytest.raises(SystemExit):
        run_command(main, [name, "--help"])
    assert f"usage: edkd {name}" in capsys.readouterr().out


def test_every_tool_is_a_command():
    tools = {path.stem.replace("_", "-") for path in TOOLS.glob("*.py")}
    assert tools == set(COMMANDS) - WITHOUT_TOOL


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - WITHOUT_TOOL))
def test_a_tool_names_itself_and_its_command(name):
    file = f"{name.replace('-', '_')}.py"
    stated = f'"""python tools/{file}: the same as `edkd {name}`."""'
    assert (TOOLS / file).read_text(encoding="utf-8").startswith(stated)


@pytest.fixture
def edkd(tool, capsys):
    """edkd(*words): the command in this process."""

    def run(*words):
        from tests.conftest import Outcome

        code = 0
        try:
            run_command(main, words)
        except SystemExit as exit_:
            code = exit_.code or 0
        return Outcome(code, *capsys.readouterr())

    return run


def test_the_memory_of_a_device_that_is_full(capsys):
    def train(argv):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 8 GiB."
        )

    with pytest.raises(SystemExit) as stop:
        run_command(train, [])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "full (CUDA out of memory. Tried to allocate 20.00 MiB); make batches smaller" in error


def test_edkd_without_arguments_lists_the_commands(edkd):
    for words in ([""], ["--help"]):
        done = edkd(*words)
        assert done.code == 0
        assert all(f"\n  {name} " in done.out for name in COMMANDS)
    assert edkd("--version").out.startswith("edkd ")
    assert_refused(edkd("trian"), "unknown command 'trian', did you mean 'train'")


def test_the_module_runs_in_a_fresh_interpreter():
    command = [sys.executable, "-m", "edkd"]
    done = subprocess.run([*command, "--version"], cwd=CHECKOUT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("edkd ")
    done = subprocess.run([*command, "memo", "verify", "x"], cwd=CHECKOUT, capture_output=True)
    assert done.returncode == 2
    assert done.stderr.startswith(b"edkd: error: no teacher cache x")


@pytest.mark.slow
def test_a_tool_runs_in_a_fresh_interpreter(server, tiny, tmp_path):
    """All other runs are forks of a warm process, or are called in this one."""
    code, err = server.run("train", *tiny, "a", "SOLVER.EPOCHS", "1", fresh=True)
    assert (code, err) == (0, "")
    assert (tmp_path / "distill/a/result.json").is_file()


def test_downloads_are_requested_by_name(tool, tmp_path, monkeypatch):
    """Nothing is downloaded here; tests/test_download.py has a server."""
    requested = []
    monkeypatch.setattr(download, "fetch", lambda name, root, say: requested.append((name, root)))
    assert tool("download", "cifar100", "teachers", "--into", tmp_path).code == 0
    assert requested == [("cifar100", tmp_path), ("teachers", tmp_path)]
    assert_refused(tool("download", "cifar1000"), "cifar1000")
    assert_refused(tool("download"), "NAME")
