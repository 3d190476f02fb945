"""The command completion: its scripts, run in a real shell where there is one."""

import shutil
import subprocess

import pytest

from edkd.__main__ import COMMANDS
from edkd.commands import completion
from edkd.commands._shells import SHELLS, plain
from edkd.registry import METHODS
from tests.conftest import forget_tiny
from tests.runs import assert_refused

pytest.importorskip("shtab")

TRY = """
source {script}
COMP_WORDS=({words})
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_shtab_edkd
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """A folder with the scripts of all shells."""
    folder = tmp_path_factory.mktemp("scripts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        forget_tiny()
        for shell in SHELLS:
            (folder / f"edkd.{shell}").write_text(completion.script(shell))
    return folder


@pytest.fixture
def complete(scripts, tmp_path):
    """complete(*words): what bash offers for the last word."""
    if not shutil.which("bash"):
        pytest.skip("there is no bash")

    def complete(*words):
        quoted = " ".join(f"'{word}'" for word in ("edkd", *words))
        text = TRY.format(script=scripts / "edkd.bash", words=quoted)
        done = subprocess.run(
            ["bash", "--norc", "-c", text], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    return complete


def test_commands_and_options(complete):
    assert sorted(complete("")) == sorted(COMMANDS)
    assert complete("tr") == ["train"]
    assert complete("train", "--re") == ["--resume"]
    assert complete("runs", "--foll") == ["--follow"]
    assert complete("memo", "ver") == ["verify"]
    assert complete("runs", "--sort", "l") == ["last", "left"]
    assert complete("completion", "f") == ["fish"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "SOLVER.LABEL"], ["SOLVER.LABEL_SMOOTHING"]),
        (["train", "--resume", "SOLVER.LR", "0.1", "SOLVER.SCHEDULE", ""], ["step", "cosine"]),
        (["train", "DISTILLER.TYPE", "EDK"], ["EDKD"]),
        (["train", "DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", "resnet56"], ["resnet56"]),
        (["train", "DISTILLER.STUDENT", "cifar/resnet56"], ["cifar/resnet56"]),
        (["train", "SOLVER.NESTEROV", ""], ["True", "False"]),
        (["train", "DATASET.TYPE", "cifar"], ["cifar10", "cifar100"]),
        (["eval", "-m", "resnet8x"], ["resnet8x4"]),
        (["eval", "-d", "tiny"], ["tiny_imagenet"]),
        (["export", "run", "--to", "on"], ["onnx"]),
        (["download", "stl"], ["stl10"]),
        (["keys", "KD.TEMP"], ["KD.TEMPERATURE"]),
        (["list", "upd"], ["updates"]),
        (["runs", "--state", "aban"], ["abandoned"]),
    ],
)
def test_values(complete, words, expected):
    assert complete(*words) == expected


def test_methods(complete):
    assert set(complete("train", "DISTILLER.TYPE", "")) == {
        entry.name for entry in METHODS.entries()
    }


def test_paths(complete, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "my.yaml").touch()
    (tmp_path / "my.txt").touch()
    assert sorted(complete("train", "--cfg", "m")) == ["mine", "my.yaml"]
    assert complete("sweep", "my.") == ["my.yaml"]
    assert complete("runs", "mi") == ["mine"]
    assert complete("finetune", "resnet20", "--from", "my.t") == ["my.txt"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_scripts(scripts, shell):
    """Where they are installed; else the words are there."""
    script = scripts / f"edkd.{shell}"
    text = script.read_text()
    assert all(word in text for word in ("DISTILLER.TYPE", "torchvision/resnet50", "follow"))
    if shutil.which(shell):
        subprocess.run([shell, "-n", script], check=True)


def test_zsh_completes_every_pair(scripts):
    text = (scripts / "edkd.zsh").read_text()
    assert '"*:keys, such as SOLVER.LR 0.1:_edkd_pairs"' in text


def test_words_that_need_quotes_are_left_out():
    assert plain(["a-1", "b c", "$x", "", "d/e.f+g", "h'"]) == ["a-1", "d/e.f+g"]


def test_without_shtab_there_is_one_line(tool, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    assert_refused(tool("completion", "bash"), "needs the package shtab: pip install shtab")
    assert_refused(tool("completion", "csh"), "invalid choice: 'csh'")
