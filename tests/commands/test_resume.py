"""train --resume: which runs continue, bit for bit, and which are refused."""

from functools import partial

import pytest
import torch

from edkd.engine.checkpoint import load_checkpoint, save_checkpoint
from tests.commands.conftest import ALONE, DIGITS
from tests.conftest import PLUGIN
from tests.runs import assert_refused, outcome, plain, records, tree
from tests.small import TinyNet


def resumed_equals_whole(train, folder, epochs, *opts):
    """One epoch, and the others in a second run; against all in one run."""
    stages = ["SOLVER.LR_DECAY_STAGES", "[1,2]", "SOLVER.CLIP_GRAD_NORM", 1.0]
    assert train("whole", "SOLVER.EPOCHS", epochs, *stages, *opts).code == 0
    assert train("parts", "SOLVER.EPOCHS", 1, *stages, *opts).code == 0
    assert train("parts", "SOLVER.EPOCHS", epochs, *stages, *opts, "--resume").code == 0
    assert outcome(folder / "whole") == outcome(folder / "parts")
    for name in ("best", "student_latest", "student_best"):
        whole = load_checkpoint(folder / "whole" / name)["model"]
        assert plain(whole) == plain(load_checkpoint(folder / "parts" / name)["model"])


def test_a_longer_run(train_tiny, tiny_folder):
    resumed_equals_whole(train_tiny, tiny_folder, 3, "DISTILLER.TYPE", "EDKD")


@pytest.mark.slow
def test_a_longer_run_on_digits_in_mixed_precision(train, folder):
    """On a fifth of the images: bfloat16 is emulated, slowly, where the processor lacks it."""
    few = ["DATASET.VAL_SPLIT", 0.8, "DATASET.TEST.EVALUATE", "False"]
    train = partial(train, "edkd/res20_res8.yaml")
    resumed_equals_whole(train, folder, 2, "SOLVER.AMP", "bf16", *few)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["NONE", "EDKD", "DML", "OKDDip"])
def test_a_longer_run_of_a_configuration_on_digits(train, folder, method):
    config = ALONE if method == "NONE" else min((DIGITS / method.lower()).iterdir())
    resumed_equals_whole(partial(train, config), folder, 2)


def test_the_run_is_found_whose_name_has_other_epochs(tool, tmp_path):
    words = ["--plugin", PLUGIN, "DATASET.TYPE=tiny", "DISTILLER.STUDENT=narrow"]
    words += ["LOG.PREFIX", tmp_path, "LOG.WANDB=False"]
    assert tool("train", *words, "SOLVER.EPOCHS=1").code == 0
    assert tool("train", *words, "SOLVER.EPOCHS=2", "--resume").code == 0
    (run,) = (tmp_path / "distill").iterdir()
    assert len(records(run)) == 2


def test_a_run_without_a_checkpoint_starts_anew(train_tiny, tiny_folder):
    assert train_tiny("run", "SOLVER.EPOCHS", 1).code == 0
    for path in (tiny_folder / "run").iterdir():
        if path.name not in ("config.yaml", "train.events"):
            path.unlink()
    assert train_tiny("run", "SOLVER.EPOCHS", 1, "--resume").code == 0
    assert len(records(tiny_folder / "run")) == 1


def test_a_folder_with_a_run_is_refused(train_tiny, tiny_folder):
    one = ["SOLVER.EPOCHS", 1]
    assert train_tiny("run", *one).code == 0
    before = tree(tiny_folder)
    message = "already holds a run; continue it with --resume, or give this run another EXPERIMENT"
    assert_refused(train_tiny("run", *one), message)
    changed = train_tiny("run", *one, "SOLVER.LR", 0.2, "--resume")
    assert_refused(changed, "another configuration: SOLVER.LR was 0.05 and is 0.2")
    assert_refused(train_tiny("none", *one, "--resume"), "--resume: no run at .*none")
    assert tree(tiny_folder) == before


def damage(state, key, value):
    """`state` with an entry, found by its dotted name, replaced; removed where `value` is None."""
    *path, last = key.split("/")
    inner = state
    for part in path:
        inner = inner[part]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return state


