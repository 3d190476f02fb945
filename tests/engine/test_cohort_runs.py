"""A run with several students: what it reports and saves of each."""

import json
import types

import pytest
import torch

from edkd.engine.build import Networks
from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.config.load import load_config
from edkd.engine.evaluate import evaluate
from edkd.engine.log.logger import Logger
from edkd.engine.run import train
from edkd.engine.weights import load_weights
from edkd.errors import NonFiniteError, UserError
from tests.small import TinyNet, config, make_trainer, tiny_data

CHANNELS = (4, 6, 8)


@pytest.fixture
def run(tmp_path):
    """Train three students by DML; returns the folder, the records and the result."""

    def call(*opts):
        words = ["DISTILLER.TYPE", "DML", "LOG.PREFIX", tmp_path, "EXPERIMENT.NAME", "run"]
        cfg = config(*words, "DML.STUDENTS", "[TinyNet,TinyNet,TinyNet]", *opts)
        torch.manual_seed(0)
        networks = Networks([TinyNet(channels) for channels in CHANNELS], [])
        result = train(cfg, device="cpu", data=tiny_data(cfg), networks=networks)
        folder = tmp_path / "distill" / "run"
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return folder, [json.loads(line) for line in lines], result

    return call


def test_each_student_is_reported_and_saved_at_its_best(run):
    folder, records, result = run(
        "SOLVER.EPOCHS", "3", "LOG.SAVE_CHECKPOINT_FREQ", "1", "LOG.KEEP", "2"
    )
    names = ["student1", "student2", "student3"]
    for record in records:
        for key in ("top1", "top5", "loss"):
            mean = sum(record[f"test_{name}_{key}"] for name in names) / 3
            assert record[f"test_{key}"] == pytest.approx(mean)
        terms = {f"train_loss_{part}_{name}" for part in ("ce", "kd") for name in names}
        assert terms <= record.keys()

    best = {name: max(record[f"test_{name}_top1"] for record in records) for name in names}
    data = tiny_data(config())
    for name, channels in zip(names, CHANNELS, strict=True):
        model = TinyNet(channels).eval()
        load_weights(model, folder / f"{name}_best")
        reached = evaluate(lambda image, model=model: model(image)[0], data.test)["top1"]
        assert reached == pytest.approx(best[name])
        assert result[f"best_test_{name}_top1"] == best[name]
        assert result[f"last_test_{name}_top1"] == records[-1][f"test_{name}_top1"]
        assert (folder / f"{name}_3").exists()
        assert not (folder / f"{name}_1").exists()

    leader = result["best_student"].split(" ")[0]
    assert best[leader] == max(best.values())
    weights = [
        load_checkpoint(folder / file)["model"] for file in (f"{leader}_best", "student_best")
    ]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    with pytest.raises(UserError, match="holds several students; give the file of one beside it"):
        load_weights(TinyNet(), folder / "best")


def test_a_held_out_split_chooses_for_each_student(run):
    folder, records, result = run("DATASET.VAL_SPLIT", "0.2", "SOLVER.LR", "0.3")
    names = ["student1", "student2", "student3"]
    data = tiny_data(config())
    for name, channels in zip(names, CHANNELS, strict=True):
        own = max(record[f"val_{name}_top1"] for record in records)
        assert result[f"best_val_{name}_top1"] == own
        model = TinyNet(channels).eval()
        load_weights(model, folder / f"{name}_best")
        reached = evaluate(lambda image, model=model: model(image)[0], data.test)["top1"]
        assert reached == pytest.approx(result[f"best_test_{name}_top1"])

    # The ensemble is that of the epoch with the best mean.
    state = load_checkpoint(folder / "best")["model"]
    models = [TinyNet(channels).eval() for channels in CHANNELS]
    for i, model in enumerate(models):
        prefix = f"student.{i}."
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        model.load_state_dict(own)
    together = evaluate(lambda x: torch.stack([model(x)[0] for model in models]), data.test)
    assert together["ensemble_top1"] == pytest.approx(result["best_test_ensemble_top1"])
    chosen = max(records, key=lambda record: record["val_top1"])
    assert result["best_val_ensemble_top1"] == chosen["val_ensemble_top1"]


def test_the_first_student_starts_as_it_does_alone_and_the_others_differ():
    from edkd.engine.build import build_data, build_distiller

    weights = []
    for opts in (["DISTILLER.TYPE", "DML"], ["DISTILLER.TYPE", "NONE"]):
        cfg = load_config(opts=["DATASET.TYPE", "digits", "DISTILLER.STUDENT", "resnet8", *opts])
        distiller = build_distiller(cfg, build_data(cfg, torch.device("cpu")))
        weights += [student.conv1.weight for student in distiller.students().values()]
    first, second, alone = weights
    assert torch.equal(first, alone)
    assert not torch.equal(first, second)


def test_a_value_that_is_not_finite_names_the_turn(tmp_path):
    """With alternating updates, the second student's loss is its own term."""
    trainer = make_trainer("DML", tmp_path, "DML.UPDATE", "alternating")
    step = trainer.distiller.training_step

    def broken(batch, turn):
        logits, losses = step(batch, turn)
        if "loss_kd_student2" in losses:
            losses["loss_kd_student2"] = losses["loss_kd_student2"] * torch.nan
        return logits, losses

    trainer.distiller.training_step = broken
    trainer.logger = types.SimpleNamespace(save=lambda *_: None)
    trainer.train_step(1, *next(trainer.data.train.inputs(1)))
    trainer.state.step_done = 1
    message = "loss_kd_student2, loss, norm of the gradient not finite in epoch 1, step 1;"
    trainer.logger = Logger(tmp_path, trainer.cfg, [], 1, 0, sinks={})
    with pytest.raises(NonFiniteError, match=message):
        trainer.check_update(1)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["DML.STUDENTS", "[resnet8]"], "DML takes 2 students or more, not 1"),
        (
            ["DML.STUDENTS", "[resnet8,resnt20]"],
            "DML.STUDENTS is 'resnt20'.*did you mean 'resnet20'",
        ),
        (["DML.NUM_STUDENTS", "1"], "DML.NUM_STUDENTS is 1, but must be at least 2"),
        (
            ["DML.STUDENTS", "[resnet8,vgg8]", "DML.NUM_STUDENTS", "3"],
            "DML.NUM_STUDENTS has no effect beside DML.STUDENTS",
        ),
        (
            ["DML.STUDENTS", "[resnet8,vgg8]", "DISTILLER.STUDENT", "vgg8"],
            "DISTILLER.STUDENT has no effect beside",
        ),
        (["DML.UPDATE", "alternate"], "DML.UPDATE is 'alternate'.*"),
        (["DISTILLER.TYPE", "OKDDip", "OKDDip.STUDENTS", "[vgg8,vgg8]"], "OKDDip takes 3 students"),
    ],
)
def test_mistakes(opts, message):
    with pytest.raises(UserError, match=message):
        load_config(opts=["DISTILLER.TYPE", "DML", *opts])
