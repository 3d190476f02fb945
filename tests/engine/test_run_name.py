"""The name of a run: what it holds, and what no file system refuses."""

import re

import pytest

from edkd.engine.config.load import load_config
from edkd.engine.run_folder import run_folder
from edkd.engine.run_name import old_names, portable


def name(*opts, file="", tmp_path="."):
    opts = ["LOG.PREFIX", str(tmp_path), *opts]
    return run_folder(load_config(file, opts), opts).name


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        (["SOLVER.LR=0.1", "SOLVER.SEED", "2"], "default,SOLVER.LR=0.1,SOLVER.SEED=2"),
        (["SOLVER.SEED", "010"], "default,SOLVER.SEED=10"),
        (["SOLVER.LR", "1e-4"], "default,SOLVER.LR=0.0001"),
        (["SOLVER.LR", "1"], "default,SOLVER.LR=1"),
        (["SOLVER.NESTEROV", "yes"], "default,SOLVER.NESTEROV=True"),
        (["SOLVER.LR_DECAY_STAGES", "(7, 9)"], "default,SOLVER.LR_DECAY_STAGES=[7,9]"),
        (["EXPERIMENT.TAG", "x", "LOG.WANDB", "no"], "x"),
        (["EXPERIMENT.NAME", "mine", "SOLVER.LR", "1"], "mine"),
        # What may change on --resume is left out; cosine ends with the last epoch.
        (["SOLVER.EPOCHS", "3", "DATASET.NUM_WORKERS", "0"], "default"),
        (
            ["SOLVER.EPOCHS=3", "SOLVER.SCHEDULE=cosine"],
            "default,SOLVER.EPOCHS=3,SOLVER.SCHEDULE=cosine",
        ),
        # A tag that begins with the method says it.
        (["EXPERIMENT.TAG", "kd,a,b", "DISTILLER.TYPE", "KD"], "kd,a,b"),
        (["DISTILLER.TYPE", "KD"], "default,DISTILLER.TYPE=KD"),
    ],
)
def test_what_names_a_run(opts, expected):
    assert name(*opts) == expected


@pytest.mark.parametrize(
    ("tag", "method", "expected"),
    [
        ("kd,res56,res20", "DKD", "dkd,res56,res20"),
        ("kd,res56,res20", "KD", "kd,res56,res20"),
        ("kd,res56,res20", "KD+DKD", "kd+dkd,res56,res20"),
        ("kd,res56,res20", "NONE", "none,res56,res20"),
        ("mine", "DKD", "mine,DISTILLER.TYPE=DKD"),
        ("dkd,res56,res20", "EDKD", "dkd,res56,res20,DISTILLER.TYPE=EDKD"),
    ],
)
def test_a_run_is_named_after_its_own_method(tmp_path, tag, method, expected):
    """Each file is of the method KD."""
    file = tmp_path / "x.yaml"
    file.write_text(f"EXPERIMENT: {{TAG: '{tag}'}}\nDISTILLER: {{TYPE: KD}}\n")
    assert name("DISTILLER.TYPE", method, file=str(file)) == expected


def test_a_student_alone_that_gets_a_method(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("EXPERIMENT: {TAG: 'vanilla,resnet8'}\n")
    assert name("DISTILLER.TYPE", "KD", file=str(file)) == "kd,resnet8"
    assert name("DISTILLER.TYPE=KD", "EXPERIMENT.TAG=x", file=str(file)) == "x,DISTILLER.TYPE=KD"


PORTABLE = [
    ("kd,res56,res20,SOLVER.LR=0.1", "kd,res56,res20,SOLVER.LR=0.1"),
    ("a:b", "a_b"),
    ('<a>|"b"?*\\', "_a___b____"),
    ("a\tb\n", "a_b_"),
    ("end.", "end_"),
    ("end . ", "end___"),
    ("...", "___"),
    ("CON", "CON_"),
    ("nul.txt", "nul_.txt"),
    ("com1", "com1_"),
    ("COM¹ .x", "COM¹_.x"),
    ("aux/prn", "aux_/prn_"),
    ("console", "console"),
    ("COM10", "COM10"),
    ("NUL,SOLVER.LR=1", "NUL,SOLVER.LR=1"),
    ("日本 é", "日本 é"),
    ("..", ".."),
]


@pytest.mark.parametrize(("given", "expected"), PORTABLE)
def test_portable_names(given, expected):
    assert portable(given) == expected
    assert portable(expected) == expected


def test_no_name_has_what_windows_forbids():
    strange = "".join(map(chr, range(1, 128))).replace("/", "")
    opts = ["EXPERIMENT.PROJECT", f"{strange} . ", "EXPERIMENT.TAG", f"{strange} . "]
    opts += ["DISTILLER.TEACHER", strange[30:60]]
    folder = run_folder(load_config(opts=opts), opts)
    for part in folder.parts[1:]:
        assert not re.search(r'[<>:"|?*\\\x00-\x1f]', part)
        assert not part.endswith((".", " "))


def test_the_names_that_earlier_versions_gave():
    opts = ["SOLVER.EPOCHS=010", "SOLVER.LR", ".1", "LOG.WANDB", "no"]
    assert list(old_names("kd", opts)) == [
        "kd,SOLVER.EPOCHS=010,SOLVER.LR=.1",
        "kd,SOLVER.EPOCHS:010,SOLVER.LR:.1",
    ]