ALTERED = [
    ("model", None),
    ("optimizer", None),
    ("history", None),
    ("identity", None),
    ("history", 3),
    ("history", [{"epoch": 1}]),
    ("model/student.fc.weight", torch.zeros(3)),
    ("model/student.fc.weights", torch.zeros(3)),
    ("optimizer/param_groups", []),
    ("identity/precision", "torch.float16"),
]


def test_an_altered_latest_is_refused(train_tiny, tiny_folder):
    assert train_tiny("run", "SOLVER.EPOCHS", 1).code == 0
    latest = tiny_folder / "run" / "latest"
    whole = latest.read_bytes()
    for key, value in ALTERED:
        latest.write_bytes(whole)
        save_checkpoint(damage(load_checkpoint(latest), key, value), latest)
        before = tree(tiny_folder)
        refused = train_tiny("run", "SOLVER.EPOCHS", 2, "--resume")
        assert_refused(refused, "--resume: .*(does not fit this run|precision)")
        assert tree(tiny_folder) == before, key


def test_runs_that_cannot_be_resumed(train_tiny, tiny_folder):
    assert train_tiny("run", "SOLVER.EPOCHS", 2).code == 0
    run = tiny_folder / "run"
    shorter = train_tiny("run", "SOLVER.EPOCHS", 1, "--resume")
    assert_refused(shorter, "SOLVER.EPOCHS is 1, but 2 epochs are done")

    # Without a whole checkpoint.
    whole = (run / "latest").read_bytes()
    for name in ("latest", "latest.previous"):
        (run / name).write_bytes(whole[:1000])
    assert_refused(train_tiny("run", "--resume"), "latest.previous is damaged")
    for name in ("latest", "latest.previous"):
        (run / name).unlink()
    assert_refused(train_tiny("run", "--resume"), "latest is missing; copy 'best'")

    # Without a whole configuration.
    for content in (b"", b"[", b"- 1", b"\xff"):
        (run / "config.yaml").write_bytes(content)
        refused = train_tiny("run", "--resume")
        assert_refused(refused, "--resume: .*run was run with another|cannot be read")
        assert_refused(train_tiny("another", "--resume"), "--resume: no run at .*another")
    (run / "config.yaml").unlink()
    assert_refused(train_tiny("run"), "run is not empty; give this run another EXPERIMENT.NAME")


def test_a_folder_with_hidden_files_only_is_empty(train_tiny, tiny_folder):
    empty = tiny_folder / "empty"
    empty.mkdir(parents=True)
    (empty / ".config.yaml.partial").touch()
    assert train_tiny("empty", "SOLVER.EPOCHS", 1).code == 0


def test_a_cosine_run_has_one_end(train_tiny):
    cosine = ["SOLVER.SCHEDULE", "cosine"]
    assert train_tiny("run", "SOLVER.EPOCHS", 1, *cosine).code == 0
    longer = train_tiny("run", "SOLVER.EPOCHS", 2, *cosine, "--resume")
    assert_refused(longer, "another configuration: SOLVER.EPOCHS was 1 and is 2")


def test_another_teacher_is_refused(train_tiny, tmp_path):
    mine = tmp_path / "mine"
    opts = ["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER_CKPT", mine]
    for epochs in (1, 2):
        torch.manual_seed(epochs)
        torch.save(TinyNet(12).state_dict(), mine)
        resume = [] if epochs == 1 else ["--resume"]
        done = train_tiny("run", *opts, "SOLVER.EPOCHS", epochs, *resume)
    assert_refused(done, "--resume: the run had teacher [0-9a-f]+, and now it is")


def test_a_run_is_interrupted_and_continues(server, tiny, tiny_folder):
    """By Ctrl-C, after the first epoch."""
    words = [*tiny, "parts", "SOLVER.EPOCHS", "20"]
    command = server.start("train", *words)
    while "epoch 1 " not in command.out:
        assert not command.err
    command.kill_group(2)
    assert (command.wait(30), command.err) == (130, "edkd: stopped; --resume continues from here\n")

    assert server.run("train", *words, "--resume") == (0, "")
    assert server.run("train", *tiny, "whole", "SOLVER.EPOCHS", "20") == (0, "")
    assert outcome(tiny_folder / "whole") == outcome(tiny_folder / "parts")
