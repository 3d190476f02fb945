"""The step: what it must not do."""

import copy
import itertools
import json
import platform

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edkd.dataset import Batch, get_dataset
from edkd.distillers import distiller_dict
from edkd.engine.device import keep_freed_memory
from edkd.engine.load_cfg import load_cfg
from edkd.engine.logger import Logger
from edkd.engine.meter import Meter
from edkd.engine.optim import make_optimizer
from edkd.engine.teacher_memo import remember
from edkd.engine.trainer import Trainer
from edkd.errors import NonFiniteError
from edkd.models import get_model

CPU = torch.device("cpu")
HOST_READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")


def make(method, folder, *opts):
    cfg = load_cfg(
        opts=[
            "LOG.PREFIX",
            str(folder),
            "DATASET.TYPE",
            "digits",
            "DISTILLER.TYPE",
            method,
            "SOLVER.AMP",
            "bf16",
            *opts,
        ]
    )
    students = [get_model("cifar", "resnet8", 10) for _ in distiller_dict[method].student_names(cfg)]
    student = nn.ModuleList(students) if distiller_dict[method].is_cohort else students[0]
    teacher = get_model("cifar", "resnet8", 10) if distiller_dict[method].needs_teacher else None
    trainer = Trainer(cfg, distiller_dict[method](student, teacher, cfg), get_dataset(cfg, CPU), folder, CPU)
    trainer.memo = remember(trainer.distiller, trainer.data.train, cfg, CPU, trainer.amp, [1], lambda line: None)
    if trainer.memo:
        trainer.memo.prepare(1, lambda line: None)
    return trainer


@pytest.mark.parametrize("clip", ["0.0", "1.0"])
@pytest.mark.parametrize("method", sorted(distiller_dict))
def test_a_step_reads_nothing_from_the_device(tmp_path, monkeypatch, method, clip):
    trainer, meter = make(method, tmp_path, "SOLVER.CLIP_GRAD_NORM", clip), Meter()
    trainer.distiller.train()
    inputs = trainer.data.train.inputs(1)
    meter.add(*trainer.train_step(1, *next(inputs)))  # the optimizer makes its state
    for name in HOST_READS:
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"Tensor.{name} in the step"))
    meter.add(*trainer.train_step(torch.tensor(1.0), *next(inputs)))
    monkeypatch.undo()
    assert meter.read()["loss"] > 0


def published_kd(logits_s, logits_t, target, warmup):
    log_p_s, p_t = F.log_softmax(logits_s / 4, 1), F.softmax(logits_t / 4, 1)
    kd = F.kl_div(log_p_s, p_t, reduction="none").sum(1).mean() * 16
    return 0.1 * F.cross_entropy(logits_s, target) + 0.9 * kd


def published_dkd(logits_s, logits_t, target, warmup):
    mask = F.one_hot(target, logits_s.shape[1]).bool()
    p_s, p_t = F.softmax(logits_s / 4, 1), F.softmax(logits_t / 4, 1)
    two_s = torch.stack([(p_s * mask).sum(1), (p_s * ~mask).sum(1)], 1)
    two_t = torch.stack([(p_t * mask).sum(1), (p_t * ~mask).sum(1)], 1)
    tckd = F.kl_div(two_s.log(), two_t, reduction="sum") * 16 / len(target)
    others_s = F.log_softmax(logits_s / 4 - 1000 * mask, 1)
    others_t = F.softmax(logits_t / 4 - 1000 * mask, 1)
    nckd = F.kl_div(others_s, others_t, reduction="sum") * 16 / len(target)
    return F.cross_entropy(logits_s, target) + warmup * (tckd + 8 * nckd)


@pytest.mark.parametrize(("method", "loss"), [("KD", published_kd), ("DKD", published_dkd)])
def test_the_plain_loop_of_the_field_trains_the_same(tmp_path, method, loss):
    """The whole trainer against the published formulas in a loop without any of our parts, in float64."""
    opts = ["SOLVER.AMP", "off", "SOLVER.EPOCHS", "3", "SOLVER.LR_DECAY_STAGES", "[1,2]", "SOLVER.LR", "0.02"]
    opts += ["SOLVER.WEIGHT_DECAY", "0.0005", "LOG.WANDB", "False", "TEACHER_MEMO.ENABLED", "False"]
    trainer = make(method, tmp_path, *opts)
    trainer.distiller.double()
    for slot in trainer.optimizer.state.values():
        slot["momentum_buffer"] = slot["momentum_buffer"].double()
    make_batch = trainer.data.train.batch

    def double_batch(*inputs):
        batch = make_batch(*inputs)
        return Batch(batch.image.double(), batch.target, batch.index)

    trainer.data.train.batch = double_batch
    student, teacher = copy.deepcopy(trainer.distiller.student).train(), trainer.distiller.teacher
    optimizer = torch.optim.SGD(student.parameters(), 0.02, 0.9, weight_decay=5e-4)
    for epoch in (1, 2, 3):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * 0.1 ** (epoch - 1)
        for batch in trainer.data.train.epoch(epoch):
            optimizer.zero_grad()
            logits_s, _ = student(batch.image.contiguous())
            with torch.no_grad():
                logits_t, _ = teacher(batch.image.contiguous())
            loss(logits_s, logits_t, batch.target, min(epoch / 20, 1)).backward()
            optimizer.step()
    trainer.logger = Logger(tmp_path, trainer.cfg, [], 1, 0)
    for epoch in (1, 2, 3):
        trainer.train_epoch(epoch)
    for key, value in student.state_dict().items():
        torch.testing.assert_close(trainer.distiller.student.state_dict()[key], value, rtol=1e-9, atol=1e-10, msg=key)


