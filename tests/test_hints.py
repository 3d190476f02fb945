"""Suggestions: only what is close, and names that other systems have."""

import pytest

from edkd import known_elsewhere
from edkd.distillers import method_names
from edkd.engine.config.load import load_config
from edkd.engine.config.table import table
from edkd.errors import UserError
from edkd.hints import closest, distance, hint
from edkd.known_elsewhere import key_note, method_note
from edkd.registry import UPDATES


@pytest.mark.parametrize(
    ("first", "second", "edits"),
    [
        ("", "", 0),
        ("kd", "kd", 0),
        ("", "kd", 2),
        ("kd", "dk", 1),
        ("papre", "paper", 1),
        ("rkd", "kd", 1),
        ("reviewkd", "edkd", 5),
        ("ca", "abc", 3),
    ],
)
def test_distance(first, second, edits):
    assert distance(first, second) == distance(second, first) == edits


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("KDD", ["DKD", "KD"], "KD"),
        ("K", ["KD", "LOG"], "KD"),
        ("resnt20", ["resnet8", "resnet20"], "resnet20"),
        ("RESNET20", ["resnet8", "resnet20"], "resnet20"),
        ("MOMEMTUN", ["MOMENTUM"], "MOMENTUM"),
        ("WARMUP", ["EPOCHS", "WARMUP_EPOCHS"], "WARMUP_EPOCHS"),
        ("LABEL_SMOOTHING", ["LR_DECAY_STAGES", "SCHEDULE"], ""),
        ("MIXUP", ["TYPE", "ROOT"], ""),
        ("DOT", ["TYPE", "LR"], ""),
        ("REVIEWKD", ["EDKD", "KD", "DKD"], ""),
        ("AT", ["KD", "DML"], ""),
        ("LR_", ["LR"], "LR"),
        ("evaluate", ["train", "eval"], "eval"),
        ("KDSVD", ["KD"], ""),
        ("SEED_WORKERS", ["SEED"], ""),
        ("resnet8x22", ["resnet8"], ""),
        ("", ["LR"], ""),
        ("x", [], ""),
    ],
)
def test_only_what_is_close_is_suggested(word, known, meant):
    assert closest(word, known) == meant
    assert hint(word, known) == (f", did you mean '{meant}'?" if meant else "")


def test_names_of_other_systems():
    assert method_note("SemCKD").startswith("; SemCKD is known from SimKD; edkd does not have it")
    assert method_note("cat-kd") != ""
    assert method_note("DOT").endswith(
        "; DOT is known from mdistiller; here it is SOLVER.TRAINER dot"
    )
    assert method_note("EA-KD").endswith("here it is DISTILLER.EAKD True")
    assert method_note("logit_stand").endswith("here it is DISTILLER.LSKD True")
    assert method_note("KD++").endswith("here it is DISTILLER.TYPE KD+ND")
    assert method_note("MYKD") == ""
    assert key_note("SOLVER.SYNC_BN").endswith("; edkd does not have it")
    assert key_note("SOLVER.OPT").endswith("; use SOLVER.TYPE")
    assert key_note("FSP") != ""
    assert key_note("FSP.MODE") == key_note("SOLVER.LRR") == ""


def test_the_names_of_other_systems_are_none_of_ours():
    """When a method or a key arrives, its line in known_elsewhere.py goes."""
    own = {name.upper() for name in method_names()}
    assert own & {*known_elsewhere.METHODS, *known_elsewhere.SYNONYMS} == set()
    last_parts = {name.rpartition(".")[2] for name in table()}
    assert last_parts & set(known_elsewhere.KEYS) == set()


@pytest.mark.parametrize("name", known_elsewhere.SYNONYMS)
def test_what_a_synonym_stands_for_is_here(name):
    key, value = known_elsewhere.SYNONYMS[name].here.split()
    registered = {"DISTILLER.TYPE": method_names(), "SOLVER.TRAINER": UPDATES.names()}
    absent = set(value.split("+")) - set(registered.get(key, [value]))
    if absent:
        pytest.skip(f"no {', '.join(absent)}")
    assert key in table()


def test_a_name_that_ends_with_a_sign_is_read_as_a_whole():
    """KD++ would be KD and two methods without a name."""
    with pytest.raises(UserError, match=r"'KD\+\+'.*here it is DISTILLER.TYPE KD\+ND"):
        load_config(opts=["DISTILLER.TYPE", "KD++"])
    with pytest.raises(UserError, match=r"DISTILLER.TYPE is 'KD\+', not one of"):
        load_config(opts=["DISTILLER.TYPE", "KD+"])
