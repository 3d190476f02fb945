"""A cohort in the engine: what a run reports and leaves of each student."""

import json

import pytest
import torch
import torch.nn.functional as F

from edkd.dataset import get_dataset
from edkd.engine.checkpoint import load_checkpoint, load_weights
from edkd.engine.evaluate import evaluate
from edkd.engine.load_cfg import load_cfg
from edkd.errors import UserError
from edkd.models import get_model

DIGITS = ["DATASET.TYPE", "digits", "SOLVER.EPOCHS", "3", "SOLVER.BATCH_SIZE", "100", "SOLVER.LR_DECAY_STAGES", "[2]"]
DIGITS += ["SOLVER.AMP", "off", "LOG.WANDB", "False", "DISTILLER.TYPE", "DML"]
MIX = ["resnet8", "wrn_16_1", "resnet14"]


@pytest.fixture
def run(tool, tmp_path):
    """Train that cohort; returns the folder, the records and the result."""

    def train(*opts, students=MIX):
        words = [*DIGITS, "DML.STUDENTS", json.dumps(students), "LOG.PREFIX", tmp_path, "EXPERIMENT.NAME", "run", *opts]
        done = tool("train", *words)
        assert done.code == 0, done.err
        folder = tmp_path / "distill/run"
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return folder, records, json.loads((folder / "result.json").read_text()), done

    return train


