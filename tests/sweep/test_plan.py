"""What a file of a sweep stands for, and which mistakes are refused before anything is written."""

import shutil

import pytest
import yaml

from edkd.sweep.plan import plan
from tests.conftest import CHECKOUT, PLUGIN
from tests.runs import assert_refused, tree


def folders(done):
    """The names of the runs' folders that --list prints."""
    assert done.code == 0, done.err
    return [line.rpartition("/")[2] for line in done.out.splitlines()]


def test_runs_are_products(write, tool, runs):
    overrides = {"SOLVER.LR": [0.02, 0.05], "SOLVER": {"MOMENTUM": [0.8, 0.9]}}
    file = write(seeds=[1, 2], overrides=overrides, set={"SOLVER": {"WARMUP_EPOCHS": 1}})
    done = tool("sweep", file, "--list")
    assert folders(done) == [
        f"alone,SOLVER.WARMUP_EPOCHS=1,SOLVER.LR={rate},SOLVER.MOMENTUM={momentum},"
        f"SOLVER.SEED={seed}"
        for seed in (1, 2)
        for rate in (0.02, 0.05)
        for momentum in (0.8, 0.9)
    ]
    assert all(" new " in line for line in done.out.splitlines())
    assert not runs.exists()


def test_groups_of_overrides_follow_one_another(write, tool):
    groups = [{"SOLVER.LR": 0.1, "SOLVER.MOMENTUM": 0.8}, {"SOLVER.LR": [0.2, 0.3]}]
    found = folders(tool("sweep", write(overrides=groups), "--list"))
    assert found == ["alone,SOLVER.LR=0.1,SOLVER.MOMENTUM=0.8"] + [
        f"alone,SOLVER.LR={rate}" for rate in (0.2, 0.3)
    ]


def test_a_key_counts_where_it_is_used(write, tool, tmp_path):
    """KD.TEMPERATURE has two values for KD, and the student alone is trained once."""
    config = yaml.safe_load((tmp_path / "alone.yaml").read_text())
    config["EXPERIMENT"]["TAG"] = "kd"
    config["DISTILLER"]["TYPE"] = "KD"
    (tmp_path / "kd.yaml").write_text(yaml.safe_dump(config))

    file = write(configs=["*.yaml"], overrides={"KD.TEMPERATURE": [2, 4]})
    file.rename(tmp_path / "_sweep.yaml")
    done = tool("sweep", "_sweep.yaml", "--list")
    assert folders(done) == ["alone", "kd,KD.TEMPERATURE=2", "kd,KD.TEMPERATURE=4"]
    assert done.err == ""


def test_values_are_those_of_the_command_line(write, tool):
    stages = {"SOLVER.LR_DECAY_STAGES": [[1, 2], [2]], "EXPERIMENT.TAG": "x {seed}"}
    found = folders(tool("sweep", write(seeds=[7], overrides=stages), "--list"))
    assert found == [
        f"x {{seed}},SOLVER.LR_DECAY_STAGES={s},SOLVER.SEED=7".replace("{seed}", "7")
        for s in ("[1,2]", "[2]")
    ]


def test_shipped_sweeps_are_found_from_everywhere(write, tool):
    done = tool("sweep", "configs/suites/digits.yaml", "--dry-run")
    assert len(folders(done)) == 10
    assert "output/digits_suite/kd,res20,res8,SOLVER.SEED=1" in done.out


def test_runs_that_need_the_weights_of_others(write):
    """On Ray, a student starts after its teacher."""
    write()
    runs = plan("configs/suites/digits.yaml").runs
    assert [run.needs for run in runs] == [(), (), (1,), (1,), (1,), (), (), (6,), (6,), (6,)]


