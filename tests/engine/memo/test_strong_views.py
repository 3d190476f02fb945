"""The teacher cache for methods with two views: a cache for each, equal to the teacher's logits."""

import pytest
import torch

from edkd.engine.memo.cache import attach, detach
from tests.small import make_trainer

OPTS = ["DATASET.STRONG_VIEWS", "5", "LOG.PREFIX"]


@pytest.mark.parametrize("method", ["MLKD", "CRLD"])
def test_cached_logits_of_both_views_are_those_of_the_teacher(tmp_path, monkeypatch, method):
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(method, tmp_path, *OPTS, tmp_path, cached=False)
    train = trainer.data.train
    train.use_views(("weak", "strong"))
    distiller = trainer.distiller
    teacher = distiller.teachers()[0]

    cache = attached(trainer)
    keys = {memo.view: memo.store.about["num_keys"] for memo in cache.memos}
    assert keys == {"weak": 40 * 18, "strong": 40 * 5}
    for epoch in (1, 2):
        cache.prepare(epoch, lambda line: None)
        for batch in train.epoch(epoch):
            cache.expect(batch)
            found = distiller.run_teachers(batch)
            for view in ("weak", "strong"):
                expected = teacher(batch.views[view].image)[0]
                torch.testing.assert_close(found[view].logits, expected, rtol=1e-5, atol=1e-5)

    # Another method gets them without running the teacher.
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    for memo in attached(trainer).memos:
        calls.clear()
        memo.prepare(2, lambda line: None)
        assert calls == []


def attached(trainer):
    detach(trainer.distiller)
    trainer.distiller.teachers()[0]._forward_hooks.clear()
    return attach(
        trainer.distiller,
        trainer.data.train,
        trainer.cfg,
        torch.device("cpu"),
        None,
        range(1, 3),
        lambda line: None,
    )
