"""Reports on the folders of runs: their names, how --resume finds them, what they say of a run."""

import json
import sys

import pytest
import yaml

from edkd import invocation
from edkd.engine.config.load import load_config
from edkd.results.runs import group_runs, read_run
from tests.conftest import PLUGIN
from tests.runs import CHECKOUT, assert_refused, records

FILE = """
EXPERIMENT: {TAG: "kd,wide,narrow"}
DATASET: {TYPE: tiny}
DISTILLER: {TYPE: KD, TEACHER: wide, STUDENT: narrow}
SOLVER: {EPOCHS: 1, BATCH_SIZE: 36, AMP: "off"}
LOG: {WANDB: False}
"""


@pytest.fixture
def train(tool, tiny_teacher, tmp_path):
    """train(KEY, VALUE, ...): a run of FILE, named by its tag and by what is given here."""
    file = tmp_path / "x.yaml"
    file.write_text(FILE)
    words = ["--plugin", PLUGIN, "--cfg", file, "LOG.PREFIX", tmp_path]
    words += ["DISTILLER.TEACHER_CKPT", tiny_teacher]
    return lambda *opts: tool("train", *words, *opts)


@pytest.fixture
def runs(tmp_path):
    """runs(): the names of all runs."""
    return lambda: sorted(path.name for path in (tmp_path / "distill").iterdir())


def test_a_longer_run_keeps_its_folder(train, runs, tmp_path):
    """A kind of report: the name of a run holds EPOCHS:1 after it was extended to 2."""
    assert train("SOLVER.EPOCHS=1", "DATASET.NUM_WORKERS=0", "SOLVER.LR=0.1").code == 0
    assert runs() == ["kd,wide,narrow,SOLVER.LR=0.1"]
    assert train("SOLVER.EPOCHS=2", "SOLVER.LR", "0.10", "--resume").code == 0
    assert runs() == ["kd,wide,narrow,SOLVER.LR=0.1"]
    assert len(records(tmp_path / "distill" / runs()[0])) == 2


def test_a_run_of_the_same_name_and_other_epochs_is_refused(train):
    """Without --resume nothing is overwritten, and the message has both ways out."""
    assert train("SOLVER.EPOCHS=1").code == 0
    message = r"already holds a run \(SOLVER.EPOCHS was 1 and is 2\); continue it with --resume, or"
    assert_refused(train("SOLVER.EPOCHS=2"), message)
    changed = train("EXPERIMENT.NAME", "kd,wide,narrow", "SOLVER.LR=0.2")
    message = r"with another configuration \(SOLVER.LR was 0.05 and is 0.2\); give this run another"
    assert_refused(changed, message)


def test_resuming_a_cosine_run_with_other_epochs_names_both(train):
    """A kind of report: "no run at ...; leave --resume out", beside the run that is meant."""
    cosine = ["SOLVER.SCHEDULE=cosine"]
    assert train(*cosine).code == 0
    message = (
        r"--resume: no run at .*,SOLVER.EPOCHS=2; .*/kd,wide,narrow,SOLVER.SCHEDULE=cosine was run "
        r"with another configuration: SOLVER.EPOCHS was 1 and is 2 \(the cosine schedule ends with "
        r"the last epoch\); give the same values to continue it"
    )
    assert_refused(train(*cosine, "SOLVER.EPOCHS=2", "--resume"), message)


def test_resuming_with_a_mistyped_name_suggests_the_run(train):
    """A kind of report: --resume says that there is no run, and not which there are."""
    assert train("EXPERIMENT.NAME", "first").code == 0
    resumed = train("EXPERIMENT.NAME", "frist", "--resume")
    assert_refused(resumed, "no run at .*frist, did you mean 'first'")


