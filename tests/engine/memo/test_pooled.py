"""Cached pooled features, and logits that the teacher's classifier makes of them."""

import pytest
import torch

from edkd.distillers import Distiller
from edkd.engine.memo.cache import attach
from edkd.engine.memo.memo import TeacherMemo
from edkd.errors import NonFiniteError
from tests.engine.memo.parts import counting, make_loader, make_settings, make_teacher, quiet
from tests.small import CPU, TinyNet, config, make_distiller

POOLED = ("pooled_feat",)


class ReadsPooled(Distiller):
    teacher_needs = ("logits", "pooled_feat")

    def losses(self, student, teacher, batch):
        wanted = teacher.features["pooled_feat"].mean() + teacher.logits.mean()
        return {"loss_kd": (student.logits.mean() - wanted).square()}


class ReadsStage(ReadsPooled):
    def losses(self, student, teacher, batch):
        return {"loss_kd": student.logits.mean() * teacher.features["feats"][-1].mean()}


class Scaled(TinyNet):
    """The classifier alone does not make its logits."""

    def forward(self, x):
        logits, features = super().forward(x)
        return 2 * logits + 1, features


def memo_of(folder, teacher=None, amp=None, lines=None, **settings):
    say = quiet if lines is None else lines.append
    teacher = teacher or make_teacher()
    return TeacherMemo(
        teacher, make_loader(200), "weak", make_settings(folder, **settings), CPU, amp, say, POOLED
    )


def scaled():
    torch.manual_seed(0)
    return Scaled(channels=12).eval().requires_grad_(False)


def stored(memo):
    return [field.name for field in memo.rows.fields]


@pytest.mark.parametrize(
    ("teacher", "amp", "dtype", "fields"),
    [
        (make_teacher, None, "auto", ["pooled_feat"]),
        (make_teacher, torch.bfloat16, "auto", ["pooled_feat"]),
        (make_teacher, None, "bf16", ["pooled_feat", "logits"]),
        (scaled, None, "auto", ["pooled_feat", "logits"]),
    ],
)
def test_what_is_stored_and_that_it_is_the_teachers(tmp_path, teacher, amp, dtype, fields):
    """Each row equals what the teacher returns for a batch of the same shape, bit for bit."""
    memo = memo_of(tmp_path, teacher(), amp, dtype=dtype)
    assert stored(memo) == fields
    memo.prepare(1, quiet)

    index, numbers = memo.loader.order(1)
    live = memo.compute(index[:128], numbers["weak"][:128])
    for name, table in memo.tables.items():
        expected = live[name]
        if dtype == "bf16":
            expected = expected.bfloat16().to(expected.dtype)
        assert torch.equal(table[index[:128]], expected), name


def test_a_second_run_computes_nothing(tmp_path):
    first = memo_of(tmp_path)
    first.prepare(1, quiet)
    teacher = counting(make_teacher())
    second = memo_of(tmp_path, teacher)
    calls = teacher.calls
    second.prepare(1, quiet)
    assert teacher.calls == calls
    assert all(torch.equal(second.tables[name], first.tables[name]) for name in first.tables)
    assert "200 of 200 pooled features are cached or repeat" in second.outlook([1])


def test_logits_alone_are_another_cache(tmp_path):
    """Methods that read only logits keep the caches that they have."""
    pooled = memo_of(tmp_path)
    settings = make_settings(tmp_path)
    alone = TeacherMemo(make_teacher(), make_loader(200), "weak", settings, CPU, None, quiet)
    assert stored(alone) == ["logits"]
    assert alone.store.folder != pooled.store.folder
    assert "outputs" not in alone.store.about


def test_features_that_are_not_finite_are_named(tmp_path):
    class Overflows(TinyNet):
        def forward(self, x):
            logits, features = super().forward(x)
            return logits, features | {"pooled_feat": features["pooled_feat"] / 0}

    teacher = Overflows(channels=12).eval().requires_grad_(False)
    with pytest.raises(NonFiniteError, match="TinyNet returns pooled features that are NaN"):
        memo_of(tmp_path, teacher)


@pytest.mark.parametrize(("method", "runs"), [(ReadsPooled, 0), (ReadsStage, 1)])
def test_a_step_runs_the_teacher_only_for_what_is_not_cached(tmp_path, method, runs):
    distiller = make_distiller(method)
    loader = make_loader()
    cfg = config("TEACHER_MEMO.FOLDER", tmp_path)
    cache = attach(distiller, loader, cfg, CPU, None, range(1, 2), quiet)
    cache.prepare(1, quiet)

    (teacher,) = distiller.teachers()
    counting(teacher)
    batch = next(iter(loader.epoch(1)))
    cache.expect(batch)
    _, losses = distiller.train().training_step(batch)
    assert losses["loss_kd"].isfinite()
    assert teacher.calls == runs


def test_the_loss_equals_that_of_the_live_teacher(tmp_path):
    losses = []
    for is_on in (True, False):
        distiller = make_distiller(ReadsPooled)
        loader = make_loader()
        cfg = config("TEACHER_MEMO.FOLDER", tmp_path, "TEACHER_MEMO.ENABLED", is_on)
        cache = attach(distiller, loader, cfg, CPU, None, range(1, 2), quiet)
        batch = next(iter(loader.epoch(1)))
        if cache:
            cache.prepare(1, quiet)
            cache.expect(batch)
        _, terms = distiller.train().training_step(batch)
        losses.append(terms["loss_kd"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