def test_each_student_is_reported_and_saved_at_its_best(run, tool):
    folder, records, result, done = run("LOG.SAVE_CHECKPOINT_FREQ", "1", "LOG.KEEP", "2")
    names = [f"student{i}" for i in (1, 2, 3)]
    for record in records:
        for key in ("top1", "top5", "loss"):
            assert record[f"test_{key}"] == pytest.approx(sum(record[f"test_{name}_{key}"] for name in names) / 3)
        assert {f"train_loss_{part}_{name}" for part in ("ce", "kd") for name in names} <= record.keys()
    best = {name: max(record[f"test_{name}_top1"] for record in records) for name in names}
    data = get_dataset(load_cfg(opts=DIGITS), torch.device("cpu"))
    leader = max(names, key=lambda name: best[name])
    models = {}
    for name, architecture in zip(names, MIX, strict=True):
        models[name] = get_model("cifar", architecture, 10).eval()
        load_weights(models[name], folder / f"{name}_best")
        reached = evaluate(lambda image, model=models[name]: model(image)[0], data.test)["top1"]
        assert reached == pytest.approx(best[name], abs=0.12)  # batches of another size: an image may tip over
        assert result[f"best_test_{name}_top1"] == best[name]
        assert result[f"last_test_{name}_top1"] == records[-1][f"test_{name}_top1"]
        load_weights(models[name], folder / f"{name}_latest")
        assert (folder / f"{name}_3").exists()
        assert not (folder / f"{name}_1").exists()
    weights = [load_checkpoint(folder / file)["model"] for file in (f"{leader}_best", "student_best")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert result["best_student"] == f"{leader} ({MIX[names.index(leader)]})"
    whole = tool("eval", "-m", MIX[0], "-d", "digits", "-c", folder / "best")
    assert whole.code == 2
    assert "holds several students; name one's file beside it, as student1_best" in whole.err
    figures = evaluate(lambda image: torch.stack([model(image)[0] for model in models.values()]), data.test)
    assert figures["ensemble_top1"] == pytest.approx(records[-1]["test_ensemble_top1"], abs=0.12)
    assert "resnet8 + wrn_16_1 + resnet14" in done.out
    line = tool("eval", "-m", MIX[names.index(leader)], "-d", "digits", "-c", folder / "student_best")
    assert line.code == 0, line.err


def test_the_ensemble_is_the_mean_of_the_probabilities():
    data = get_dataset(load_cfg(opts=[*DIGITS, "DATASET.TEST.BATCH_SIZE", "898"]), torch.device("cpu"))
    target = next(data.test.epoch()).target
    logits = torch.randn(3, 898, 10)
    figures = evaluate(lambda image: logits, data.test)
    mean = logits.softmax(2).mean(0)
    assert figures["ensemble_loss"] == pytest.approx(F.nll_loss(mean.log(), target).item(), rel=1e-5)
    assert figures["ensemble_top1"] == pytest.approx(100 * (mean.argmax(1) == target).float().mean().item())
    assert figures["student2_loss"] == pytest.approx(F.cross_entropy(logits[1], target).item(), rel=1e-5)


def test_the_first_student_starts_as_it_does_alone_and_the_others_differ(run, tool, tmp_path):
    still = ["SOLVER.LR", "0", "SOLVER.EPOCHS", "1", "SOLVER.LR_DECAY_STAGES", "[]"]
    run(*still, students=["resnet8", "resnet8"])
    words = [*DIGITS, "DISTILLER.TYPE", "NONE", "DISTILLER.STUDENT", "resnet8", *still, "LOG.PREFIX", tmp_path]
    assert tool("train", *words, "EXPERIMENT.NAME", "alone").code == 0
    first, second, alone = (
        load_checkpoint(tmp_path / "distill" / file)["model"]["conv1.weight"]
        for file in ("run/student1_latest", "run/student2_latest", "alone/student_latest")
    )
    assert torch.equal(first, alone)
    assert not torch.equal(first, second)


def test_a_held_out_split_chooses_for_each_student(run):
    folder, records, result, _ = run("DATASET.VAL_SPLIT", "0.2", "SOLVER.LR", "0.3")
    names = [f"student{i}" for i in (1, 2, 3)]
    data = get_dataset(load_cfg(opts=DIGITS), torch.device("cpu"))
    state = load_checkpoint(folder / "best")["model"]
    models = [get_model("cifar", architecture, 10).eval() for architecture in MIX]
    for name, model in zip(names, models, strict=True):
        assert result[f"best_val_{name}_top1"] == max(record[f"val_{name}_top1"] for record in records)
        load_weights(model, folder / f"{name}_best")
        reached = evaluate(lambda image, model=model: model(image)[0], data.test)["top1"]
        assert reached == pytest.approx(result[f"best_test_{name}_top1"], abs=0.12)
    for i, model in enumerate(models):
        prefix = f"student.{i}."
        model.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    figures = evaluate(lambda image: torch.stack([model(image)[0] for model in models]), data.test)
    assert figures["ensemble_top1"] == pytest.approx(result["best_test_ensemble_top1"], abs=0.12)
    chosen = max(records, key=lambda record: record["val_top1"])
    assert result["best_val_ensemble_top1"] == chosen["val_ensemble_top1"]
    assert result["last_val_ensemble_top1"] == records[-1]["val_ensemble_top1"]


def test_a_value_that_is_not_finite_names_the_turn(run, tool, tmp_path, monkeypatch):
    """With updates in turn the second student's loss is its own term."""
    from edkd.distillers.dml import DML

    forward = DML.forward_train

    def broken(self, image, target, **kwargs):
        logits, losses = forward(self, image, target, **kwargs)
        return logits, {name: loss * (torch.nan if name == "loss_kd_student2" else 1) for name, loss in losses.items()}

    monkeypatch.setattr(DML, "forward_train", broken)
    words = [*DIGITS, "DISTILLER.STUDENT", "resnet8", "DML.UPDATE", "alternating", "LOG.PREFIX", tmp_path]
    done = tool("train", *words)
    assert done.code == 3
    assert "loss_kd_student2, loss, norm of the gradient not finite in epoch 1, step 1;" in done.err


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["DML.STUDENTS", "[resnet8]"], "DML takes 2 students or more, not 1"),
        (["DML.STUDENTS", "[resnet8,resnt20]"], "DML.STUDENTS is 'resnt20'.*did you mean 'resnet20'"),
        (["DML.NUM_STUDENTS", "1"], "DML.NUM_STUDENTS is 1, but must be at least 2"),
        (
            ["DML.STUDENTS", "[resnet8,vgg8]", "DML.NUM_STUDENTS", "3"],
            "DML.NUM_STUDENTS changes nothing beside DML.STUDENTS",
        ),
        (["DML.STUDENTS", "[resnet8,vgg8]", "DISTILLER.STUDENT", "vgg8"], "DISTILLER.STUDENT changes nothing beside"),
        (["DML.UPDATE", "alternate"], "DML.UPDATE is 'alternate'.*did you mean 'alternating'"),
    ],
)
def test_mistakes(opts, message):
    with pytest.raises(UserError, match=message):
        load_cfg(opts=["DISTILLER.TYPE", "DML", *opts])


def test_a_leader_needs_two_peers():
    with pytest.raises(UserError, match="OKDDip takes 3 students or more, not 2"):
        load_cfg(opts=["DISTILLER.TYPE", "OKDDip", "OKDDip.NUM_STUDENTS", "2"])


@pytest.mark.parametrize("method", ["ONE", "OKDDip"])
def test_a_classifier_may_be_a_convolution(method):
    """As that of a network that averages its class maps; its pooled features are (N,D,1,1)."""
    from torch import nn

    from edkd.distillers import distiller_dict

    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 10, 1)

        def forward(self, image):
            pooled = F.adaptive_avg_pool2d(self.conv(image).relu(), 1)
            return self.head(pooled).flatten(1), {"pooled_feat": pooled}

    cfg = load_cfg(opts=["DISTILLER.TYPE", method])
    distiller = distiller_dict[method](nn.ModuleList(Maps() for _ in range(3)), None, cfg)
    about = dict(image=torch.randn(4, 3, 8, 8), target=torch.arange(4), index=torch.arange(4), epoch=1)
    logits, losses = distiller(**about)
    assert logits.shape == (3, 4, 10)
    sum(losses.values()).backward()
