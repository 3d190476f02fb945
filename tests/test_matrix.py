"""Every method trains, stops, resumes bit for bit, and leaves a student that can be evaluated.

The short form of benchmarks/matrix.py, for all that is registered; and benchmarks/methods.py and
gradients.py.
"""

import importlib
import json
import os
from contextlib import nullcontext

import pytest
import torch

from edkd.distillers import find_method, method_names
from edkd.engine.checkpoint import save_checkpoint
from edkd.engine.config.compare import long_warmups
from tests.conftest import CHECKOUT, FORM
from tests.short_forms import slow_but
from tests.small import make_trainer

SMALL = ("resnet14", "resnet8")
UNLIKE = ("resnet14", "MobileNetV2")
SHORT = ("EDKD", "DML", "CRD", "SIMKD", "OFD", "DEIT")
"""Methods of the short form."""
REFUSING = {"DEIT": "a distillation token"}
"""Methods that need other students, and what those have."""


def module(name):
    """A module of benchmarks/, which is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CHECKOUT / "benchmarks"))
        return importlib.import_module(name)


def reads_maps(method):
    """Whether a method compares or projects feature maps."""
    needs = {*method.student_needs, *method.teacher_needs}
    return bool(needs & {"feats", "preact_feats"})


CELLS = module("_cells")
FEW_DIGITS = module("_few_digits")
METHODS = module("methods")
GRADIENTS = module("gradients")
VARIANTS = CELLS.variants()
READ_MAPS = [name for name in method_names() if reads_maps(find_method(name))]
"""Methods whose loss depends on the shapes of feature maps."""


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture
def run(teachers, tmp_path, monkeypatch):
    """run(variant, pair): the cell, on the CPU in float32."""
    if FORM != "full":
        monkeypatch.setattr(os, "fsync", lambda handle: None)
        monkeypatch.setattr(FEW_DIGITS, "PER_CLASS", 1)
        monkeypatch.setattr(CELLS, "BATCH_SIZE", 5)
    place = CELLS.Place(tmp_path, teachers, torch.device("cpu"), exports=False)
    return lambda variant, pair: CELLS.run_cell(variant, CELLS.Pair(*pair), place)


@pytest.mark.parametrize("variant", slow_but(SHORT, VARIANTS))
def test_on_networks_of_different_widths(run, variant):
    cell = run(variant, SMALL)
    if variant in REFUSING:
        assert cell.status == "refused"
        assert REFUSING[variant] in cell.reason
        return
    assert (cell.status, cell.reason) == ("ok", "")


def save_run(folder, weight=1.0, **figures):
    """What `check_equal` reads of a run."""
    record = {"epoch": 1, "train_loss": 0.5, "train_seconds": 1.0, **figures}
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    state = {"model": {"weight": torch.tensor(weight)}, "optimizer": {"state": {}}}
    save_checkpoint(state, folder / "latest")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"train_seconds": 2.0, "eval_seconds": 2.0, "data_seconds": 2.0}, ""),
        ({"train_loss": 0.5000001}, "other figures in metrics.jsonl"),
        ({"weight": 1.0000001}, "model differs in weight"),
    ],
)
def test_runs_are_compared_bit_for_bit_except_their_times(tmp_path, changes, found):
    save_run(tmp_path / "one")
    save_run(tmp_path / "other", **changes)
    expected = pytest.raises(CELLS.CellError, match=found) if found else nullcontext()
    with expected:
        CELLS.check_equal(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_short_protocol_has_a_configuration(variant, tmp_path):
    """That of benchmarks/methods.py, with warm-ups that end within it."""
    protocol = METHODS.Protocol("cifar100", "res56_res20", 5, str(tmp_path), [])
    cfg = METHODS.config_of(variant, protocol)
    solver = cfg.SOLVER
    assert (solver.EPOCHS, solver.LR_DECAY_STAGES, solver.SEED) == (5, [3, 4], 1)
    assert long_warmups(cfg) == []


def test_a_method_without_a_teacher_has_the_file_of_the_controls(tmp_path):
    protocol = METHODS.Protocol("cifar100", "res56_res20", 5, str(tmp_path), [])
    assert METHODS.config_of("USKD", protocol).USKD.ALPHA == 0.1  # not the default, 1


def test_gradients_are_relative_to_the_cross_entropy_with_weight_1(tmp_path):
    def ratio(method, *opts):
        trainer = make_trainer(method, tmp_path, *opts, cached=False)
        return GRADIENTS.ratio(trainer, steps=2)

    kd = ratio("KD")
    assert ratio("KD", "KD.LOSS.KD_WEIGHT", 1.8) == pytest.approx(2 * kd)
    assert ratio("KD", "KD.LOSS.CE_WEIGHT", 5) == pytest.approx(kd)
    assert ratio("NONE") == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("variant", READ_MAPS)
def test_on_networks_of_unlike_families(run, variant):
    """A method works, or names in one line what it cannot use, before it writes a file."""
    cell = run(variant, UNLIKE)
    assert cell.status in ("ok", "refused"), cell.reason
