"""Studies of tiny runs: the test set stays untouched, and nothing is lost."""

import csv
import json
import signal

import pytest
import yaml

from edkd.engine import run as engine_run
from edkd.engine.config.load import load_config
from edkd.results.finding import search_runs
from tests.conftest import CHECKOUT, PLUGIN
from tests.processes import wait_for
from tests.runs import assert_refused, records, untimed
from tests.tune.conftest import trials


@pytest.fixture
def guarded(monkeypatch):
    """The loader of the test images fails when it is used."""
    build = engine_run.build_data

    def build_guarded(cfg, device):
        data = build(cfg, device)

        def epoch():
            raise AssertionError("the test set was evaluated")

        monkeypatch.setattr(data.test, "epoch", epoch)
        return data

    monkeypatch.setattr(engine_run, "build_data", build_guarded)


def test_the_guard_fails_where_the_test_set_is_evaluated(write, tool, guarded):
    """Otherwise the next tests would prove nothing."""
    write()
    words = ["--plugin", PLUGIN, "--plugin", "pausing.py", "--cfg", "tiny.yaml"]
    with pytest.raises(AssertionError, match="the test set was evaluated"):
        tool("train", *words, "DATASET.VAL_SPLIT=0.2")


def test_a_study_never_evaluates_the_test_set(write, tune, study, guarded, tmp_path):
    done = tune(write())
    rows = trials(study)
    assert [row["state"] for row in rows] == ["complete"] * 3
    assert [row["epochs"] for row in rows] == ["3"] * 3
    assert rows[0]["SOLVER.LR"] == "0.05", "the configuration's own value comes first"

    # Each accuracy is that of the last epoch on held-out images.
    for row in rows:
        run = tmp_path / row["folder"]
        assert float(row["held_out_top1"]) == records(run)[-1]["val_top1"]
        assert "test" not in (run / "metrics.jsonl").read_text()
        assert not any("test_" in key for key in json.loads((run / "result.json").read_text()))
        assert not list(run.glob("*latest*")), "weights stay on the disk"

    # The best one is that of the table, and of best.yaml.
    best = max(rows, key=lambda row: (float(row["held_out_top1"]), -int(row["trial"])))
    first = done.out.split("|--:|--:|--:|\n")[1].splitlines()[0]
    assert f"| {float(best['held_out_top1']):.2f} | {best['SOLVER.LR']} |" in first
    assert "cost: 3 trials, 9 epochs in total, as many as 3.0 trials of 3 epochs" in done.out
    text = (study / "best.yaml").read_text()
    assert yaml.safe_load(text)["SOLVER"]["LR"] == float(best["SOLVER.LR"])
    assert "# The test set was not evaluated." in text
    assert "# Cost: 3 trials, 9 epochs in total" in text


@pytest.mark.slow
def test_the_same_file_gives_the_same_trials(write, tune, study):
    tune(write(halving={"min_epochs": 1, "reduction": 2}, trials=4))
    first = trials(study)
    tune(write(halving={"min_epochs": 1, "reduction": 2}, trials=4, name="again"))
    second = trials(study.parent / "again")
    for row in first + second:
        row.pop("folder")
    assert first == second
    assert len({row["SOLVER.LR"] for row in first}) == 4

    tune(write(halving={"min_epochs": 1, "reduction": 2}, trials=2, name="other", seed=1))
    assert trials(study.parent / "other")[1]["SOLVER.LR"] != first[1]["SOLVER.LR"]


@pytest.mark.slow
def test_bad_trials_end_early_and_diverging_ones_fail(write, tune, study, tmp_path):
    search = {"SOLVER.LR": [0.2, "1e-12", "1e30"]}
    options = {"SOLVER.EPOCHS": 6, "SOLVER.LR_DECAY_STAGES": [5]}
    file = write(search=search, set=options, trials=8, halving={"min_epochs": 2, "reduction": 3})
    done = tune(file)

    rows = trials(study)
    diverged = [row for row in rows if row["SOLVER.LR"] == "1e30"]
    assert {row["state"] for row in diverged} == {"failed"}
    assert all("not finite" in row["error"] for row in diverged)
    early = [row for row in rows if row["state"] == "ended early"]
    assert early, rows
    for row in early:
        if row["epochs"] == "0":
            continue  # an earlier one had the same values
        assert int(row["epochs"]) == 2
        assert len(records(tmp_path / row["folder"])) == 2
        assert not (tmp_path / row["folder"] / "result.json").exists()
        status = json.loads((tmp_path / row["folder"] / "status.json").read_text())
        assert status["end"]["state"] == "stopped"
        assert status["end"]["reason"].endswith("% held out, ended after epoch 2")

    epochs = sum(int(row["epochs"]) for row in rows)
    repeated = done.out.count("not trained again")
    counts = f"{len(early)} ended early, {repeated} repeated, {len(diverged)} failed"
    assert f"8 trials ({counts}), {epochs} epochs in" in done.out


