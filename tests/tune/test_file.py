"""The file of a study: mistakes are one line, before anything is written."""

import pytest

from edkd.errors import UserError
from edkd.tune.plan import plan_study
from edkd.tune.space import Choices, Interval
from tests.conftest import CHECKOUT
from tests.runs import assert_refused

LR = {"SOLVER.LR": {"low": 0.01, "high": 1}}

MISTAKES = [
    # The file's own keys.
    (dict(trails=3), "unknown key 'trails', did you mean 'trials'"),
    (dict(trials=0), "trials must be a whole number from 1"),
    (dict(trials=2.5), "trials must be a whole number"),
    (dict(config="none.yaml"), r"config: no file none\.yaml"),
    (dict(config=["tiny.yaml"]), "config must be the name of one YAML file"),
    (dict(val_split=0), "val_split must be above 0 and below 1.*test set does not choose"),
    (dict(val_split=1), "val_split must be above 0 and below 1"),
    (dict(seeds=[]), "seeds must be a list of whole numbers"),
    (dict(name="a/b"), "name must be the name of a folder, without slashes"),
    (dict(halving=True), "halving must be False, or as"),
    (dict(halving={"min_epoch": 1}), "unknown key 'min_epoch', did you mean 'min_epochs'"),
    (dict(halving={"min_epochs": 3}), "min_epochs is 3, but must be below the 3 epochs"),
    (dict(halving={"reduction": 1}), "halving: reduction must be a whole number from 2"),
    # What is searched.
    (dict(search={}), "search must be keys with ranges or lists"),
    (dict(search={"SOLVER.RL": [1, 2]}), "unknown key SOLVER.RL .*did you mean 'SOLVER.LR'"),
    (dict(search={"SOLVER": {"LR": 1}}), "search: SOLVER.LR must be a list of two values"),
    (dict(search={"SOLVER.LR": [0.1]}), "must be a list of two values or more"),
    (dict(search={"SOLVER.LR": [0.1, 0.1]}), "must be a list of different values"),
    (dict(search={"SOLVER.LR": [0.1, "fast"]}), "SOLVER.LR=fast: SOLVER.LR: 'fast' is not of type"),
    (dict(search={"SOLVER.LR": [0.1, -1]}), "SOLVER.LR is -1.0, but must be at least 0"),
    (dict(search={"SOLVER.LR": {"low": -1, "high": 1}}), "SOLVER.LR is -1.0, but must be at least"),
    (dict(search={"SOLVER.MOMENTUM": {"low": 0, "high": 2}}), "MOMENTUM is 2.0, but must be"),
    (dict(search={"SOLVER.LR": {"low": 1, "high": 1}}), "low is 1, but must be below high, 1"),
    (dict(search={"SOLVER.LR": {"low": 1}}), "SOLVER.LR: high must be a number, not None"),
    (dict(search={"SOLVER.LR": {"low": 0, "high": 1, "log": True}}), "must be above 0 where log"),
    (dict(search={"SOLVER.LR": {"low": 0, "hihg": 1}}), "unknown word 'hihg', did you mean 'high'"),
    (dict(search={"SOLVER.LR": {"low": 0, "high": 1, "step": 0}}), "step must be above 0"),
    (
        dict(search={"SOLVER.LR": {"low": 0.01, "high": 0.1, "step": 0.5}}),
        "step must be a whole part of the range from 0.01 to 0.1",
    ),
    (
        dict(search={"SOLVER": {"LR": [0.1, 0.2]}, "SOLVER.LR": [0.3, 0.4]}),
        "search: SOLVER.LR is written twice",
    ),
    (dict(search={"SOLVER.BATCH_SIZE": {"low": 1.5, "high": 9}}), "low must be a whole number"),
    (dict(search={"SOLVER.TYPE": {"low": 1, "high": 9}}), "SOLVER.TYPE is not a number"),
    (dict(search={"SOLVER.TYPE": ["SGD", "Adm"]}), "SOLVER.TYPE is 'Adm'.*did you mean 'Adam'"),
    (dict(search={"DKD.BETA": [1, 2]}), "DKD.BETA changes nothing: .* does not use it"),
    (dict(search={"SOLVER.EPOCHS": [1, 2]}), "is the budget of a trial"),
    (dict(search={"DATASET.VAL_SPLIT": [0.1, 0.2]}), "decides which images are used"),
    (dict(search={"SOLVER.SEED": [1, 2]}), "SOLVER.SEED is no hyper-parameter"),
    (dict(search={"DATASET.NUM_WORKERS": [1, 2]}), "NUM_WORKERS is no hyper-parameter"),
    (dict(search={"SOLVER.WARMUP_EPOCHS": [0, 1]}, epochs=2), "counts epochs"),
    # What is fixed.
    (dict(set={"SOLVER.LR": 1}), "SOLVER.LR is in set and in search"),
    (dict(set={"DATASET.VAL_SPLIT": 0}), "DATASET.VAL_SPLIT is set by the study"),
    (dict(set={"DKD.BETA": 1}), "DKD.BETA changes nothing"),
    (dict(set={"SOLVER.EPOCH": 1}), "unknown key SOLVER.EPOCH, did you mean 'SOLVER.EPOCHS'"),
]


