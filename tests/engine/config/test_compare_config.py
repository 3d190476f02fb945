"""What may change on --resume, what names a run, and what decides a result."""

import pytest

from edkd.engine.config.compare import (
    changed_keys,
    differences,
    flatten,
    identifying,
    long_warmups,
    saved_config,
    saved_text,
    unused_groups,
)
from edkd.engine.config.load import load_config
from edkd.engine.config.table import table


def changes(before, after):
    saved = saved_config(saved_text(load_config(opts=before)))
    return changed_keys(saved, load_config(opts=after))


FREE = {
    "EXPERIMENT.PROJECT",
    "EXPERIMENT.NAME",
    "EXPERIMENT.TAG",
    "DATASET.ROOT",
    "DATASET.LIST",
    "DATASET.NUM_WORKERS",
    "DATASET.WORKER_TIMEOUT",
    "DATASET.PREFETCH",
    "DATASET.ON_BAD_IMAGE",
    "DATASET.TEST.BATCH_SIZE",
    "DATASET.TEST.EVALUATE",
    "DISTILLER.CHECK_TEACHER",
    "SOLVER.EPOCHS",
    "SOLVER.CHECKPOINT_MINUTES",
    "SOLVER.PROCESS_TIMEOUT",
    "TEACHER_MEMO.FOLDER",
    "TEACHER_MEMO.MAX_GB",
    "LOG.PREFIX",
    "LOG.TENSORBOARD_FREQ",
    "LOG.SAVE_CHECKPOINT_FREQ",
    "LOG.KEEP",
    "LOG.PRINT",
    "LOG.WANDB",
}


def test_the_keys_that_may_change_on_resume():
    assert {name for name, key in table().items() if key.free_on_resume} == FREE


def test_the_keys_that_do_not_name_a_run():
    nameless = {name for name, key in table().items() if not key.names_run}
    paths = {name for name, key in table().items() if key.is_path}
    names = {name for name in table() if name.startswith(("EXPERIMENT.", "LOG."))}
    paths -= {"DISTILLER.STUDENT_CKPT"}  # decides the result
    others = {"DATASET.ON_BAD_IMAGE", "DISTILLER.CHECK_TEACHER", "SOLVER.PROCESS_TIMEOUT"}
    assert nameless == names | paths | others
    assert paths == {
        "DATASET.ROOT",
        "DATASET.LIST",
        "DISTILLER.TEACHER_CKPT",
        "TEACHER_MEMO.FOLDER",
        "LOG.PREFIX",
    }


@pytest.mark.parametrize(
    "opts",
    [
        ["SOLVER.EPOCHS", "3", "LOG.WANDB", "False", "EXPERIMENT.TAG", "x"],
        ["KD.TEMPERATURE", "2", "SOLVER.DOT.DELTA", "0.5", "COMBINED.CE_WEIGHT", "2"],
    ],
)
def test_changes_that_are_allowed(opts):
    assert changes([], opts) == []


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([], ["SOLVER.LR=0.1"], "SOLVER.LR was 0.05 and is 0.1"),
        (
            [],
            ["SOLVER.LR_DECAY_STAGES=[1]"],
            "SOLVER.LR_DECAY_STAGES was [150, 180, 210] and is [1]",
        ),
        (
            ["DISTILLER.TYPE=KD"],
            ["DISTILLER.TYPE=kd", "KD.TEMPERATURE=2"],
            "KD.TEMPERATURE was 4.0",
        ),
        (
            ["DISTILLER.TYPE=KD+DKD"],
            ["DISTILLER.TYPE=KD+DKD", "DKD.BETA=2"],
            "DKD.BETA was 8.0 and is 2.0",
        ),
        (
            ["DISTILLER.TYPE=KD+DKD"],
            ["DISTILLER.TYPE=KD+DKD", "COMBINED.CE_WEIGHT=2"],
            "COMBINED.CE_WEIGHT was 1.0",
        ),
        (
            ["SOLVER.SCHEDULE=cosine"],
            ["SOLVER.SCHEDULE=cosine", "SOLVER.EPOCHS=3"],
            "SOLVER.EPOCHS was 240 and is 3",
        ),
    ],
)
def test_changes_that_are_not_allowed(before, after, message):
    [change] = changes(before, after)
    assert change.startswith(message)


def test_a_key_that_the_saved_configuration_lacks_had_its_default():
    saved = saved_config(load_config().dump())
    del saved["SOLVER.NESTEROV"]
    assert changed_keys(saved, load_config()) == []
    assert changed_keys(saved, load_config(opts=["SOLVER.NESTEROV", "True"])) != []


