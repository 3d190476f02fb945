"""Suggestions: only what is close, and names that other systems have."""

import pytest

from edkd import known_elsewhere
from edkd.distillers import method_names
from edkd.engine.config.table import table
from edkd.hints import closest, distance, hint
from edkd.known_elsewhere import key_note, method_note


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
    assert method_note("ReviewKD").startswith("; ReviewKD is known from mdistiller; edkd does not")
    assert method_note("kd-svd") != ""
    assert "SOLVER.TRAINER dot" in method_note("DOT")
    assert method_note("MYKD") == ""
    assert key_note("SOLVER.SYNC_BN").endswith("; edkd does not have it")
    assert key_note("SOLVER.OPT").endswith("; use SOLVER.TYPE")
    assert key_note("CRD") != ""
    assert key_note("CRD.MODE") == key_note("SOLVER.LRR") == ""


def test_the_names_of_other_systems_are_none_of_ours():
    """When a method or a key arrives, its line in known_elsewhere.py goes."""
    own = {name.upper() for name in method_names()}
    assert own & set(known_elsewhere.METHODS) == set()
    last_parts = {name.rpartition(".")[2] for name in table()}
    assert last_parts & set(known_elsewhere.KEYS) == set()
