"""The training step and the loop: what they compute, and what they must not do."""

import copy
import dataclasses
import itertools
import json
import platform

import pytest
import torch
import torch.nn.functional as F

from edkd.distillers import method_names
from edkd.engine.device import keep_freed_memory
from edkd.engine.log.logger import Logger
from edkd.engine.meter import Meter
from edkd.errors import NonFiniteError, UserError
from tests.short_forms import slow_but
from tests.small import CPU, make_trainer

METHODS = sorted(method_names())
HOST_READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")


@pytest.mark.parametrize("clip", slow_but(["1.0"], ["0.0", "1.0"]))
@pytest.mark.parametrize("method", METHODS)
def test_a_step_reads_nothing_from_the_device(tmp_path, monkeypatch, method, clip):
    trainer = make_trainer(method, tmp_path, "SOLVER.CLIP_GRAD_NORM", clip)
    meter = Meter()
    inputs = trainer.data.train.inputs(1)
    meter.add(*trainer.train_step(1, *next(inputs)))  # the optimizer makes its state

    for name in HOST_READS:
        message = f"Tensor.{name} in the step"
        monkeypatch.setattr(torch.Tensor, name, lambda *_, text=message: pytest.fail(text))
    meter.add(*trainer.train_step(torch.tensor(1.0), *next(inputs)))
    monkeypatch.undo()
    assert meter.read()["loss"] > 0


def published_kd(logits_s, logits_t, target, warmup):
    log_p_s = F.log_softmax(logits_s / 4, 1)
    p_t = F.softmax(logits_t / 4, 1)
    kd = F.kl_div(log_p_s, p_t, reduction="none").sum(1).mean() * 16
    return 0.1 * F.cross_entropy(logits_s, target) + 0.9 * kd


def published_dkd(logits_s, logits_t, target, warmup):
    mask = F.one_hot(target, logits_s.shape[1]).bool()
    p_s = F.softmax(logits_s / 4, 1)
    p_t = F.softmax(logits_t / 4, 1)
    two_s = torch.stack([(p_s * mask).sum(1), (p_s * ~mask).sum(1)], 1)
    two_t = torch.stack([(p_t * mask).sum(1), (p_t * ~mask).sum(1)], 1)
    tckd = F.kl_div(two_s.log(), two_t, reduction="sum") * 16 / len(target)
    others_s = F.log_softmax(logits_s / 4 - 1000 * mask, 1)
    others_t = F.softmax(logits_t / 4 - 1000 * mask, 1)
    nckd = F.kl_div(others_s, others_t, reduction="sum") * 16 / len(target)
    return F.cross_entropy(logits_s, target) + warmup * (tckd + 8 * nckd)


@pytest.mark.parametrize(("method", "loss"), [("KD", published_kd), ("DKD", published_dkd)])
def test_the_plain_loop_of_the_field_trains_the_same(tmp_path, method, loss):
    """The whole trainer against published formulas in a plain loop, in float64."""
    opts = ["SOLVER.EPOCHS", 3, "SOLVER.LR_DECAY_STAGES", "[1,2]", "SOLVER.LR", "0.02"]
    opts += ["SOLVER.WEIGHT_DECAY", "0.0005"]
    trainer = make_trainer(
        method, tmp_path, *opts, change=lambda distiller: distiller.double(), cached=False
    )
    make_batch = trainer.data.train.batch

    def double_batch(*inputs):
        batch = make_batch(*inputs)
        return dataclasses.replace(batch, image=batch.image.double())

    trainer.data.train.batch = double_batch
    student = copy.deepcopy(trainer.distiller.student).train()
    teacher = trainer.distiller.teacher
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
        trainer.state.step_done = 0
    reached = trainer.distiller.student.state_dict()
    for key, value in student.state_dict().items():
        torch.testing.assert_close(reached[key], value, rtol=1e-9, atol=1e-10, msg=key)


def test_a_parameter_may_join_later(tmp_path):
    """As in a method with stages: the fused kernel must find the momentum of all parameters."""
    trainer = make_trainer("NONE", tmp_path, "SOLVER.WEIGHT_DECAY", "0.0005")
    late = trainer.distiller.student.fc.weight
    late.requires_grad_(False)
    inputs = trainer.data.train.inputs(1)
    trainer.train_step(1, *next(inputs))

    late.requires_grad_(True)
    before = late.clone()
    trainer.train_step(1, *next(inputs))
    assert late.isfinite().all()
    assert not torch.equal(late, before)