@pytest.mark.slow
def test_a_study_in_which_all_fail_names_the_file_with_the_errors(write, tool, study):
    done = tool("tune", write(search={"SOLVER.LR": ["1e30", "1e31"]}, trials=2))
    assert_refused(done, "no trial of .* is complete; trials.csv there has the errors", code=6)
    assert [row["state"] for row in trials(study)] == ["failed", "failed"]
    assert not (study / "best.yaml").exists()


@pytest.mark.slow
def test_more_trials_continue_a_study_and_another_search_is_refused(write, tool, tune, study):
    tune(write(trials=2))
    first = trials(study)
    done = tune(write(trials=3))
    assert trials(study)[:2] == first
    assert done.out.count("trial ") - done.out.count("| trial") == 1, "a trial was repeated"

    search = {"SOLVER.LR": {"low": 0.01, "high": 2, "log": True}}
    message = "holds a study with another search: it was .*0.01 to 1.*; give this one another name"
    assert_refused(tool("tune", write(search=search)), message)
    assert_refused(tool("tune", write(val_split=0.3)), "with another DATASET.VAL_SPLIT")
    assert_refused(tool("tune", write(set={"SOLVER.SEED": 5})), "with another SOLVER.SEED")
    other = {"DISTILLER.TEACHER_CKPT": "other.pth"}
    assert_refused(tool("tune", write(set=other)), "with another DISTILLER.TEACHER_CKPT")
    assert len(trials(study)) == 3


@pytest.mark.slow
def test_the_list_shows_the_trials_and_runs_none(write, tune, study):
    file = write(trials=2)
    assert tune(file, "--list").out.startswith("no trial yet: output/tune/s")
    assert not study.exists()
    tune(file)
    before = (study / "study.log").read_bytes()
    done = tune(write(trials=9), "--list")
    assert "| trial | held-out top-1 (%) | SOLVER.LR |" in done.out
    assert "cost: 2 trials" in done.out
    assert (study / "study.log").read_bytes() == before


def test_absent_weights_end_the_first_trial_and_nothing_is_written(write, tool, tmp_path):
    options = {"DISTILLER.TYPE": "KD", "DISTILLER.TEACHER_CKPT": "none.pth"}
    done = tool("tune", write(set=options), "--device", "cpu")
    assert_refused(done, "none.pth")
    assert not (tmp_path / "output" / "tune" / "s").exists()


def test_a_torn_last_line_of_the_journal_is_dropped_and_damage_is_one_line(
    write, tool, tune, study
):
    tune(write(trials=1))
    journal = study / "study.log"
    content = journal.read_bytes()
    journal.write_bytes(content + b'{"op_code": 4, "wor')
    tune(write(trials=1), "--list")
    assert not journal.read_bytes().endswith(b"\n"), "another process may be writing this line"
    tune(write(trials=2))
    assert [row["state"] for row in trials(study)] == ["complete"] * 2

    journal.write_bytes(b"{}\n" + content)
    assert_refused(tool("tune", write(trials=2)), r"study.log is damaged .*; remove output/tune/s")


@pytest.mark.slow
def test_the_importance_of_the_keys_is_shown_for_enough_trials(write, tune, monkeypatch):
    monkeypatch.setattr("edkd.tune.outcome.ENOUGH", 5)
    search = {"SOLVER.LR": {"low": 1e-9, "high": 0.5, "log": True}, "SOLVER.MOMENTUM": [0.0, 0.9]}
    done = tune(write(search=search, trials=5, epochs=1))
    (line,) = [line for line in done.out.splitlines() if line.startswith("importance")]
    assert "over 5 complete trials" in line
    assert "SOLVER.LR" in line
    assert "SOLVER.MOMENTUM" in line
    assert "importance of" not in tune(write(trials=2, name="few", epochs=1)).out