@pytest.mark.parametrize(
    "text", ["3", "[1]", "LOG: {", "!!python/name:os.system", "\0", "[" * 5000]
)
def test_text_that_is_not_a_saved_configuration(text):
    with pytest.raises(ValueError, match="not a saved configuration"):
        saved_config(text)


USED = ["DISTILLER.TYPE=DKD", "DKD.BETA=2", "KD.TEMPERATURE=3"]


def test_a_saved_configuration_holds_the_groups_in_use(tmp_path):
    cfg = load_config(opts=USED)
    groups = {name.split(".")[0] for name in saved_config(saved_text(cfg))}
    assert groups == {"EXPERIMENT", "DATASET", "DISTILLER", "SOLVER", "TEACHER_MEMO", "LOG", "DKD"}
    assert "SOLVER.DOT.DELTA" not in saved_config(saved_text(cfg))
    assert "SOLVER.DOT.DELTA" in saved_config(saved_text(load_config(opts=["SOLVER.TRAINER=dot"])))

    # It is read back, and so is a whole one, as earlier versions saved it.
    for text in (saved_text(cfg), cfg.dump()):
        (tmp_path / "config.yaml").write_text(text)
        again = load_config(str(tmp_path / "config.yaml"))
        assert identifying(again) == identifying(cfg)
        assert changed_keys(saved_config(text), cfg) == []
        assert differences(saved_config(text), cfg) == {}
    assert dict(flatten(again)) == dict(flatten(cfg))


def test_another_method_than_the_saved_one():
    (change,) = changes(USED, ["DISTILLER.TYPE=KD"])
    assert change == "DISTILLER.TYPE was 'DKD' and is 'KD'"


def test_a_path_that_was_saved_as_written_is_the_same(monkeypatch):
    """Earlier versions saved ~ and $VARIABLE."""
    monkeypatch.setenv("WEIGHTS", "/tmp/weights")
    opts = ["DISTILLER.TYPE=KD", "DISTILLER.TEACHER_CKPT=~/$WEIGHTS/a"]
    saved = saved_config(saved_text(load_config(opts=opts)))
    saved["DISTILLER.TEACHER_CKPT"] = "~/$WEIGHTS/a"
    assert changed_keys(saved, load_config(opts=opts)) == []


@pytest.mark.parametrize(
    ("opts", "named"),
    [
        (["SOLVER.WARMUP_EPOCHS=5", "SOLVER.EPOCHS=4"], ["SOLVER.WARMUP_EPOCHS 5"]),
        (["SOLVER.WARMUP_EPOCHS=5", "SOLVER.EPOCHS=5"], []),
        (["DISTILLER.TYPE=DKD", "SOLVER.EPOCHS=3"], ["DKD.WARMUP 20"]),
        (["DISTILLER.TYPE=KD+DKD", "SOLVER.EPOCHS=3"], ["DKD.WARMUP 20"]),
        (["DISTILLER.TYPE=KD", "SOLVER.EPOCHS=3"], []),
    ],
)
def test_warmups_that_are_longer_than_the_run(opts, named):
    lines = long_warmups(load_config(opts=opts))
    assert len(lines) == len(named)
    for line, name in zip(lines, named, strict=True):
        assert line.startswith(f"warning: {name} is longer than the run of SOLVER.EPOCHS")


def test_unused_groups():
    groups = unused_groups(load_config(opts=["DISTILLER.TYPE=KD+DKD", "SOLVER.TRAINER=dot"]))
    assert not {"KD.", "DKD.", "SOLVER.DOT.", "COMBINED."} & set(groups)
    assert "EDKD." in groups
    groups = unused_groups(load_config())
    assert {"KD.", "DKD.", "SOLVER.DOT.", "COMBINED."} <= set(groups)
    assert "SOLVER." not in groups


def test_what_decides_a_result():
    base = identifying(load_config(opts=["DISTILLER.TYPE=KD"]))
    assert base["SOLVER.EPOCHS"] == 240
    assert base["KD.TEMPERATURE"] == 4.0
    left_out = ("EXPERIMENT.", "LOG.", "DKD.", "SOLVER.DOT.", "COMBINED.")
    assert not [name for name in base if name.startswith(left_out)]
    assert not {"SOLVER.SEED", "DISTILLER.TEACHER_CKPT", "DATASET.ROOT"} & set(base)

    same = ["SOLVER.SEED=7", "LOG.WANDB=no", "DATASET.NUM_WORKERS=0", "DKD.BETA=1"]
    assert identifying(load_config(opts=["DISTILLER.TYPE=KD", *same])) == base
    for other in ("SOLVER.EPOCHS=3", "KD.TEMPERATURE=1", "SOLVER.LR=1"):
        assert identifying(load_config(opts=["DISTILLER.TYPE=KD", other])) != base
