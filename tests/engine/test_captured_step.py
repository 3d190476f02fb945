"""A captured step: what it needs, shown without a GPU; with one, the step itself."""

import contextlib
import dataclasses
import random

import numpy as np
import pytest
import torch

from edkd.engine.captured_step import WARM_UP, CapturedStep
from edkd.engine.optimizer import set_learning_rate
from tests.small import CPU, make_trainer

METHODS = ["KD", "DKD", "EDKD"]


def make(folder, method="EDKD", *opts):
    return make_trainer(method, folder, "SOLVER.LR", "0.02", *opts)


def forward(trainer, epoch, *inputs):
    batch = dataclasses.replace(trainer.data.train.batch(*inputs), epoch=epoch)
    trainer.train_step.cache.expect(batch)
    return trainer.train_step.forward(batch)


@pytest.mark.parametrize("method", METHODS)
def test_the_step_is_one_graph_that_agrees_with_eager(tmp_path, method):
    trainer = make(tmp_path, method)
    inputs = next(trainer.data.train.inputs(1))
    state = {key: value.clone() for key, value in trainer.distiller.state_dict().items()}
    results = []
    forward(trainer, torch.tensor(3.0), *inputs)  # the terms are checked once, on the host
    compiled = torch.compile(forward, backend="aot_eager", fullgraph=True)
    for run in (forward, compiled):
        trainer.distiller.load_state_dict(state)
        trainer.distiller.zero_grad()
        losses, logits = run(trainer, torch.tensor(3.0), *inputs)
        losses["loss"].backward()
        gradients = [value.grad for value in trainer.distiller.student.parameters()]
        results.append([logits, *losses.values(), *gradients])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("epoch", [1, 7, 30])
def test_an_epoch_in_a_tensor_gives_the_same_terms(tmp_path, method, epoch):
    trainer = make(tmp_path, method)
    inputs = next(trainer.data.train.inputs(1))
    state = {key: value.clone() for key, value in trainer.distiller.state_dict().items()}
    terms, _ = forward(trainer, epoch, *inputs)
    trainer.distiller.load_state_dict(state)
    of_tensor, _ = forward(trainer, torch.tensor(float(epoch)), *inputs)
    assert terms.keys() == of_tensor.keys()
    for name, term in terms.items():
        torch.testing.assert_close(of_tensor[name], term, rtol=1e-6, atol=0)


def test_an_epoch_has_two_shapes_at_most(tmp_path):
    loader = make(tmp_path).data.train
    shapes = [tuple(tensor.shape for tensor in inputs) for inputs in loader.inputs(1)]
    assert len(set(shapes[:-1])) == 1
    assert sum(shape[0][0] for shape in shapes) == loader.num_images


def test_on_a_cpu_a_line_is_logged_and_steps_run_eagerly():
    said = []
    step = CapturedStep(
        lambda epoch, x: (epoch, x), torch.optim.SGD([torch.zeros(1)], 1.0), CPU, said.append
    )
    assert step(3, "x") == (3, "x")
    assert said == ["SOLVER.CUDA_GRAPH: off, steps run eagerly (the device is cpu)"]


class FakeGenerator:
    """That of a GPU, as far as CapturedStep uses it."""

    def __init__(self):
        self.state = "capturing"

    def clone_state(self):
        return "copy"

    def graphsafe_set_state(self, state):
        self.state = state


@pytest.fixture
def fake_cuda(monkeypatch):
    """torch.cuda as far as CapturedStep uses it, on the CPU."""
    stream = type("Stream", (), {"wait_stream": lambda *_: None})
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream())
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(
        torch.cuda, "CUDAGraph", lambda: type("Graph", (), {"replay": lambda self: None})()
    )
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: contextlib.nullcontext())
    generator = FakeGenerator()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "default_generators", (generator,))
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None, **more: zeros(*size, **more))
    return torch.device("cuda")