# Interruptions.


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_an_interrupted_study_continues(write, server, tune, study, tmp_path, number, code):
    """Its second trial is interrupted in the second epoch; all is as if it had not been."""
    file = write()
    paused = str(study / "trials" / "1")
    command = server.start("tune", file, "--device", "cpu", folder=tmp_path, PAUSED=paused)
    wait_for((tmp_path / "waits").exists)
    command.kill(number)
    assert command.wait() == code, command.err
    if code == 143:
        assert command.err == "edkd: stopped; the same command continues from here\n"
    assert len(records(study / "trials" / "1")) == 1

    # The same command continues, and runs neither the first trial nor an epoch again.
    before = (study / "trials" / "0" / "metrics.jsonl").stat().st_mtime_ns
    first_epoch = records(study / "trials" / "1")[0]
    done = tune(file)
    assert "trial 0: " not in done.out
    assert (study / "trials" / "0" / "metrics.jsonl").stat().st_mtime_ns == before
    assert records(study / "trials" / "1")[0] == first_epoch
    interrupted = trials(study)

    tune(write(name="undisturbed"))
    undisturbed = study.parent / "undisturbed"
    for row, other in zip(interrupted, trials(undisturbed), strict=True):
        runs = [tmp_path / each.pop("folder") for each in (row, other)]
        assert untimed(runs[0]) == untimed(runs[1])
    assert [list(row.values()) for row in interrupted] == [
        [value for key, value in row.items() if key != "folder"] for row in trials(undisturbed)
    ]


def test_a_second_process_is_refused(write, tool, tune, study):
    from edkd.folder_lock import lock

    tune(write(trials=1))
    with lock(study):
        assert_refused(tool("tune", write(trials=2)), "output/tune/s is in use")
    assert len(trials(study)) == 1


# The final runs.


def test_the_final_runs_use_all_training_images_and_are_named_tuned(write, tune, tmp_path):
    file = write(trials=1, search={"SOLVER.LR": [0.05, 0.3]}, seeds=[2])
    done = tune(file, "--final")
    assert "| pausing,tuned,narrow | 208 | 1 |" in done.out
    run = tmp_path / "output" / "p" / "pausing,tuned,narrow,SOLVER.SEED=2"
    assert "71 training images" in (run / "worklog.txt").read_text()
    result = json.loads((run / "result.json").read_text())
    assert result["settings"]["DATASET.VAL_SPLIT"] == 0
    assert "last_test_top1" in result

    # Once more: nothing is repeated.
    assert tune(file, "--final").out.count("already there") == 1

    # Trials are no results.
    found, left_out = search_runs([tmp_path / "output"])
    assert found == [run]
    (line,) = left_out
    assert "output/tune/s holds the trials of a study, which were not evaluated" in line


@pytest.mark.slow
def test_a_study_whose_final_runs_another_one_has_trained_is_refused_before_its_search(
    write, tool, tune, study
):
    tune(write(trials=1, seeds=[2]), "--final")
    other = write(trials=1, seeds=[1, 2], name="other")
    done = tool("tune", other, "--final")
    assert_refused(done, "narrow,SOLVER.SEED=2 holds a final run of another study; .*NAME: other}")
    assert not study.with_name("other").exists()

    done = tune(write(trials=1, seeds=[2], name="other", set={"EXPERIMENT.NAME": "o"}), "--final")
    assert "| o,tuned | 208 | 1 |" in done.out


def test_final_runs_have_the_epochs_and_the_project_of_the_file_not_those_of_a_trial(
    write, tune, study
):
    fixed = {"SOLVER.EPOCHS": 4, "SOLVER.LR_DECAY_STAGES": [2, 3], "EXPERIMENT.PROJECT": "mine"}
    tune(write(trials=1, epochs=1, set=fixed))
    cfg = load_config(str(study / "best.yaml"))
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.LR_DECAY_STAGES) == (4, [2, 3])
    assert cfg.EXPERIMENT.PROJECT == "mine"