MISTAKES = {
    "unknown key": ({"seed": [1]}, "unknown key 'seed', did you mean 'seeds'"),
    "no file": ({"configs": ["aloneX.yaml"]}, "configs: no file aloneX.yaml"),
    "no files": ({"configs": []}, "configs must be a list of files"),
    "a folder": ({"configs": ["."]}, "configs: no file \\."),
    "a plugin that is a folder": ({"plugins": ["."]}, "plugins: no file \\."),
    "no plugin": ({"plugins": ["other.py"]}, "plugins: no file other.py"),
    "typo in one run": (
        {"overrides": {"SOLVER.TYPE": ["SGD", "AdamW", "SDG"]}, "seeds": [1, 2]},
        "alone.yaml SOLVER.TYPE=SDG SOLVER.SEED=1: SOLVER.TYPE .* did you mean 'SGD'",
    ),
    "typo in a key": ({"set": {"SOLVER.LRR": 1}}, "alone.yaml SOLVER.LRR=1: .*SOLVER.LR"),
    "wrong type": ({"overrides": {"SOLVER.EPOCHS": [1, "two"]}}, "SOLVER.EPOCHS=two: .* int"),
    "unused": ({"set": {"DKD.ALPHA": 1}}, "DKD.ALPHA changes nothing"),
    "twice": (
        {"set": {"SOLVER.LR": 1}, "overrides": {"SOLVER.LR": [1]}},
        "SOLVER.LR is in set and in overrides",
    ),
    "twice in set": (
        {"set": {"SOLVER": {"LR": 0.1}, "SOLVER.LR": 0.2}},
        "s.yaml: set: the key SOLVER.LR is written twice; remove one of them",
    ),
    "twice in overrides": (
        {"overrides": [{"SOLVER.LR": [0.1]}, {"SOLVER": {"LR": [1]}, "SOLVER.LR": [0.2]}]},
        "s.yaml: overrides: the key SOLVER.LR is written twice; remove one of them",
    ),
    "seed twice": ({"seeds": [1], "set": {"SOLVER.SEED": 1}}, "SOLVER.SEED is given beside seeds"),
    "no test figures": (
        {"set": {"DATASET.TEST.EVALUATE": False, "DATASET.VAL_SPLIT": 0.2}},
        "alone.yaml .*: DATASET.TEST.EVALUATE is False, but the table of a sweep has figures of",
    ),
    "one folder": (
        {"overrides": {"LOG.TENSORBOARD_FREQ": [1, 2]}},
        "runs 1 and 2 would share the folder output/p/alone, .* tell LOG.TENSORBOARD_FREQ apart; "
        "give them different EXPERIMENT.TAGs",
    ),
    "one name": (
        {"seeds": [1, 2], "set": {"EXPERIMENT.NAME": "x"}},
        "runs 1 and 2 would share the folder output/p/x, whose name does not tell SOLVER.SEED "
        "apart; write {seed} into EXPERIMENT.NAME, as x,{seed}",
    ),
    "one name of all rates": (
        {"seeds": [1], "overrides": {"SOLVER.LR": [1, 2]}, "set": {"EXPERIMENT.NAME": "x{seed}"}},
        "tell SOLVER.LR apart; remove EXPERIMENT.NAME, which is the whole name, or give each run",
    ),
    "no seeds": ({"set": {"EXPERIMENT.TAG": "x{seed}"}}, "EXPERIMENT.TAG contains {seed}, but"),
    "no list": ({"seeds": 3}, "seeds must be a list of whole numbers, not 3"),
    "no number": ({"seeds": [1, True]}, "seeds must be a list of whole numbers"),
    "no values": ({"overrides": {"SOLVER.LR": []}}, "overrides: SOLVER.LR must be a list of"),
    "no value": ({"overrides": {"SOLVER.LR": [{"a": 1}]}}, "SOLVER.LR must be a value, or a list"),
    "a list of groups": ({"set": [1]}, "set must be keys and values"),
    "no group": ({"set": 3}, "set must be keys and values, not 3"),
    "retries": ({"retries": -1}, "retries must be a number from 0 to 100, not -1"),
    "resources": ({"resources": {"gpu": 1}}, "resources: unknown key 'gpu', did you mean 'gpus'"),
    "amount": ({"resources": {"gpus": 1.5}}, "resources: gpus must be a fraction up to 1"),
    "two GPUs": ({"resources": {"gpus": 2}}, "resources: gpus must be at most 1, .* not 2"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(write, tool, tmp_path, mistake):
    keys, message = MISTAKES[mistake]
    file = write(**keys)
    before = tree(tmp_path)
    assert_refused(tool("sweep", file), message)
    assert tree(tmp_path) == before
    assert not (tmp_path / "output").exists()


def test_the_advice_on_names_is_right(write, tool):
    """A NAME with {seed} makes the runs of a sweep different ones; it is the whole name."""
    file = write(seeds=[1, 2], set={"EXPERIMENT.NAME": "x,{seed}"})
    assert folders(tool("sweep", file, "--list")) == ["x,1", "x,2"]
    file = write(seeds=[1], overrides={"SOLVER.LR": [1, 2]})
    assert len(folders(tool("sweep", file, "--list"))) == 2


def test_configurations_with_one_name_each(write, tool, tmp_path):
    """Where a configuration has a NAME, a TAG changes nothing."""
    config = yaml.safe_load((tmp_path / "alone.yaml").read_text())
    config["EXPERIMENT"]["NAME"] = "x"
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump(config))
    done = tool("sweep", write(configs=["a.yaml", "b.yaml"]))
    assert_refused(done, "tell .*a.yaml, .*b.yaml apart; give them different EXPERIMENT.NAMEs")


def test_the_example_of_the_documentation(write, tool):
    """docs/sweeps.md: three seeds of two rates, with two temperatures for KD and none for DKD."""
    text = (CHECKOUT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    file = write()
    file.write_text(text.partition("```yaml\n")[2].partition("```")[0])
    found = folders(tool("sweep", file, "--list"))
    assert len(found) == 18
    assert sum(name.startswith("dkd,") for name in found) == 6


def test_sweeps_of_one_name_have_folders_of_their_own(write, tmp_path):
    file = write()
    other = tmp_path / "other" / file.name
    other.parent.mkdir()
    other.write_bytes(file.read_bytes())
    folders = {plan(str(path)).folder for path in (file, other, f"other/../{file.name}")}
    assert len(folders) == 2
    assert all(folder.name.startswith("s-") for folder in folders)


def test_a_folder_that_an_earlier_version_has_named(write, tool, runs):
    """The run that --resume continues is the one whose state is shown."""
    file = write(overrides={"SOLVER.LR": ["5e-2"]})
    words = ["--plugin", PLUGIN, "--plugin", "pausing.py", "--cfg", "alone.yaml", "SOLVER.LR=5e-2"]
    assert tool("train", *words, "SOLVER.EPOCHS=1").code == 0
    assert folders(tool("sweep", file, "--list")) == ["alone,SOLVER.LR=0.05"]

    shutil.copytree(runs / "alone,SOLVER.LR=0.05", runs / "alone,SOLVER.LR=5e-2")
    assert folders(tool("sweep", file, "--list")) == ["alone,SOLVER.LR=5e-2"]


def test_no_such_sweep(write, tool):
    write()
    assert_refused(tool("sweep", "ss.yaml"), "ss.yaml: no such file, did you mean 's.yaml'")


def test_a_folder_with_another_configuration(write, tool, tmp_path):
    words = ["--plugin", PLUGIN, "--plugin", "pausing.py", "--cfg", "alone.yaml", "SOLVER.EPOCHS=1"]
    file = write()
    assert tool("train", *words).code == 0
    config = (tmp_path / "alone.yaml").read_text().replace("BATCH_SIZE: 8", "BATCH_SIZE: 16")
    (tmp_path / "alone.yaml").write_text(config)
    done = tool("sweep", file, "--list")
    assert_refused(done, "another configuration: SOLVER.BATCH_SIZE was 8 and is 16")


def test_states(write, tool):
    """SOLVER.EPOCHS may grow under a step schedule: then a run is not finished."""
    file = write(seeds=[1, 2])
    words = ["--plugin", PLUGIN, "--plugin", "pausing.py", "--cfg", "alone.yaml"]
    assert tool("train", *words, "SOLVER.EPOCHS=1", "SOLVER.SEED=1").code == 0
    assert tool("train", *words, "SOLVER.SEED=2").code == 0
    lines = tool("sweep", file, "--list").out.splitlines()
    assert [line.split()[1] for line in lines] == ["started", "finished"]
