"""What new and careless users give the commands, found by use of the README alone."""

import pytest
import torch

from edkd.commands.eval import main as evaluate
from edkd.commands.train import main as train
from edkd.engine.config.load import load_config
from edkd.engine.saved_run import run_at
from edkd.engine.weights import load_weights
from edkd.errors import UserError
from tests.small import TinyNet


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["SOLVER.LR_DECAY_STAGES", "[1,", "2]"], r"in several words; put it in quotes"),
        (["SOLVER.LR = 0.1"], "blanks around the key 'SOLVER.LR'; write SOLVER.LR=VALUE"),
        (["=0.1"], "the value '0.1' has no key"),
        (["SOLVER.LR.X", "0.1"], r"SOLVER.LR \(command line\): is a key, not a group"),
    ],
)
def test_pairs_that_a_shell_or_a_slip_has_changed(words, message):
    """The message named another word as the fault, or an internal type."""
    with pytest.raises(UserError, match=message):
        load_config(opts=words)


def test_an_option_that_is_given_twice():
    """Of two `--cfg`, the first was lost without a word."""
    with pytest.raises(UserError, match=r"--cfg is given twice, a.yaml and b.yaml"):
        train(["--cfg", "a.yaml", "--cfg", "b.yaml"])
    with pytest.raises(UserError, match="-c is given twice, a and b"):
        evaluate(["-c", "a", "-c", "b"])


def test_an_empty_file(tmp_path):
    """A file that an editor had not saved began 240 epochs with the defaults."""
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing yet\n")
    with pytest.raises(UserError, match=r"empty.yaml: the file is empty"):
        load_config(str(file))


def test_the_folder_of_a_run_as_a_configuration(tmp_path):
    """The message names the file in it that can be read back."""
    (tmp_path / "config.yaml").write_text("SOLVER: {LR: 0.1}\n")
    with pytest.raises(UserError, match=r"is a .yaml file; give .*config.yaml"):
        load_config(str(tmp_path))


def test_a_key_of_a_method_that_does_not_run(capsys):
    """`KD.TEMPERATURE 2` in a run of another method was accepted without a word."""
    load_config(opts=["DISTILLER.TYPE", "DKD", "KD.TEMPERATURE", "2", "DKD.T", "2"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "warning: KD.TEMPERATURE (command line) changes nothing" in lines[0]


def test_two_folders_for_eval(tmp_path):
    """The second was called no key, with advice to use an option that eval does not have."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    with pytest.raises(UserError, match="two files of weights are given"):
        evaluate([str(folder) for folder in folders])


def test_which_of_a_folder_that_is_not_there(tmp_path):
    """The path was called a file."""
    with pytest.raises(UserError, match="no folder of a run at"):
        evaluate([f"{tmp_path}/gone", "--which", "3"])


def test_the_folder_of_another_system(tmp_path):
    """A folder as huggingface/transformers writes it: the file of weights in it is named."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"give a file of weights in it: pytorch_model.bin"):
        run_at(tmp_path)


# Files of weights.


def refused(tmp_path, content, name="c.pth"):
    torch.save(content, tmp_path / name)
    with pytest.raises(UserError) as error:
        load_weights(TinyNet(), tmp_path / name)
    return str(error.value)


@pytest.mark.parametrize("outer", [None, "optimizer"])
def test_the_state_of_an_optimizer(tmp_path, outer):
    """Such a file was said to have no tensors."""
    network = TinyNet()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(2, 3, 8, 8))[0].sum().backward()
    optimizer.step()

    content = optimizer.state_dict()
    message = refused(tmp_path, {outer: content, "epoch": 3} if outer else content)
    assert "holds the state of an optimizer, no weights of a network" in message


def test_numbered_networks_that_are_no_students(tmp_path):
    """Folds of a cross-validation were called students, with files beside them that never were."""
    message = refused(tmp_path, {"fold0": TinyNet().state_dict(), "fold1": TinyNet().state_dict()})
    assert "several networks that fit (fold0, fold1)" in message
    assert "student" not in message


def test_one_part_of_several(tmp_path):
    """A part of a sharded checkpoint was called one of another architecture."""
    state = dict(list(TinyNet().state_dict().items())[:2])
    message = refused(tmp_path, state, "pytorch_model-00001-of-00002.bin")
    assert "is one part of several" in message


@pytest.mark.parametrize("kind", ["parametrized", "pruned"])
def test_weights_in_two_parts(tmp_path, kind):
    """Weights that a tool has split were called those of another architecture."""
    state = TinyNet().state_dict()
    name = next(name for name in state if name.endswith("weight"))
    weight = state.pop(name)
    state |= {f"{name}_orig": weight, f"{name}_mask": weight}
    if kind == "parametrized":
        state = TinyNet().state_dict()
        module = name.removesuffix(".weight")
        state[f"{module}.parametrizations.weight.original0"] = state.pop(name)
    assert f"holds {kind} weights" in refused(tmp_path, state)


def test_a_variance_below_zero(tmp_path):
    """The evaluation ended with "the run diverged"."""
    state = TinyNet().state_dict()
    name = next((name for name in state if name.endswith("running_var")), "")
    if not name:
        pytest.skip("the network has no batch norm")
    state[name] -= 2
    assert f"{name} has negative values" in refused(tmp_path, state)
