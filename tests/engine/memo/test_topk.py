"""The k largest probabilities and the rest: what is stored, and what losses get of it."""

import re

import numpy as np
import pytest
import torch

from edkd.distillers import kd_loss
from edkd.engine.memo.admin import survey
from edkd.engine.memo.cache import attach
from edkd.engine.memo.files import segment_files
from edkd.engine.memo.rows import RowFormat
from edkd.engine.memo.topk import DTYPE, fields_of, shortened, with_logits
from edkd.errors import NonFiniteError, UserError
from tests.engine.memo.parts import counting, make_loader, make_memo, make_teacher, quiet
from tests.small import CPU, TinyNet, config, make_distiller


def stored(logits, k, dtype):
    """Logits after they were written and read."""
    num_classes = logits.shape[1]
    rows = RowFormat(fields_of(k, num_classes, dtype))
    content = rows.pack(rows.stored(shortened(logits, k))).numpy()
    assert content.shape[1] == rows.num_bytes
    return with_logits(num_classes, rows.unpack(content))["logits"]


def smoothed(logits, k):
    """Independently, in float64: the k largest probabilities, and the rest spread evenly."""
    z = logits.double().numpy()
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    order = np.argsort(-p, 1)
    result = np.zeros_like(p)
    for row, places in enumerate(order):
        top, rest = places[:k], places[k:]
        result[row, top] = p[row, top]
        result[row, rest] = p[row, rest].sum() / len(rest)
    return result


def random_logits(num_classes, scale=4.0):
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(64, num_classes, generator=generator)


@pytest.mark.parametrize(("k", "num_classes"), [(1, 2), (1, 10), (9, 10), (10, 200), (3, 40_000)])
@pytest.mark.parametrize("scale", [0.1, 4.0, 40.0])
def test_probabilities_are_those_of_an_independent_computation(k, num_classes, scale):
    logits = random_logits(num_classes, scale)
    expected = smoothed(logits, k)

    exact = stored(logits, k, torch.float32).double().softmax(1).numpy()
    np.testing.assert_allclose(exact, expected, rtol=2e-4, atol=1e-9)

    # In float16 a log-probability l has an error of at most |l| / 2048, and so has log p.
    half = stored(logits, k, DTYPE).double().numpy()
    log_p = np.log(np.maximum(expected, 1e-300))
    allowed = 1.01 * np.abs(log_p) / 2048 + 2e-3
    assert (np.abs(half - log_p) <= allowed)[expected > 1e-30].all()


def test_a_row_has_the_documented_size():
    assert RowFormat(fields_of(10, 1000, torch.float16)).num_bytes == 42
    assert RowFormat(fields_of(10, 1000, torch.float32)).num_bytes == 64
    assert RowFormat(fields_of(10, 40_000, torch.float16)).num_bytes == 62


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_stay_finite(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0, 5.0], [-1e4, -1e4, -1e4, -1e4]])
    found = stored(logits, 2, dtype)
    assert found.isfinite().all()
    probabilities = found.softmax(1)
    torch.testing.assert_close(probabilities[0], torch.tensor([1.0, 0, 0, 0]), rtol=0, atol=1e-2)
    torch.testing.assert_close(probabilities[1], torch.full((4,), 0.25), rtol=0, atol=1e-2)


def test_at_another_temperature_the_top_keeps_its_ratios():
    logits = random_logits(30)
    log_p = stored(logits, 5, torch.float32)
    top = logits.topk(5).indices
    live = (logits / 4).gather(1, top).log_softmax(1)
    torch.testing.assert_close((log_p / 4).gather(1, top).log_softmax(1), live)

    # The rest, spread evenly, gets more mass than it has.
    rest = 1 - (logits / 4).softmax(1).gather(1, top).sum(1)
    replayed = 1 - (log_p / 4).softmax(1).gather(1, top).sum(1)
    assert (replayed > rest).all()


# In the teacher cache.


def test_a_memo_replays_what_the_teacher_computes(tmp_path):
    memo = make_memo(tmp_path, top_k=2)
    memo.prepare(1, quiet)
    index, numbers = memo.loader.order(1)
    live = memo.compute(index, numbers["weak"])["logits"]

    rows = {name: table[index] for name, table in memo.tables.items()}
    replayed = memo.form.outputs(rows)["logits"].softmax(1)
    np.testing.assert_allclose(replayed.numpy(), smoothed(live, 2), rtol=3e-3)
    (file,) = segment_files(memo.store.folder)
    assert file.stat().st_size == 40 * (4 + 10)
    assert "stored as topk 2 of 4, float16; a step" in memo.outlook([1])