def test_what_changes_between_replays_is_seen_by_them(fake_cuda, monkeypatch):
    optimizer, said, ran, replayed = torch.optim.SGD([torch.zeros(1)], 0.0), [], [], []
    captured = CapturedStep(lambda epoch, x: ran.append(x.shape), optimizer, fake_cuda, said.append)

    class Graph:
        def replay(self):
            (capture,) = (
                capture for capture in captured.captures.values() if capture.graph is self
            )
            figures = captured.epoch, optimizer.param_groups[0]["lr"], capture.inputs[0].sum()
            replayed.append([round(figure.item(), 3) for figure in figures])

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    for i in range(1, 9):
        for size in (4, 2):
            set_learning_rate(optimizer, i / 10)
            captured(i, torch.full((size,), float(i)))
    assert len(ran) == 2 * (WARM_UP + 1)  # the last of them is the capture
    assert replayed == [[i, i / 10, size * i] for i in range(WARM_UP + 1, 9) for size in (4, 2)]
    assert not said


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(1)])
def test_a_step_that_draws_on_the_host_is_not_captured(fake_cuda, draw):
    said = []
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.0)
    captured = CapturedStep(lambda epoch, x: draw(), optimizer, fake_cuda, said.append)
    for _ in range(6):
        captured(1, torch.ones(1))
    assert not captured.captures
    assert len(said) == 1
    assert "on the host" in said[0]


def test_a_step_that_cannot_be_captured_runs_eagerly(fake_cuda, monkeypatch):
    parameter, said, failing = torch.zeros(1, requires_grad=True), [], []

    @contextlib.contextmanager
    def refuses(graph, **_):
        failing.append(True)
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuses)
    optimizer = torch.optim.SGD([parameter], 0.5)

    def step(epoch, x):
        (parameter * x).sum().backward()
        if not failing or captured.works is False:
            optimizer.step()
            optimizer.zero_grad()
        return parameter.detach().clone()

    captured = CapturedStep(step, optimizer, fake_cuda, said.append)
    set_learning_rate(optimizer, 0.5)
    values = [captured(1, torch.ones(1)).item() for _ in range(6)]
    assert values == [-0.5, -1.0, -1.5, -2.0, -2.5, -3.0]
    assert len(said) == len(failing) == 1
    assert "cannot be captured" in said[0]
    assert torch.cuda.default_generators[0].state == "copy"


def test_graphs_after_forget_have_a_new_pool(fake_cuda, monkeypatch):
    pools = []
    numbers = iter(range(9))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(numbers))

    def graph(_, pool, **more):
        pools.append(pool)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "graph", graph)
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.0)
    captured = CapturedStep(lambda epoch, x: x, optimizer, fake_cuda, print)
    for _ in range(2):
        captured.forget()
        for size in (4, 2):
            for _ in range(WARM_UP + 2):
                captured(1, torch.ones(size))
    assert pools == [1, 1, 2, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "opts",
    [[], ["SOLVER.TYPE", "AdamW"], ["SOLVER.CLIP_GRAD_NORM", "1.0"], ["SOLVER.TRAINER", "dot"]],
)
@pytest.mark.parametrize("method", METHODS)
def test_captured_and_eager_steps_train_the_same(tmp_path, method, opts):
    reached = []
    for captured in (False, True):
        said = []
        trainer = make_trainer(method, tmp_path, *opts, device=torch.device("cuda"))
        if captured:
            trainer.step = CapturedStep(
                trainer.train_step, trainer.update.optimizer, trainer.device, said.append
            )
        for epoch in range(1, 6):
            trainer.train_step.cache.prepare(epoch, lambda line: None)
            for i, inputs in enumerate(trainer.data.train.inputs(epoch)):
                trainer.update.set_learning_rate(0.01 / (epoch + i))
                trainer.step(epoch, *inputs)
        assert not said
        parameters = trainer.distiller.student.parameters()
        reached.append(torch.cat([value.detach().flatten() for value in parameters]).cpu())
    assert len(trainer.step.captures) == 2
    torch.testing.assert_close(*reached, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_after_a_capture_that_failed_all_goes_on():
    said, device = [], torch.device("cuda")
    weight = torch.ones(8, device=device, requires_grad=True)
    optimizer = torch.optim.SGD([weight], 0.1, fused=True)

    def step(epoch, x):
        loss = (torch.nn.functional.dropout(weight, 0.5) * x).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    captured = CapturedStep(step, optimizer, device, said.append)
    set_learning_rate(optimizer, 0.1)
    for _ in range(8):
        captured(1, torch.ones(8, device=device))
    assert len(said) == 1
    assert torch.rand(3, device=device).isfinite().all()