@pytest.mark.parametrize("sign", ["=", ":"])
def test_runs_of_earlier_versions_are_found(train, runs, tmp_path, sign):
    """ray-project/ray#65286: no folder on Windows has a colon in its name.

    Runs that have it, or the epochs, in their names are resumed all the same.
    """
    assert train("SOLVER.EPOCHS=1", "SOLVER.SEED=010").code == 0
    assert runs() == ["kd,wide,narrow,SOLVER.SEED=10"]
    project = tmp_path / "distill"
    old = f"kd,wide,narrow,SOLVER.EPOCHS{sign}1,SOLVER.SEED{sign}010"
    (project / runs()[0]).rename(project / old)

    assert train("SOLVER.EPOCHS=2", "SOLVER.SEED=010", "--resume").code == 0
    assert runs() == [old]
    assert len(records(project / old)) == 2


def test_of_two_old_runs_the_one_with_the_old_name_is_resumed(train, tmp_path):
    """Earlier versions gave runs of other epochs folders of their own."""
    project = tmp_path / "distill"
    for epochs in (1, 2):
        assert train(f"SOLVER.EPOCHS={epochs}").code == 0
        (project / "kd,wide,narrow").rename(project / f"kd,wide,narrow,SOLVER.EPOCHS:{epochs}")
    assert train("SOLVER.EPOCHS=2", "--resume").code == 0
    assert_refused(train("SOLVER.EPOCHS=3", "--resume"), "runs of this configuration: .*name one")
    assert train("SOLVER.EPOCHS=3").code == 0
    assert train("SOLVER.EPOCHS=1", "--resume").code == 0
    assert len(records(project / "kd,wide,narrow,SOLVER.EPOCHS:1")) == 1


def test_an_old_run_whose_name_holds_a_colon(train, tmp_path):
    """Names and projects that users give are made portable, too."""
    given = ["EXPERIMENT.PROJECT", "a:b", "EXPERIMENT.NAME", "c:d."]
    assert train(*given).code == 0
    new = tmp_path / "a_b" / "c_d_"
    assert new.is_dir()
    old = tmp_path / "a:b" / "c:d."
    old.parent.mkdir()
    new.rename(old)
    assert train(*given, "SOLVER.EPOCHS=2", "--resume").code == 0
    assert len(records(old)) == 2
    assert not new.exists()


def test_no_file_of_a_run_has_a_name_that_windows_forbids(train, tmp_path):
    """ray-project/ray#65286 again: the names of all files and folders that a run makes."""
    given = ["EXPERIMENT.TAG", 'a:b?"', "DISTILLER.TYPE=KD", "LOG.SAVE_CHECKPOINT_FREQ=1"]
    assert train(*given).code == 0
    names = [path.name for path in (tmp_path / "distill").rglob("*")]
    names += [path.name for path in (tmp_path / "teacher_memo").rglob("*")]
    assert len(names) > 10
    for name in names:
        assert not set(name) & set('<>:"|?*\\')
        assert not name.endswith((".", " "))


def test_a_run_is_named_after_the_method_of_the_command_line(train, runs, tmp_path):
    """A kind of report: a run of MYKD is called kd,...,DISTILLER.TYPE=MYKD."""
    assert train("DISTILLER.TYPE", "dkd").code == 0
    assert runs() == ["dkd,wide,narrow"]

    # Its name in earlier versions, and its tag.
    project = tmp_path / "distill"
    old = project / "kd,wide,narrow,DISTILLER.TYPE=dkd"
    (project / "dkd,wide,narrow").rename(old)
    config = yaml.safe_load((old / "config.yaml").read_text())
    config["EXPERIMENT"]["TAG"] = "kd,wide,narrow"
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    assert train("DISTILLER.TYPE", "DKD", "SOLVER.EPOCHS=2", "--resume").code == 0
    assert len(records(old)) == 2


def test_the_saved_configuration_holds_what_is_in_use(train, runs, tmp_path, tool):
    """A kind of report: config.yaml lists the settings of methods that were not used."""
    assert train("SOLVER.LR=0.1").code == 0
    config = tmp_path / "distill" / runs()[0] / "config.yaml"
    saved = yaml.safe_load(config.read_text())
    assert {"KD", "SOLVER"} <= set(saved)
    assert not {"DKD", "EDKD", "DML", "COMBINED"} & set(saved)
    assert "DOT" not in saved["SOLVER"]

    # A run from it is the same one.
    words = ["--plugin", PLUGIN, "--cfg", config, "EXPERIMENT.NAME", "again"]
    assert tool("train", *words).code == 0
    settings = [
        json.loads((config.parents[1] / name / "result.json").read_text())["settings"]
        for name in (config.parent.name, "again")
    ]
    assert settings[0] == settings[1]

    # A whole one, as earlier versions wrote it, is resumed.
    config.write_text(load_config(str(config)).dump())
    assert "DKD" in yaml.safe_load(config.read_text())
    assert train("SOLVER.LR=0.1", "SOLVER.EPOCHS=2", "--resume").code == 0