@pytest.mark.parametrize(("keys", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_one_line(write, tool, tmp_path, keys, message):
    done = tool("tune", write(**keys))
    assert_refused(done, message)
    assert "s.yaml" in done.err
    assert "command line" not in done.err
    assert not (tmp_path / "output").exists()


def test_without_optuna_one_line_has_the_command(write, tool, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert_refused(tool("tune", write()), r"tune needs Optuna: pip install 'edkd\[tune\]'")


class Drawn:
    """A trial that draws the lowest number, the highest one, or a given one."""

    def __init__(self, number):
        self.number = number

    def suggest_float(self, key, low, high, step, log):
        return self.number

    suggest_int = suggest_float


@pytest.mark.parametrize(
    ("interval", "number", "text"),
    [
        (Interval(1.0, 8.0, True, None, False), 3.14159265, "3.142"),
        (Interval(1.0, 8.0, True, None, False), 4.0, "4"),
        (Interval(0.12341, 1.0, False, None, False), 0.12341, "0.12341"),  # 0.1234 is below it
        (Interval(0.0, 0.999999, False, None, False), 0.99999, "0.999999"),
        (Interval(1e-6, 1.0, True, None, False), 0.0000123456, "1.235e-05"),
        (Interval(2, 9, False, None, True), 7, "7"),
    ],
)
def test_a_drawn_number_is_short_and_within_its_range(interval, number, text):
    assert interval.suggest(Drawn(number), "X.Y") == text


def test_the_configurations_own_value_is_not_rounded():
    interval = Interval(1e-6, 1.0, True, None, False)
    assert interval.suggest(Drawn(0.0123456), "X.Y", own=0.0123456) == "0.0123456"
    assert interval.suggest(Drawn(0.0123456), "X.Y", own=0.5) == "0.01235"


def test_a_value_of_the_configuration_is_in_the_search_or_not():
    assert Interval(1.0, 8.0, True, None, False).position(4.0) == 4.0
    assert Interval(1.0, 8.0, True, None, False).position(9.0) is None
    assert Interval(0.1, 0.9, False, 0.2, False).position(0.5) == 0.5
    assert Interval(0.1, 0.9, False, 0.2, False).position(0.4) is None
    assert Interval(2, 8, False, 3, True).position(5) == 5
    assert Interval(2, 8, False, 3, True).position(4) is None


def test_the_configurations_own_values_come_first_where_they_are_searched(write):
    search = {"SOLVER.LR": [0.1, "5e-2"], "SOLVER.BETAS": [[0.9, 0.99], [0.9, 0.999]]}
    plan = plan_study(str(write(search=search)))
    assert plan.start == {"SOLVER.LR": "5e-2", "SOLVER.BETAS": "[0.9,0.999]"}
    assert plan.source.space["SOLVER.LR"] == Choices(("0.1", "5e-2"))
    assert plan_study(str(write(search={"SOLVER.LR": [0.1, 0.2]}))).start is None


def test_groups_may_be_nested(write):
    flat = plan_study(str(write(search=LR))).source.space
    nested = {"SOLVER": {"LR": {"low": 0.01, "high": 1}}}
    assert plan_study(str(write(search=nested))).source.space == flat


def test_a_shorter_trial_has_its_stages_at_the_same_shares(write):
    options = {"SOLVER.EPOCHS": 240, "SOLVER.LR_DECAY_STAGES": [150, 180, 210]}
    warmup = {"SOLVER.WARMUP_EPOCHS": 5}
    plan = plan_study(str(write(set=options | warmup, epochs=24)))
    cfg = plan.trial_config(0, {})
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.LR_DECAY_STAGES) == (24, [15, 18, 21])
    assert cfg.SOLVER.WARMUP_EPOCHS == 1
    assert plan.cfg.SOLVER.EPOCHS == 240
    assert (plan.epochs, plan.min_epochs) == (24, 24)

    plan = plan_study(str(write(set=options, epochs=24, halving={})))
    assert plan.min_epochs == 2


def test_a_trial_holds_images_out_and_leaves_the_test_set_out(write):
    cfg = plan_study(str(write())).trial_config(3, {"SOLVER.LR": "0.2"})
    assert cfg.DATASET.VAL_SPLIT == 0.2
    assert cfg.DATASET.TEST.EVALUATE is False
    assert cfg.SOLVER.LR == 0.2


@pytest.mark.parametrize(
    "file", sorted((CHECKOUT / "configs" / "tune").glob("*.yaml")), ids=lambda file: file.stem
)
def test_a_shipped_file_is_right(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = plan_study(str(file))
    assert plan.start is not None, "the configuration's own values are not in the search"
    assert plan.folder.parts == ("output", "tune", file.stem)


def test_a_pattern_of_several_configurations_is_refused(write):
    with pytest.raises(UserError, match="config must be the name of one YAML file"):
        plan_study(str(write(config="*.yaml")))
