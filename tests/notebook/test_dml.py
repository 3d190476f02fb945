"""DML(student_cohort, ...): students that learn from one another."""

import gc
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from edkd.distillers import dml_loss
from edkd.errors import NonFiniteError, StorageError, UserError
from edkd.notebook import DML, MLP
from edkd.notebook._loop import kl_from_peer
from edkd.notebook.cohort import loss_figure
from edkd.registry import METHODS

QUIET = dict(plot_losses=False, save_model=False)


def cohort(number=2, lr=0.05):
    torch.manual_seed(0)
    students = [MLP(20, 3, 16) for _ in range(number)]
    optimizers = [torch.optim.SGD(each.parameters(), lr, momentum=0.9) for each in students]
    return students, optimizers


def weights(models):
    return [value for model in models for value in model.state_dict().values()]


def test_a_cohort_learns_and_its_best_student_is_saved(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    students, optimizers = cohort(3)
    distiller = DML(students, *data, optimizers, log=True, logdir="logs")
    distiller.train_students(epochs=6, plot_losses=False, save_model_path="models/student.pt")
    history = distiller.train_students(epochs=6, save_model_path="models/student.pt")

    assert [len(record) for record in history] == 12 * [3]
    keys = {"loss", "loss_ce", "loss_kd", "top1", "test_loss", "test_top1"}
    assert all(set(row) == keys for record in history for row in record)
    assert history[-1][0]["loss"] < history[0][0]["loss"]
    assert min(distiller.evaluate()) > 80
    assert distiller.get_parameters() == 3 * [sum(p.numel() for p in students[0].parameters())]
    assert all(student.training for student in students)

    best = MLP(20, 3, 16)
    best.load_state_dict(torch.load("models/student.pt", weights_only=True)["model"])
    inputs, targets = data[1].dataset.tensors
    accuracy = 100 * (best.eval()(inputs).argmax(1) == targets).float().mean().item()
    highest = max(row["test_top1"] for record in history for row in record)
    assert accuracy == pytest.approx(highest, abs=0.01)
    assert distiller.best_accuracy == highest

    assert Path("logs/losses.png").stat().st_size > 1000
    assert list(Path("logs").glob("events.*"))
    assert Path("logs/runs/dml/student_best").is_file()


def test_one_forward_pass_per_student_and_batch_from_the_same_predictions(data):
    """Against the loss of all students together."""
    students, optimizers = cohort(3)
    twins, twin_optimizers = cohort(3)
    calls = Counter()
    for i, student in enumerate(students):
        student.register_forward_hook(lambda *a, i=i: calls.update([i]) if a[0].training else None)

    loader = DataLoader(data[1].dataset, 16)
    DML(students, loader, loader, optimizers).train_students(1, **QUIET)
    assert calls == {0: 5, 1: 5, 2: 5}

    for inputs, targets in loader:
        dml_loss([twin(inputs) for twin in twins], targets).backward()
        for optimizer in twin_optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for ours, theirs in zip(weights(students), weights(twins), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_figures_of_an_epoch_belong_to_each_student(data):
    """With a rate of 0 they can be computed from the weights."""
    students, optimizers = cohort(2, lr=0.0)
    (record,) = DML(students, *data, optimizers).train_students(1, **QUIET)

    inputs, targets = data[1].dataset.tensors
    with torch.no_grad():
        logits = [student(inputs) for student in students]
    log_p = [row.log_softmax(1) for row in logits]
    for i, row in enumerate(record):
        accuracy = 100 * (logits[i].argmax(1) == targets).float().mean().item()
        loss_ce = F.cross_entropy(logits[i], targets).item()
        loss_kd = F.kl_div(log_p[i], log_p[1 - i], reduction="batchmean", log_target=True).item()
        assert row["top1"] == pytest.approx(accuracy)
        assert row["test_top1"] == pytest.approx(accuracy)
        assert row["loss_ce"] == pytest.approx(loss_ce, rel=1e-4)
        assert row["test_loss"] == pytest.approx(loss_ce, rel=1e-4)
        assert row["loss_kd"] == pytest.approx(loss_kd, rel=1e-3)
        assert row["loss"] == pytest.approx(row["loss_ce"] + row["loss_kd"])
    assert record[0]["loss_ce"] != record[1]["loss_ce"]


def test_another_divergence_and_networks_that_return_features(data):
    class WithFeatures(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = MLP(20, 3, 8)

        def forward(self, x):
            return self.net(x), {"feats": [x]}

    students = [WithFeatures(), MLP(20, 3, 8)]
    optimizers = [torch.optim.Adam(student.parameters()) for student in students]
    seen = []

    def mse(logits_student, logits_peer):
        seen.append(logits_peer.requires_grad)
        return F.mse_loss(logits_student, logits_peer)

    distiller = DML(students, *data, optimizers, loss_fn=mse)
    (record,) = distiller.train_students(1, **QUIET)
    assert not any(seen)
    assert all(row["loss_kd"] > 0 for row in record)
    assert "MutualLearning" not in METHODS  # the configuration table is as before


def test_two_calls_equal_one(data):
    runs = []
    for parts in ((4,), (1, 3)):
        students, optimizers = cohort(2)
        distiller = DML(students, *data, optimizers)
        for epochs in parts:
            history = distiller.train_students(epochs, **QUIET)
            torch.rand(7)
        runs.append((history, weights(students)))

    (whole, of_whole), (parts, of_parts) = runs
    assert whole == parts
    assert all(torch.equal(a, b) for a, b in zip(of_whole, of_parts, strict=True))


def test_an_interrupted_call_is_continued_from_the_last_epoch(data):
    """As with Ctrl-C or the stop button, here in the second epoch."""

    class Interrupting:
        calls = 0
        at = 0

        def __call__(self, logits_student, logits_peer):
            self.calls += 1
            if self.calls == self.at:
                raise KeyboardInterrupt
            return kl_from_peer(logits_student, logits_peer)

    runs = []
    for at in (0, 15):
        students, optimizers = cohort(2)
        distiller = DML(students, *data, optimizers, loss_fn=Interrupting())
        distiller.loss_fn.at = at
        if at:
            with pytest.raises(KeyboardInterrupt):
                distiller.train_students(3, **QUIET)
            assert len(distiller.history) == 1
            assert all(student.training for student in students)
        history = distiller.train_students(3 - len(distiller.history), **QUIET)
        runs.append((history, weights(students)))

    (whole, of_whole), (parts, of_parts) = runs
    assert whole == parts
    assert all(torch.equal(a, b) for a, b in zip(of_whole, of_parts, strict=True))


def test_the_best_student_is_that_of_the_best_epoch(data, tmp_path):
    """Later epochs that are not better do not change the saved weights."""
    students, optimizers = cohort(2)
    distiller = DML(students, *data, optimizers)
    distiller.train_students(8, **QUIET)
    best = {key: value.clone() for key, value in distiller.best_state.items()}

    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = 0.0
    before = [value.clone() for value in weights(students)]
    distiller.train_students(1, plot_losses=False, save_model_path=tmp_path / "best.pt")
    assert all(torch.equal(a, b) for a, b in zip(before, weights(students), strict=True))
    saved = torch.load(tmp_path / "best.pt", weights_only=True)["model"]
    assert all(torch.equal(value, saved[key]) for key, value in best.items())


def test_the_temporary_run_folder_is_removed(data):
    students, optimizers = cohort(2)
    distiller = DML(students, *data, optimizers)
    distiller.train_students(1, **QUIET)
    folder = distiller.run_folder
    assert (folder / "latest").is_file()
    del distiller
    gc.collect()
    assert not folder.parents[1].exists()


def test_only_one_line_per_epoch_is_printed(data, capsys):
    """And what the user's own code prints."""

    def divergence(logits_student, logits_peer):
        print("called")
        return kl_from_peer(logits_student, logits_peer)

    students, optimizers = cohort(2)
    distiller = DML(students, *data, optimizers, loss_fn=divergence)
    distiller.train_students(2, **QUIET)
    printed = capsys.readouterr().out.splitlines()
    assert printed.count("called") == 20
    lines = [line for line in printed if line != "called"]
    assert [line.split(":")[0] for line in lines] == ["epoch 1", "epoch 2"]
    assert "student 2" in lines[0]
    assert "ensemble" in lines[0]


def test_the_axis_of_the_figure_counts_epochs():
    for epochs in (1, 2, 3, 7):
        figure = loss_figure([[{"loss": 1.0 / e}, {"loss": 2.0 / e}] for e in range(1, 1 + epochs)])
        (axes,) = figure.axes
        low, high = axes.get_xlim()
        shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert shown
        assert all(tick == int(tick) for tick in shown)


def test_a_loader_without_batches(data):
    students, optimizers = cohort(2)
    with pytest.raises(UserError, match="train_loader yields no batches"):
        DML(students, [], data[1], optimizers).train_students(1, **QUIET)


def test_cohorts_that_cannot_be_trained(data):
    students, optimizers = cohort(2)
    with pytest.raises(UserError, match="has 1 network, but mutual learning needs two"):
        DML(students[:1], *data, optimizers[:1])
    with pytest.raises(UserError, match="2 students need 2 optimizers, not 1"):
        DML(students, *data, optimizers[:1])
    with pytest.raises(UserError, match="given twice"):
        DML([students[0]] * 2, *data, optimizers).train_students(1, **QUIET)

    others = [torch.optim.SGD(MLP(20, 3, 16).parameters(), 0.1) for _ in range(2)]
    with pytest.raises(UserError, match="optimizer"):
        DML(students, *data, others).train_students(1, **QUIET)


def test_numbers_of_epochs(data):
    """A further call may have none, as where an earlier one was not interrupted."""
    students, optimizers = cohort(2)
    distiller = DML(students, *data, optimizers)
    for epochs in (0, -1, "3", 1.0):
        with pytest.raises(UserError, match=f"epochs is {epochs!r}, but must be .* at least 1"):
            distiller.train_students(epochs, **QUIET)

    distiller.train_students(1, **QUIET)
    assert len(distiller.train_students(0, **QUIET)) == 1
    with pytest.raises(UserError, match="epochs is -1, but must be an integer of at least 0"):
        distiller.train_students(-1, **QUIET)


def test_a_loss_that_is_not_finite_ends_the_training_and_a_new_one_can_begin(data):
    students, optimizers = cohort(2, lr=1e30)
    distiller = DML(students, *data, optimizers)
    with pytest.raises(NonFiniteError, match="loss.* not finite"):
        distiller.train_students(3, **QUIET)

    distiller.history.clear()
    for student, optimizer in zip(students, optimizers, strict=True):
        student.load_state_dict(MLP(20, 3, 16).state_dict())
        optimizer.param_groups[0]["lr"] = 0.05
        optimizer.state.clear()
    assert len(distiller.train_students(1, **QUIET)) == 1


def test_other_batches(data):
    inputs, targets = data[1].dataset.tensors
    students, optimizers = cohort(2)
    soft = DataLoader(TensorDataset(inputs, F.one_hot(targets).float()), 16)
    (record,) = DML(students, soft, soft, optimizers).train_students(1, **QUIET)
    assert record[0]["loss_ce"] > 0

    triples = DataLoader(TensorDataset(inputs, targets, targets), 16)
    with pytest.raises(UserError, match=r"expected a pair of tensors \(image, target\)"):
        DML(students, triples, data[1], optimizers).train_students(1, **QUIET)
    with pytest.raises(UserError, match=r"evaluation: batch 1 .*expected a pair"):
        DML(students, data[0], triples, optimizers).evaluate()


def test_places_that_cannot_be_written(data, tmp_path):
    (tmp_path / "file").write_text("")
    students, optimizers = cohort(2)
    with pytest.raises(UserError, match="save_model_path is .*, a folder"):
        DML(students, *data, optimizers).train_students(1, False, True, tmp_path)
    distiller = DML(students, *data, optimizers, logdir=tmp_path / "file")
    with pytest.raises(StorageError, match="cannot create the folder"):
        distiller.train_students(1, True, False)
