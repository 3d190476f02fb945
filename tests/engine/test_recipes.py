"""Training recipes: task loss, averaged weights, LAMB, weight decay, accumulation, whole runs."""

import copy
import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edkd
from edkd.dataset.mixing import with_batch_augmentations
from edkd.distillers import construct, find_method
from edkd.distillers._task import TaskLoss
from edkd.engine.build import Networks, build_trainer
from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.config.load import load_config
from edkd.engine.config.plugins import import_plugin
from edkd.engine.evaluate import evaluate
from edkd.engine.memo.cache import attach
from edkd.engine.optimizer import is_fused, make_optimizer, split_decay
from edkd.engine.run import train
from edkd.engine.weights import load_weights
from edkd.errors import NonFiniteError, UserError
from edkd.models import get_model
from edkd.registry import METHODS
from edkd.signals import Stopped
from edkd.types import Batch
from tests.conftest import TESTS
from tests.processes import wait_for
from tests.runs import CHECKOUT, assert_refused, outcome, plain, records
from tests.short_forms import slow_but
from tests.small import (
    CPU,
    IMAGE_SHAPE,
    TinyNet,
    config,
    info,
    make_distiller,
    make_trainer,
    tiny_data,
)

PUBLISHED = TESTS / "reports" / "published_methods.py"
RECIPES = CHECKOUT / "configs" / "imagenet" / "recipes"
DIGITS = CHECKOUT / "configs" / "digits"


@pytest.fixture
def published():
    """The methods of tests/reports/published_methods.py, for one test."""
    import_plugin(str(PUBLISHED))


# The task loss.