@pytest.mark.slow
def test_final_runs_with_values_that_are_not_the_best_any_more_are_named(
    write, tool, tune, tmp_path
):
    file = write(trials=1, seeds=[2])
    tune(file, "--final")
    config = tmp_path / "output" / "p" / "pausing,tuned,narrow,SOLVER.SEED=2" / "config.yaml"
    config.write_text(config.read_text().replace("LR: 0.05", "LR: 0.06"))
    done = tool("tune", file, "--final")
    assert_refused(done, "SEED=2 was trained with other values .*SOLVER.LR was 0.06.*remove it")

    config.write_text("damaged: [")
    assert_refused(tool("tune", file, "--final"), "config.yaml")


def test_final_runs_are_named_after_the_best_method(write, tune, study):
    methods = ["NONE", "USKD"]
    tune(write(trials=1, epochs=1, search={"DISTILLER.TYPE": methods}))
    cfg = load_config(str(study / "best.yaml"))
    assert cfg.DISTILLER.TYPE in methods
    method, *others = cfg.EXPERIMENT.TAG.split(",")
    assert (method, others) == (cfg.DISTILLER.TYPE.lower(), ["tuned", "narrow"])


@pytest.mark.slow
def test_equal_trials_are_trained_once(write, tune, study):
    done = tune(write(trials=4, epochs=1, search={"SOLVER.LR": [0.05, 0.1]}))
    rows = trials(study)
    repeated = [row for row in rows if row["epochs"] == "0"]
    assert len(rows) == 4
    assert len(repeated) >= 2
    for row in repeated:
        (trained,) = [each for each in rows if each["folder"] == row["folder"] and each != row]
        assert trained["SOLVER.LR"] == row["SOLVER.LR"]
        assert trained["held_out_top1"] == row["held_out_top1"]
        assert f"trial {row['trial']}: SOLVER.LR={row['SOLVER.LR']}: as trial" in done.out
    assert f"4 trials ({len(repeated)} repeated), {4 - len(repeated)} epochs" in done.out


def test_the_best_file_uses_all_images_also_of_a_configuration_that_holds_some_out(
    write, tune, study, tmp_path
):
    file = write(trials=1, epochs=1)
    config = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    config["DATASET"] |= {"VAL_SPLIT": 0.3, "TEST": {"EVALUATE": False}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    tune(file)
    cfg = load_config(str(study / "best.yaml"), [])
    assert (cfg.DATASET.VAL_SPLIT, cfg.DATASET.TEST.EVALUATE) == (0, True)


def test_the_best_file_trains(write, tool, tune, study, tmp_path):
    tune(write(trials=2, set={"SOLVER.EPOCHS": 2, "SOLVER.LR_DECAY_STAGES": [1]}))
    words = ["--plugin", PLUGIN, "--plugin", "pausing.py", "--cfg", study / "best.yaml"]
    done = tool("train", *words)
    assert done.code == 0, done.err
    saved = yaml.safe_load(
        (tmp_path / "output" / "p" / "pausing,tuned,narrow" / "config.yaml").read_text()
    )
    best = yaml.safe_load((study / "best.yaml").read_text())
    assert saved["SOLVER"]["LR"] == best["SOLVER"]["LR"]
    assert saved["SOLVER"]["EPOCHS"] == 2
    assert saved["DATASET"]["VAL_SPLIT"] == 0.0


def test_a_study_of_digits(tune, tmp_path, monkeypatch):
    """Real images, from the files of the checkout."""
    monkeypatch.chdir(tmp_path)
    content = {
        "config": str(CHECKOUT / "configs" / "digits" / "vanilla" / "resnet8.yaml"),
        "search": {"SOLVER.LR": {"low": 1e-4, "high": 0.1, "log": True}},
        "trials": 2,
        "epochs": 1,
        "halving": False,
    }
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(content))
    tune("d.yaml")
    with open(tmp_path / "output" / "tune" / "d" / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["SOLVER.LR"] == "0.02"
    assert rows[0]["state"] == "complete"
    assert "90 images (val)" in (tmp_path / rows[0]["folder"] / "worklog.txt").read_text()