def spoil(trainer, change):
    """Change the losses of each step: change(number of the step, logits, losses) -> losses."""
    step = trainer.distiller.training_step
    steps = itertools.count(1)

    def training_step(*args):
        logits, losses = step(*args)
        return logits, change(next(steps), logits, losses)

    trainer.distiller.training_step = training_step


def nan_in_step(number):
    def change(step, logits, losses):
        factor = torch.nan if step == number else 1
        return {name: loss * factor for name, loss in losses.items()}

    return change


@pytest.fixture
def scaled(tmp_path):
    """A trainer whose loss is scaled, as in fp16, and the weights after each step."""
    trainer = make_trainer("NONE", tmp_path, "SOLVER.EPOCHS", 1, "SOLVER.BATCH_SIZE", 4)
    trainer.logger = Logger(tmp_path, trainer.cfg, [], 1, 0)
    trainer.update.scaler = torch.amp.GradScaler("cpu")

    weights = []
    update_step = trainer.update.step

    def step(*args, **more):
        update_step(*args, **more)
        weights.append(trainer.distiller.student.fc.weight.clone())

    trainer.update.step = step
    check = trainer.check_update

    def check_at_the_end(epoch):
        if trainer.state.step_done == len(trainer.data.train):
            check(epoch)

    trainer.check_update = check_at_the_end
    return trainer, weights


def test_where_the_loss_is_scaled_nothing_is_learned_after_a_nan(scaled):
    """Although the host checks at the end of the epoch only."""
    trainer, weights = scaled
    spoil(trainer, nan_in_step(3))
    with pytest.raises(NonFiniteError, match="loss_ce, loss not finite in epoch 1, step 3"):
        trainer.train_epoch(1)
    assert len(weights) == len(trainer.data.train)
    assert not torch.equal(weights[0], weights[1])
    assert all(torch.equal(later, weights[1]) for later in weights[2:])


def test_a_gradient_that_is_finite_at_no_scale_ends_the_run(scaled):
    trainer, weights = scaled
    trainer.update.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)

    def root_of_zero(step, logits, losses):
        return losses | {"loss_odd": (logits - logits).square().sum().sqrt()}

    spoil(trainer, root_of_zero)
    message = "fp16 has no scale at which the gradient of epoch 1 is finite"
    with pytest.raises(NonFiniteError, match=message):
        trainer.train_epoch(1)
    assert all(torch.equal(later, weights[0]) for later in weights)


def test_the_step_is_named_where_a_figure_is_shown_before_the_check(tmp_path):
    """On a GPU the check is made every 50 steps, a line may be shown every second."""
    trainer = make_trainer("NONE", tmp_path, "LOG.TENSORBOARD_FREQ", "2")
    trainer.logger = Logger(tmp_path, trainer.cfg, [], 1, 0)
    spoil(trainer, nan_in_step(2))
    check = trainer.check_update
    calls = itertools.count(1)
    trainer.check_update = lambda epoch: next(calls) % 3 or check(epoch)  # the second of step 2
    with pytest.raises(NonFiniteError, match="step 2"):
        trainer.train_epoch(1)
    assert json.loads((tmp_path / "nonfinite.json").read_text())["step"] == 2


def test_a_run_resumes_on_another_device(tmp_path):
    """One without a fused kernel leaves that in the optimizer's state."""
    trainer = make_trainer("NONE", tmp_path)
    state = trainer.update.state_dict()
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = False
    trainer.update.load_state_dict(state)
    trainer.train_step(1, *next(trainer.data.train.inputs(1)))
    assert trainer.update.watch.read() is None


@pytest.mark.parametrize("returned", [None, 1.0, {}, {"loss_kd": 1.0}])
def test_a_method_that_breaks_the_contract_is_named(tmp_path, returned):
    trainer = make_trainer("KD", tmp_path)
    trainer.distiller.training_step = lambda batch, turn: (torch.zeros(1), returned)
    with pytest.raises(UserError, match="KD returned .* but must return a dictionary of scalar"):
        trainer.train_step(1, *next(trainer.data.train.inputs(1)))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_kept():
    """160 MB, as a step takes, are 40,000 pages; the second time no page is faulted in."""
    import resource

    keep_freed_memory(CPU)

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        parts = [torch.ones(2_000_000) for _ in range(20)]
        del parts
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    for _ in range(3):  # until the heap has room for all of them
        faults()
    assert faults() < 4000