def test_a_method_gets_replayed_logits_without_the_teacher(tmp_path):
    losses = []
    for options in (["TEACHER_MEMO.TOP_K", 3, "TEACHER_MEMO.DTYPE", "fp32"], []):
        distiller = make_distiller("KD").train()
        teacher = counting(distiller.teachers()[0])
        loader = make_loader(batch_size=40)
        cfg = config("TEACHER_MEMO.FOLDER", tmp_path, *options)
        cache = attach(distiller, loader, cfg, CPU, None, range(1, 2), quiet)
        cache.prepare(1, quiet)
        batch = next(iter(loader.epoch(1)))
        cache.expect(batch)
        calls = teacher.calls
        _, terms = distiller.training_step(batch)
        losses.append(terms["loss_kd"].item())
        assert teacher.calls == calls
    # With 3 of 4 classes, the rest is one class, and nothing is lost.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_pooled_features_are_stored_beside_the_top(tmp_path):
    distiller = make_distiller("SRRL").train()
    cfg = config("TEACHER_MEMO.FOLDER", tmp_path, "TEACHER_MEMO.TOP_K", 2)
    cache = attach(distiller, make_loader(), cfg, CPU, None, range(1, 2), quiet)
    (memo,) = cache.memos
    assert memo.rows.fields[0].name == "pooled_feat"
    assert memo.rows.num_bytes == 4 * 12 + 10
    cache.prepare(1, quiet)
    batch = next(iter(make_loader().epoch(1)))
    cache.expect(batch)
    found = distiller.run_teachers(batch)
    live_logits, live = memo.teacher(batch.image)
    torch.testing.assert_close(found.features["pooled_feat"], live["pooled_feat"])
    expected = torch.from_numpy(smoothed(live_logits, 2)).float()
    torch.testing.assert_close(found.logits.softmax(1), expected, rtol=3e-3, atol=0)


def test_other_numbers_of_classes_are_other_caches(tmp_path):
    memos = [make_memo(tmp_path, top_k=k) for k in (0, 1, 2)]
    memos.append(make_memo(tmp_path, top_k=2, dtype="fp32"))
    assert len({memo.store.folder for memo in memos}) == 4


def test_the_list_of_caches_names_the_form(tmp_path):
    memo = make_memo(tmp_path, top_k=2)
    memo.prepare(1, quiet)
    line = survey(memo.store.folder, verify=True).line
    assert "TinyNet on tiny, float16, topk 2, 40 of 720 views" in line


def test_as_many_as_there_are_classes_are_refused(tmp_path):
    with pytest.raises(UserError, match="TOP_K 4 is not below the number of classes, 4; 0 stores"):
        make_memo(tmp_path, top_k=4)


def test_logits_that_are_not_finite_are_named(tmp_path):
    class Overflows(TinyNet):
        def forward(self, x):
            logits, features = super().forward(x)
            return logits / 0, features

    with pytest.raises(NonFiniteError, match="TinyNet returns logits that are NaN"):
        make_memo(tmp_path, Overflows(channels=12).eval(), top_k=2)
    assert not list(tmp_path.iterdir())


def test_a_cache_of_something_else_is_named(tmp_path):
    """By what differs, while the own one is empty."""
    make_memo(tmp_path, top_k=2).prepare(1, quiet)
    cases = [
        (dict(top_k=3), "the form"),
        (dict(top_k=2, teacher=make_teacher(seed=1)), "the teacher's weights$"),
        (dict(top_k=2, loader=make_loader(39)), "the images or their views, the form"),
        (dict(top_k=2, amp=torch.bfloat16), "the computed bits"),
    ]
    for changes, message in cases:
        (line,) = make_memo(tmp_path, **changes).others()
        name, reason = line.split(" is not used, as this run differs in ")
        assert name.startswith(f"teacher cache: {tmp_path}/tiny_TinyNet_")
        assert re.match(message, reason), reason
    assert make_memo(tmp_path, top_k=2).others() == []


def test_the_loss_of_replayed_logits_at_temperature_1():
    """Cross-entropy of the smoothed distribution, computed independently."""
    teacher = random_logits(20)
    student = random_logits(20, 1.0).flip(0)
    replayed = stored(teacher, 4, torch.float32)
    p = smoothed(teacher, 4)
    log_q = student.double().log_softmax(1).numpy()
    expected = (p * (np.log(p) - log_q)).sum(1).mean()
    assert kd_loss(student, replayed, 1.0).item() == pytest.approx(expected, rel=1e-4)
