"""Names of runs: the label of a method, and the pair of networks."""

import pytest

from edkd.results.names import method_of, precision_of, shown
from edkd.results.runs import read_run


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"DISTILLER.TYPE": "KD"}, "KD"),
        ({"DISTILLER.TYPE": "KD", "DISTILLER.LSKD": True}, "KD+LSKD"),
        (
            {"DISTILLER.TYPE": "DKD", "DISTILLER.LSKD": True, "DISTILLER.EAKD": True},
            "DKD+LSKD+EAKD",
        ),
        ({"DISTILLER.TYPE": "KD", "SOLVER.TRAINER": "dot"}, "KD+DOT"),
        ({"DISTILLER.TYPE": "CRD", "SOLVER.TRAINER": "crd"}, "CRD"),
        ({"DISTILLER.TYPE": "CRD", "SOLVER.TRAINER": "crd_dot"}, "CRD+DOT"),
        ({"DISTILLER.TYPE": "KD", "SOLVER.TRAINER": "my_rule"}, "KD+my_rule"),
        ({"DISTILLER.TYPE": "EDKD", "EDKD.FORM": "reference"}, "EDKD (reference)"),
        ({"DISTILLER.TYPE": "EDKD+AT", "EDKD.FORM": "paper"}, "EDKD+AT (EDKD paper)"),
        ({"DISTILLER.TYPE": "SDD", "SDD.BASE": "dkd"}, "SDD (base dkd)"),
        ({"DISTILLER.TYPE": "NONE", "NONE.CE_WEIGHT": 2.0}, "NONE (CE x 2)"),
        ({"DISTILLER.TYPE": "NONE", "NONE.CE_WEIGHT": 1.0}, "NONE"),
        ({"DISTILLER.TYPE": "KD", "DISTILLER.SHUFFLE_TEACHER": True}, "KD (teacher shuffled)"),
        ({}, "unknown"),
    ],
)
def test_labels(settings, label):
    assert method_of(settings, {}) == label


def test_the_student_alone_is_named_for_readers():
    assert shown("NONE") == "student alone"
    assert shown("NONE (CE x 2)") == "student alone (CE x 2)"
    assert shown("NONEXISTENT") == "NONEXISTENT"


def test_pairs(tmp_path, write_run):
    def pair(name, **result):
        run = read_run(write_run(tmp_path / name, **result))
        return run.pair, run.architecture

    assert pair("a", teacher="wrn_40_2", student=["wrn_16_2"]) == (
        "wrn_40_2 -> wrn_16_2",
        "wrn_16_2",
    )
    assert pair("b", teacher="", student=["resnet20"]) == ("resnet20", "resnet20")
    assert pair("c", teacher=["a", "b"], student=["s"]) == ("a + b -> s", "s")
    assert pair("d", teacher="", student=["s", "s", "s"]) == ("3 x s", "s")
    assert pair("e", teacher="", student=["s", "t"]) == ("s + t", "s + t")


def test_pairs_of_older_versions(tmp_path, write_run):
    """Their results do not name the networks."""
    names = {"DISTILLER.TEACHER": "t", "DISTILLER.STUDENT": "s"}
    assert read_run(write_run(tmp_path / "a", settings=names)).pair == "t -> s"
    alone = names | {"DISTILLER.TYPE": "NONE"}
    assert read_run(write_run(tmp_path / "b", settings=alone)).pair == "s"


def test_precisions():
    """`auto` depends on the hardware, which the environment tells."""
    assert precision_of({"SOLVER.AMP": "off"}, {}) == "float32"
    assert precision_of({"SOLVER.AMP": "bf16"}, {}) == "bfloat16"
    assert precision_of({"SOLVER.AMP": "auto"}, {}) == ""
    assert precision_of({"SOLVER.AMP": "auto"}, {"precision": "float32"}) == "float32"