def test_a_warmup_that_does_not_end_is_named(train, runs, tmp_path):
    """A kind of report: a warm-up longer than the run is accepted without a word."""
    done = train("SOLVER.WARMUP_EPOCHS=3", "DISTILLER.TYPE=DKD", "DKD.WARMUP=2")
    assert done.code == 0
    for key in ("SOLVER.WARMUP_EPOCHS 3", "DKD.WARMUP 2"):
        line = f"warning: {key} is longer than the run of SOLVER.EPOCHS 1"
        assert line in done.out
        assert line in (tmp_path / "distill" / runs()[0] / "worklog.txt").read_text()


# Seeds.


def test_the_seed_of_a_run_is_that_of_its_record(tmp_path):
    """A kind of report: two runs of the seed 8, one called 010, are "2 seeds, +- 0.00"."""
    for name in ("kd,SOLVER.SEED=010", "kd,SOLVER.SEED=8", "kd,SOLVER.SEED:0x8"):
        run = tmp_path / name
        run.mkdir()
        result = {"parameters": 3, "seed": 8, "last_test_top1": 50.0, "best_test_top1": 50.0}
        result["settings"] = {"DISTILLER.TYPE": "KD"}
        (run / "result.json").write_text(json.dumps(result))
        (run / "metrics.jsonl").write_text('{"epoch": 1, "test_top1": 50.0}\n')
    (row,) = group_runs(read_run(folder) for folder in tmp_path.iterdir())
    assert (row.name, len(row.runs), len(row.seeds)) == ("kd", 3, 1)


def test_the_seed_of_an_old_run_is_that_of_its_configuration(tmp_path):
    """Where result.json has none."""
    run = tmp_path / "kd,SOLVER.SEED=010"
    run.mkdir()
    result = {"parameters": 3, "last_test_top1": 50.0, "best_test_top1": 50.0}
    (run / "result.json").write_text(json.dumps(result))
    (run / "metrics.jsonl").write_text('{"epoch": 1, "test_top1": 50.0}\n')
    (run / "config.yaml").write_text("SOLVER: {SEED: 8, LR: 0.1}\n")
    assert read_run(run).seed == 8
    assert read_run(run).settings == {"SOLVER.LR": 0.1}


# Several checkouts.


def other_checkout(folder):
    """A checkout of another version, as far as it matters here."""
    (folder / "tools").mkdir(parents=True)
    (folder / "edkd").mkdir()
    (folder / "edkd" / "invocation.py").touch()
    (folder / "tools" / "keys.py").write_bytes((CHECKOUT / "tools" / "keys.py").read_bytes())
    return folder


def test_code_of_another_checkout_is_named(tmp_path, tool, monkeypatch):
    """A kind of report: an edit has no effect, since the code of another checkout is installed."""
    other = other_checkout(tmp_path / "other")
    expected = f"edkd: warning: the code of {CHECKOUT} runs, not that of {other}; "

    # By the script's own checkout, and by the current folder.
    monkeypatch.setattr(sys, "argv", [str(other / "tools" / "keys.py")])
    assert f"edkd: warning: {invocation.other_checkout()}".startswith(expected)
    monkeypatch.chdir(other)
    done = tool("keys", "SOLVER.LR")
    assert (done.code, done.err.count("\n")) == (0, 1)
    assert done.err.startswith(expected)


def test_nothing_is_said_of_the_own_checkout(tmp_path, tool, monkeypatch):
    """From the checkout, and from any folder that is none."""
    for folder in (CHECKOUT, tmp_path):
        monkeypatch.chdir(folder)
        assert tool("keys", "SOLVER.LR").err == ""