def test_a_parameter_may_join_later(tmp_path):
    """As those of a method in stages: the fused kernel must find the momentum of all."""
    trainer = make("NONE", tmp_path, "SOLVER.WEIGHT_DECAY", "0.0005")
    late = trainer.distiller.student.fc.weight
    late.requires_grad_(False)
    inputs = trainer.data.train.inputs(1)
    trainer.train_step(1, *next(inputs))
    late.requires_grad_(True)
    before = late.clone()
    trainer.train_step(1, *next(inputs))
    assert late.isfinite().all()
    assert not torch.equal(late, before)


def test_momentum_that_begins_with_zeros_is_that_of_torch():
    plain, ours = nn.Linear(3, 2), nn.Linear(3, 2)
    ours.load_state_dict(plain.state_dict())
    cfg = load_cfg(opts=["SOLVER.NESTEROV", "True", "SOLVER.WEIGHT_DECAY", "0.01"])
    options = dict(momentum=cfg.SOLVER.MOMENTUM, nesterov=True, weight_decay=0.01, fused=True)
    optimizers = [torch.optim.SGD(plain.parameters(), cfg.SOLVER.LR, **options), make_optimizer(ours.parameters(), cfg)]
    for _ in range(3):
        image = torch.randn(4, 3)
        for network, optimizer in zip((plain, ours), optimizers, strict=True):
            optimizer.zero_grad()
            network(image).square().sum().backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), ours.parameters(), strict=True))


@pytest.fixture
def scaled(tmp_path):
    """A trainer whose loss is scaled, as in fp16, and the weights after each step."""
    trainer = make("NONE", tmp_path, "SOLVER.EPOCHS", "1", "SOLVER.LR_DECAY_STAGES", "[]", "LOG.WANDB", "False")
    trainer.logger = Logger(tmp_path, trainer.cfg, [], 1, 0)
    trainer.scaler = torch.amp.GradScaler("cpu")
    weights, update = [], trainer.update
    trainer.update = lambda *args: (update(*args), weights.append(trainer.distiller.student.fc.weight.clone()))
    check = trainer.check_update
    trainer.check_update = lambda epoch: check(epoch) if trainer.step_done == len(trainer.data.train) else None
    return trainer, weights


def broken(monkeypatch, trainer, spoil):
    forward, steps = trainer.distiller.forward_train, itertools.count(1)

    def forward_train(*args, **kwargs):
        logits, losses = forward(*args, **kwargs)
        return logits, spoil(next(steps), logits, losses)

    monkeypatch.setattr(trainer.distiller, "forward_train", forward_train)


def test_where_the_loss_is_scaled_nothing_is_learned_after_what_is_not_finite(scaled, monkeypatch):
    """Although the host learns of it at the end of the epoch only."""
    trainer, weights = scaled
    broken(
        monkeypatch,
        trainer,
        lambda step, _, losses: {k: v * (torch.nan if step == 3 else 1) for k, v in losses.items()},
    )
    with pytest.raises(NonFiniteError, match="loss_ce, loss not finite in epoch 1, step 3"):
        trainer.train_epoch(1)
    assert len(weights) == len(trainer.data.train)
    assert not torch.equal(weights[0], weights[1])
    assert all(torch.equal(later, weights[1]) for later in weights[2:])


def test_a_gradient_that_is_finite_at_no_scale_ends_the_run(scaled, monkeypatch):
    trainer, weights = scaled
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)

    def root_of_zero(step, logits, losses):
        return losses | {"loss_odd": (logits - logits).square().sum().sqrt()}

    broken(monkeypatch, trainer, root_of_zero)
    with pytest.raises(NonFiniteError, match="fp16 has no scale at which the gradient of epoch 1 is finite"):
        trainer.train_epoch(1)
    assert all(torch.equal(later, weights[0]) for later in weights)


def test_the_step_is_named_also_where_a_figure_is_shown_before_the_watch_is_read(tmp_path, monkeypatch):
    """On a GPU the watch is read each 50 steps, the progress bar each second."""
    trainer = make("NONE", tmp_path, "LOG.TENSORBOARD_FREQ", "2", "LOG.WANDB", "False")
    trainer.logger = Logger(tmp_path, trainer.cfg, [], 1, 0)
    broken(
        monkeypatch,
        trainer,
        lambda step, _, losses: {k: v * (torch.nan if step == 2 else 1) for k, v in losses.items()},
    )
    check = trainer.check_update
    calls = itertools.count(1)
    trainer.check_update = lambda epoch: next(calls) % 3 or check(epoch)  # the second one of step 2
    with pytest.raises(NonFiniteError, match="step 2"):
        trainer.train_epoch(1)
    assert json.loads((tmp_path / "nonfinite.json").read_text())["step"] == 2


def test_a_run_goes_on_on_another_device(tmp_path):
    """One that has no fused kernel leaves that in the optimizer's state."""
    trainer = make("NONE", tmp_path)
    state = trainer.state()
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = False
    trainer.load_state(state)
    trainer.train_step(1, *next(trainer.data.train.inputs(1)))
    assert trainer.watch.read() is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_kept():
    """160 MB, as a step takes, are 40,000 pages; the second time they are there."""
    import resource

    keep_freed_memory(CPU)

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        parts = [torch.ones(2_000_000) for _ in range(20)]
        del parts
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert faults() < 1000
