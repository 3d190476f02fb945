"""A learning rate that was chosen for another batch size."""

import pytest

from edkd.engine.config.batch_hint import hints_of
from edkd.engine.config.load import load_config
from tests.runs import CHECKOUT

FILE = CHECKOUT / "configs/tiny_imagenet/vanilla/MobileNetV2.yaml"
"""SOLVER.LR 0.2 for batches of 256."""


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        (
            ["SOLVER.BATCH_SIZE=16"],
            "SOLVER.LR 0.2 was set for SOLVER.BATCH_SIZE 256; for 16, linear scaling suggests "
            "SOLVER.LR 0.0125",
        ),
        (["SOLVER.BATCH_SIZE=1024"], "for 1024, linear scaling suggests SOLVER.LR 0.8"),
        (["SOLVER.BATCH_SIZE=256"], ""),
        (["SOLVER.BATCH_SIZE=16", "SOLVER.LR=0.1"], ""),
        (["SOLVER.BATCH_SIZE=16", "SOLVER.TYPE=AdamW"], ""),
        ([], ""),
    ],
)
def test_the_command_line(opts, expected):
    found = hints_of(load_config(str(FILE), opts))
    assert len(found) == bool(expected)
    assert expected in " ".join(found)


def test_a_file_that_changes_the_batches_of_its_base(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(f"_BASE_: {FILE}\nSOLVER: {{BATCH_SIZE: 64}}\n")
    (line,) = hints_of(load_config(str(own)))
    assert "SOLVER.BATCH_SIZE 256; for 64, linear scaling suggests SOLVER.LR 0.05" in line
    assert hints_of(load_config(str(own), ["SOLVER.LR=0.05"])) == []

    # With its own rate; and a rate of the command line that is the default.
    own.write_text(f"_BASE_: {FILE}\nSOLVER: {{BATCH_SIZE: 64, LR: 0.05}}\n")
    assert hints_of(load_config(str(own))) == []
    assert hints_of(load_config("", ["SOLVER.BATCH_SIZE=16"])) == []


def test_the_line_is_in_the_log(tool, tiny, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("SOLVER: {BATCH_SIZE: 16, LR: 0.1}\n")
    done = tool("train", "--cfg", file, *tiny, "a", "DISTILLER.TYPE", "NONE")
    line = "SOLVER.BATCH_SIZE 16; for 8, linear scaling suggests SOLVER.LR 0.05"
    assert line in done.out
    assert line in (tmp_path / "distill/a/worklog.txt").read_text()