@pytest.mark.parametrize("threshold", [0.0, 0.2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_task_losses_are_those_of_timm(smoothing, threshold):
    from timm.data.mixup import mixup_target
    from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    logits = torch.randn(8, 5, dtype=torch.float64)
    target = torch.randint(5, (8,))
    one_hot = F.one_hot(target, 5).double()
    soft = 0.7 * one_hot + 0.3 * one_hot.flip(0)
    timms_soft = mixup_target(target, 5, 0.7, smoothing).double()

    binary = TaskLoss("bce", smoothing, threshold)
    theirs = BinaryCrossEntropy(smoothing, target_threshold=threshold or None)
    torch.testing.assert_close(binary(logits, target), theirs(logits, target))
    torch.testing.assert_close(binary(logits, soft), theirs(logits, timms_soft), rtol=1e-6, atol=0)

    usual = TaskLoss("ce", smoothing)
    hard = LabelSmoothingCrossEntropy(smoothing)(logits, target)
    torch.testing.assert_close(usual(logits, target), hard)
    mixed = SoftTargetCrossEntropy()(logits, timms_soft)
    torch.testing.assert_close(usual(logits, soft), mixed, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", ["NONE", "KD", "DKD", "KD+DKD", "DML", "ONE"])
def test_the_task_loss_reaches_every_method(method):
    """Student by student, and the ensemble of ONE."""
    image = torch.randn(8, *IMAGE_SHAPE)
    target = torch.arange(8) % 4
    terms = {}
    for opts in ([], ["SOLVER.TASK_LOSS", "bce", "SOLVER.LABEL_SMOOTHING", 0.1]):
        distiller = make_distiller(method, *opts)
        _, losses = distiller.train().forward_train(image=image, target=target)
        for name, loss in losses.items():
            if name.startswith("loss_ce"):
                terms.setdefault(name, []).append(loss.item())
    for name, (usual, binary) in terms.items():
        assert usual != pytest.approx(binary, rel=1e-2), name


REFUSED = [
    ("PUB_LOGITS", ["SOLVER.LABEL_SMOOTHING=0.1"], "LABEL_SMOOTHING has no effect on .*PUB_LOGITS"),
    ("PUB_LOGITS", ["SOLVER.TASK_LOSS=bce"], "SOLVER.TASK_LOSS has no effect on .*PUB_LOGITS"),
    ("DKD", ["SOLVER.MIXUP=0.1"], "DKD needs the class of each image, but SOLVER.MIXUP mixes"),
    ("KD+EDKD", ["SOLVER.CUTMIX=1"], "KD.EDKD needs the class of each image, but SOLVER.CUTMIX"),
    ("KDCL", ["SOLVER.MIXUP=0.1"], "KDCL needs the class of each image"),
    ("KD", ["SOLVER.BCE_THRESHOLD=0.2"], "BCE_THRESHOLD has no effect without .*TASK_LOSS bce"),
    ("NONE", ["SOLVER.TYPE=LAMB", "SOLVER.CUDA_GRAPH=True"], "cannot capture SOLVER.TYPE LAMB"),
    ("NONE", ["SOLVER.MIX_PROB=1.1"], "MIX_PROB is 1.1, but must be at least 0 and at most 1"),
]


@pytest.mark.parametrize(("method", "words", "message"), REFUSED)
def test_what_would_do_nothing_or_cannot_work_is_refused(published, method, words, message):
    with pytest.raises(UserError, match=message):
        load_config(opts=["DISTILLER.TYPE=" + method, "DISTILLER.TEACHER=resnet56", *words])


@pytest.mark.parametrize("method", ["KD", "DML", "ONE"])
def test_soft_targets_train(tmp_path, method):
    """The accuracy is that of the class with the larger share."""
    trainer = make_trainer(method, tmp_path, "SOLVER.CUTMIX", 1.0, cached=False)
    for inputs in trainer.data.train.inputs(1):
        trainer.state.meter.add(*trainer.train_step(1, *inputs))
    figures = trainer.state.meter.read()
    assert 0 <= figures["top1"] <= 100
    assert figures["loss"] > 0


def test_a_method_that_takes_probabilities_for_numbers_is_named(published, tmp_path):
    """Its own file cannot be changed, and nothing declares what it takes."""

    @METHODS.register("PUB_SCATTER")
    class Scatter(find_method("PUB_LOGITS")):
        def forward_train(self, image, target, **kwargs):
            logits, losses = super().forward_train(image, target, **kwargs)
            losses["loss_ce"] = -logits.log_softmax(1).gather(1, target.unsqueeze(1)).mean()
            return logits, losses

    cfg = config("DISTILLER.TYPE", "PUB_SCATTER", "SOLVER.MIXUP", 0.5, "LOG.PREFIX", tmp_path)
    distiller = construct(Scatter, TinyNet(), TinyNet(12), cfg, info())
    data = with_batch_augmentations(tiny_data(cfg), cfg)
    trainer = build_trainer(cfg, data, distiller, tmp_path, CPU)
    with pytest.raises(UserError, match="Scatter failed with class probabilities .*SOLVER.MIXUP"):
        trainer.train_step(1, *next(iter(data.train.inputs(1))))


def test_other_mistakes_are_not_blamed_on_probabilities(tmp_path):
    """Batch norm cannot train on one value per channel, mixed or not."""
    trainer = make_trainer("KD", tmp_path, cached=False)
    batch = Batch(torch.zeros(1, 3, 1, 1), torch.full((1, 4), 0.25), torch.arange(1))
    with pytest.raises(UserError, match="^a batch has one image"):
        trainer.train_step.forward(batch)


# Averaged weights.


def test_the_average_follows_its_equation(tmp_path):
    trainer = make_trainer("NONE", tmp_path, "SOLVER.EMA", 0.3, "SOLVER.TYPE", "AdamW")
    student = trainer.distiller.student
    expected = {name: tensor.clone() for name, tensor in student.state_dict().items()}

    for step, inputs in enumerate(trainer.data.train.inputs(1), 1):
        trainer.train_step(1, *inputs)
        trainer.average.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        for name, tensor in student.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor
            else:
                expected[name] = tensor.clone()

    live = plain(student.state_dict())
    with trainer.averaged():
        for name, tensor in student.state_dict().items():
            torch.testing.assert_close(tensor, expected[name])
        assert plain(student.state_dict()) != live
    assert plain(student.state_dict()) == live


@pytest.mark.parametrize("rule", ["base", "dot"])
def test_figures_and_student_files_are_of_the_average(train_tiny, tmp_path, rule):
    words = ["DISTILLER.TYPE", "KD", "SOLVER.EMA", 0.9, "SOLVER.TRAINER", rule]
    done = train_tiny("run", *words)
    assert done.code == 0, done.err
    assert (
        "SOLVER.EMA 0.9: accuracies, best epoch and student files are those of the averaged"
        in done.out
    )
    run = tmp_path / "distill" / "run"
    result = json.loads((run / "result.json").read_text())
    assert result["averaged_weights"] == 0.9

    state = load_checkpoint(run / "latest")
    saved = load_checkpoint(run / "student_latest")["model"]
    for name, tensor in saved.items():
        assert torch.equal(tensor, state["average"][f"student.{name}"])
    assert not torch.equal(saved["fc.weight"], state["model"]["student.fc.weight"])

    # The live weights are those of a run without the average.
    assert train_tiny("plain", *words, "SOLVER.EMA", 0.0).code == 0
    other = load_checkpoint(tmp_path / "distill" / "plain" / "latest")
    assert plain(other["model"]) == plain(state["model"])
    assert "averaged_weights" not in json.loads(
        (tmp_path / "distill" / "plain" / "result.json").read_text()
    )
    assert result["last_test_top1"] == load_checkpoint(run / "student_latest")["accuracy"]

    # A finished run that is resumed has nothing to do, and the same result.
    assert train_tiny("run", *words, "--resume").code == 0
    assert json.loads((run / "result.json").read_text()) == result


def test_each_student_of_a_cohort_has_its_average(tmp_path):
    """With a held-out split: the test figures of the best epochs are those of the files."""
    words = ["DISTILLER.TYPE", "ONE", "LOG.PREFIX", tmp_path, "EXPERIMENT.NAME", "run"]
    cfg = config(*words, "ONE.STUDENTS", "[TinyNet,TinyNet]", "SOLVER.EMA", 0.8)
    cfg.defrost()
    cfg.DATASET.VAL_SPLIT = 0.2
    cfg.freeze()
    students = [TinyNet(4), TinyNet(6)]
    data = tiny_data(cfg)
    result = train(cfg, device="cpu", data=data, networks=Networks(students, []))
    folder = tmp_path / "distill" / "run"

    for number, channels in enumerate((4, 6), 1):
        for tag, which in (("best", "best"), ("latest", "last")):
            model = TinyNet(channels).eval()
            load_weights(model, folder / f"student{number}_{tag}")
            reached = evaluate(lambda image, model=model: model(image)[0], data.test)["top1"]
            assert result[f"{which}_test_student{number}_top1"] == pytest.approx(reached)

    best = load_checkpoint(folder / "best")
    names = [key for key in best["model"] if key.startswith("student.")]
    assert set(best["average"]) == set(names)


def test_an_update_that_is_skipped_leaves_the_average_finite(tmp_path):
    trainer = make_trainer("NONE", tmp_path, "SOLVER.EMA", 0.9)
    inputs = list(trainer.data.train.inputs(1))
    trainer.train_step(1, *inputs[0])
    trainer.average.update(1)

    trainer.data.train.normalize.std = torch.tensor(0.0)
    trainer.train_step(1, *inputs[1])
    trainer.state.step_done = 2
    trainer.logger = type("Silent", (), {"save": lambda *_: None, "say": lambda *_: None})()
    with pytest.raises(NonFiniteError):
        trainer.after_step(1, 2)
    assert all(tensor.isfinite().all() for tensor in trainer.average.averages)


def test_a_signal_during_an_evaluation_leaves_the_live_weights(tmp_path):
    trainer = make_trainer("NONE", tmp_path, "SOLVER.EMA", 0.9)
    trainer.train_step(1, *next(iter(trainer.data.train.inputs(1))))
    live = plain(trainer.files.content())
    with pytest.raises(Stopped), trainer.averaged():
        raise Stopped(15)
    assert plain(trainer.files.content()) == live

    trainer.average.give_average()  # the signal came before the weights were given back
    assert plain(trainer.files.content()) == live


def test_the_student_of_distill_ends_with_the_average(tmp_path):
    image = torch.randn(24, *IMAGE_SHAPE)
    loader = DataLoader(TensorDataset(image, torch.arange(24) % 4), batch_size=8, shuffle=True)
    torch.manual_seed(0)
    student = TinyNet()
    result = edkd.distill(
        *(student, TinyNet(12), loader, loader),
        method="KD",
        epochs=2,
        output=tmp_path,
        device="cpu",
        mixup=0.5,
        random_erasing=0.5,
        ema=0.9,
        accumulate=2,
    )
    saved = load_checkpoint(Path(result["folder"]) / "student_latest")["model"]
    assert plain(saved) == plain(student.state_dict())


# Optimizers.


def test_an_optimizer_of_your_own_decides_its_decay(tmp_path):
    image = torch.randn(8, *IMAGE_SHAPE)
    loader = DataLoader(TensorDataset(image, torch.arange(8) % 4), batch_size=4)
    student = TinyNet()
    with pytest.raises(UserError, match="DECAY_NORM_AND_BIAS does not change an optimizer of your"):
        edkd.distill(
            *(student, TinyNet(12), loader, loader),
            optimizer=torch.optim.SGD(student.parameters(), 0.1),
            epochs=1,
            output=tmp_path,
            device="cpu",
            decay_norm_and_bias=False,
        )


def test_lamb_is_that_of_timm():
    from timm.optim import Lamb

    cfg = config("SOLVER.TYPE", "LAMB", "SOLVER.LR", 0.1, "SOLVER.BETAS", "[0.8,0.9]")
    ours = nn.Linear(4, 3)
    theirs = copy.deepcopy(ours)
    optimizers = [
        make_optimizer([{"params": list(ours.parameters())}], cfg),
        Lamb(theirs.parameters(), lr=0.1, betas=(0.8, 0.9), weight_decay=1e-4),
    ]
    assert not is_fused(optimizers[0])
    for _ in range(3):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)


def test_lamb_without_timm_is_one_line(train_tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    done = train_tiny("run", "SOLVER.TYPE", "LAMB")
    assert_refused(done, r"LAMB needs the package timm: pip install 'edkd\[models\]'")


def test_lamb_skips_a_step_that_is_not_finite(tmp_path):
    """It has no fused update that could skip on the device."""
    trainer = make_trainer("NONE", tmp_path, "SOLVER.TYPE", "LAMB", "SOLVER.LR", 0.01)
    inputs = list(trainer.data.train.inputs(1))
    trainer.train_step(1, *inputs[0])
    before = plain(dict(trainer.distiller.named_parameters()))
    trainer.data.train.normalize.std = torch.tensor(0.0)
    trainer.train_step(1, *inputs[1])
    assert plain(dict(trainer.distiller.named_parameters())) == before
    assert trainer.update.watch.read() is not None


def test_a_run_with_lamb_resumes_bit_for_bit(train_tiny, tmp_path):
    words = ["SOLVER.TYPE", "LAMB", "SOLVER.LR", 0.01, "SOLVER.DECAY_NORM_AND_BIAS", "False"]
    assert train_tiny("whole", *words).code == 0
    assert train_tiny("parts", *words, "SOLVER.EPOCHS", 1).code == 0
    assert train_tiny("parts", *words, "SOLVER.EPOCHS", 3, "--resume").code == 0
    assert outcome(tmp_path / "distill" / "parts") == outcome(tmp_path / "distill" / "whole")


@pytest.mark.parametrize("rule", ["base", "dot"])
def test_norms_and_biases_have_no_decay(tmp_path, rule):
    """With a gradient of 0, only the decay changes a parameter."""
    words = ["SOLVER.TRAINER", rule, "SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.DECAY_NORM_AND_BIAS"]
    for value in (True, False):
        trainer = make_trainer("KD", tmp_path, *words, value)
        before = {name: p.detach().clone() for name, p in trainer.distiller.named_parameters()}
        losses = {"loss_ce": 0 * sum(p.sum() for p in trainer.update.parameters)}
        losses["loss_kd"] = losses["loss_ce"]
        losses["loss"] = losses["loss_ce"] + losses["loss_kd"]
        trainer.update.set_learning_rate(0.1)
        trainer.update.backward(losses)
        trainer.update.step(losses)
        for name, p in trainer.distiller.student.named_parameters():
            is_changed = not torch.equal(p, before[f"student.{name}"])
            decays = value or p.dim() > 1
            assert is_changed == (decays and bool(p.any())), name


def test_groups_keep_their_own_options():
    cfg = config("SOLVER.DECAY_NORM_AND_BIAS", "False")
    weight, bias = nn.Linear(2, 2).parameters()
    own = {"params": [weight, bias], "weight_decay": 0.3}
    scaled = {"params": [bias, weight], "lr_factor": 10.0}
    first, second, third = split_decay([own, scaled], cfg)
    assert first is own
    assert second == {"params": [weight], "lr_factor": 10.0}
    assert third == {"params": [bias], "lr_factor": 10.0, "weight_decay": 0.0}
    assert split_decay([{"params": [bias]}], cfg) == [{"params": [bias], "weight_decay": 0.0}]
    assert split_decay([own, scaled], config()) == [own, scaled]


# Accumulation.


class Double(nn.Module):
    """A network in float64 without batch norm, for images in float32."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.fc = nn.Linear(channels, 4)
        self.double()

    def forward(self, x):
        stem = self.conv(x.double())
        feat = F.relu(stem)
        pooled = feat.mean((2, 3))
        return self.fc(pooled), {"feats": [stem, feat], "pooled_feat": pooled}


def gradients(folder, method, parts, *opts, mixed=False):
    """The gradients of a batch of 16 images, and what the step reports."""
    cfg = config(
        *("DISTILLER.TYPE", method, "LOG.PREFIX", folder),
        *("SOLVER.ACCUMULATE", parts, *opts),
    )
    cls = find_method(method)
    torch.manual_seed(0)
    student = Double(6)
    if cls.is_cohort:
        student = nn.ModuleList([student, Double(8)])
    teacher = Double(12) if cls.needs_teacher else None
    distiller = construct(cls, student, teacher, cfg, info())
    data = with_batch_augmentations(tiny_data(cfg), cfg)
    trainer = build_trainer(cfg, data, distiller, folder, CPU)
    if teacher and not mixed:
        trainer.train_step.cache = attach(
            distiller, data.train, cfg, CPU, None, range(1, 2), lambda line: 0
        )
        assert trainer.train_step.cache
        trainer.train_step.cache.prepare(1, lambda line: None)
    distiller.train()

    before = [p.detach().clone() for p in trainer.update.parameters]
    losses, logits, target = trainer.train_step(1, *next(iter(data.train.inputs(1))))
    after = [p.detach() for p in trainer.update.parameters]
    changes = [new - old for new, old in zip(after, before, strict=True)]
    return changes, losses, logits, target


METHODS_IN_PARTS = [
    ("KD", []),
    ("DKD", []),
    ("EDKD", []),
    ("KD+DKD", []),
    ("DML", []),
    ("KD", ["SOLVER.TRAINER", "dot", "SOLVER.CLIP_GRAD_NORM", 0.1]),
    ("KD", ["SOLVER.MIXUP", 0.4, "SOLVER.TASK_LOSS", "bce"]),
    ("PUB_LOGITS", []),
]


@pytest.mark.parametrize("parts", [3, 100])
@pytest.mark.parametrize(("method", "opts"), METHODS_IN_PARTS)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(published, tmp_path, method, opts, parts):
    """Sixteen images in three parts of different sizes; in as many as possible, of two images."""
    words = ["SOLVER.WEIGHT_DECAY", 0, *opts]
    is_mixed = "SOLVER.MIXUP" in opts
    whole = gradients(tmp_path, method, 1, *words, mixed=is_mixed)
    split = gradients(tmp_path, method, parts, *words, mixed=is_mixed)
    for ours, theirs in zip(split[0], whole[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        assert theirs.any()
    for name, loss in whole[1].items():
        torch.testing.assert_close(split[1][name], loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(split[2], whole[2], rtol=0, atol=1e-12)
    assert torch.equal(split[3], whole[3])


class Held:
    """A tensor that autograd keeps for the backward pass; counts the bytes of all."""

    live = 0
    peak = 0

    def __init__(self, tensor):
        self.tensor = tensor
        Held.live += tensor.nbytes
        Held.peak = max(Held.peak, Held.live)

    def __del__(self):
        Held.live -= self.tensor.nbytes


def test_parts_need_less_memory(tmp_path):
    peaks = []
    for parts in (1, 4):
        trainer = make_trainer("KD", tmp_path, "SOLVER.ACCUMULATE", parts)
        inputs = next(iter(trainer.data.train.inputs(1)))
        Held.live = Held.peak = 0
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            trainer.train_step(1, *inputs)
        peaks.append(Held.peak)
    whole, split = peaks
    assert split < 0.35 * whole


@pytest.mark.parametrize(
    ("method", "opts", "reason"),
    [
        ("EDKD", ["EDKD.FORM", "reference"], "relates the images of a batch"),
        ("KD+EDKD", ["EDKD.FORM", "reference"], "relates the images of a batch"),
        ("KDCL", ["KDCL.ENSEMBLE", "linear"], "relates the images of a batch"),
        ("KD", ["DISTILLER.SHUFFLE_TEACHER", "True"], "relates the images of a batch"),
        ("DML", ["DML.UPDATE", "alternating"], "makes 2 updates for a batch"),
    ],
)
def test_methods_that_need_the_whole_batch_are_refused(tmp_path, method, opts, reason):
    name = method.replace("+", ".")
    with pytest.raises(UserError, match=f"ACCUMULATE 2 splits .* {name} {reason}"):
        make_trainer(method, tmp_path, *opts, "SOLVER.ACCUMULATE", 2)
    make_trainer(method, tmp_path, *opts)


# Whole runs.


@pytest.mark.slow
def test_a_run_with_everything_resumes_bit_for_bit(server, tmp_path):
    """On digits, killed within an epoch."""
    torch.manual_seed(0)
    teacher = tmp_path / "teacher.pth"
    torch.save({"model": get_model("cifar", "resnet8", 10).state_dict()}, teacher)
    words = [
        *("--cfg", DIGITS / "kd" / "res20_res8.yaml", "LOG.WANDB", "False"),
        *("DISTILLER.TEACHER", "resnet8", "DISTILLER.TEACHER_CKPT", teacher),
        *("SOLVER.EPOCHS", 2, "SOLVER.BATCH_SIZE", 300, "SOLVER.AMP", "off"),
        *("SOLVER.MIXUP", 0.2, "SOLVER.CUTMIX", 1.0, "DATASET.RANDOM_ERASING", 0.25),
        *("SOLVER.EMA", 0.99, "SOLVER.TYPE", "AdamW", "SOLVER.LR", 0.01),
        *("SOLVER.DECAY_NORM_AND_BIAS", "False", "SOLVER.ACCUMULATE", 2),
        *("SOLVER.TASK_LOSS", "bce", "SOLVER.CHECKPOINT_MINUTES", 1e-6),
        *("LOG.PREFIX", tmp_path, "EXPERIMENT.NAME"),
    ]
    code, err = server.run("train", *words, "whole")
    assert code == 0, err

    run = tmp_path / "digits" / "parts"
    command = server.start("train", *words, "parts")
    wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "latest.previous").exists())
    command.kill(signal.SIGKILL)
    command.wait()
    code, err = server.run("train", *words, "parts", "--resume")
    assert code == 0, err

    whole = tmp_path / "digits" / "whole"
    assert outcome(run) == outcome(whole)
    for name in ("latest", "best"):
        states = [load_checkpoint(folder / name)["average"] for folder in (run, whole)]
        assert plain(states[0]) == plain(states[1])
    for name in ("student_latest", "student_best"):
        states = [load_checkpoint(folder / name)["model"] for folder in (run, whole)]
        assert plain(states[0]) == plain(states[1])


@pytest.mark.needs("data/tiny-imagenet-40")
@pytest.mark.parametrize("recipe", slow_but(["funmatch"], ["funmatch", "a2"]))
def test_each_recipe_runs_in_its_small_form(tool, real_data, tmp_path, recipe):
    """Two classes of the photographs; the networks are smaller than those of the recipe."""
    source = real_data / "data" / "tiny-imagenet-40"
    for part, number in (("train", 6), ("val", 2)):
        for folder in sorted((source / part).iterdir())[:2]:
            target = tmp_path / "photos" / part / folder.name
            target.mkdir(parents=True)
            images = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            for path in images[:number]:
                shutil.copy(path, target)

    torch.manual_seed(0)
    teacher = tmp_path / "teacher.pth"
    torch.save({"model": get_model("imagenet", "MobileNetV1", 2).state_dict()}, teacher)
    done = tool(
        *("train", "--cfg", RECIPES / f"{recipe}.yaml", "DATASET.ROOT", tmp_path / "photos"),
        *("DISTILLER.TEACHER", "MobileNetV1", "DISTILLER.TEACHER_CKPT", teacher),
        *("DISTILLER.STUDENT", "MobileNetV1", "DATASET.NUM_WORKERS", 0),
        *("SOLVER.BATCH_SIZE", 6, "SOLVER.ACCUMULATE", 2, "SOLVER.EPOCHS", 1),
        *("SOLVER.WARMUP_EPOCHS", 0, "SOLVER.AMP", "off", "LOG.WANDB", "False"),
        *("DATASET.VAL_SPLIT", 0.0, "LOG.PREFIX", tmp_path, "EXPERIMENT.NAME", "run"),
    )
    assert done.code == 0, done.err
    (record,) = records(tmp_path / "imagenet_baselines" / "run")
    assert record["train_loss_kd"] > 0
    assert (record["train_loss_ce"] == 0) == (recipe == "funmatch")
    assert "SOLVER.MIXUP makes new images in each epoch" in done.out
