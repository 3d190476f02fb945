"""Several teachers, and combined methods, with the teacher cache."""

import pytest
import torch
from torch import nn

from edkd.distillers import construct, find_method
from edkd.engine.build import Networks, build_data, build_distiller
from edkd.engine.checkpoint import save_checkpoint
from edkd.engine.config.load import load_config
from edkd.engine.memo.cache import attach
from edkd.engine.networks import load_teachers
from edkd.errors import UserError
from edkd.models import get_model
from tests.small import CPU, TinyNet, config, info, tiny_data


@pytest.mark.parametrize("method", ["KD", "KD+DKD"])
def test_several_teachers_are_cached_one_by_one(tmp_path, method):
    words = ["DISTILLER.TYPE", method, "DISTILLER.TEACHER", "[TinyNet,TinyNet]"]
    cfg = config(*words, "LOG.PREFIX", tmp_path)
    data = tiny_data(cfg)
    torch.manual_seed(0)
    teachers = nn.ModuleList([TinyNet(), TinyNet(channels=12)])
    distiller = construct(find_method(method), TinyNet(), teachers, cfg, data.info).train()
    calls = []
    batch = data.train.batch(*next(data.train.inputs(1)))
    live = distiller.training_step(batch)[1]

    cache = attach(distiller, data.train, cfg, CPU, None, range(1, 2), lambda line: None)
    assert len(cache.memos) == 2
    assert len({memo.store.folder for memo in cache.memos}) == 2
    cache.prepare(1, lambda line: None)
    for teacher in teachers:
        teacher.register_forward_hook(lambda *_: calls.append(1))
    cache.expect(batch)
    student_state = distiller.student.state_dict()
    cached = distiller.training_step(batch)[1]
    assert calls == []
    assert student_state.keys() == distiller.student.state_dict().keys()
    for name, loss in live.items():
        torch.testing.assert_close(cached[name], loss, msg=name)


def test_each_teacher_has_its_weights(tmp_path):
    files = []
    for number in range(2):
        torch.manual_seed(number)
        files.append(tmp_path / f"teacher{number}")
        save_checkpoint({"model": get_model("cifar", "resnet8", 10).state_dict()}, files[-1])

    opts = ["DATASET.TYPE", "digits", "DISTILLER.TYPE", "KD", "DISTILLER.STUDENT", "resnet8"]
    opts += ["DISTILLER.TEACHER", "[resnet8,resnet8]"]
    cfg = load_config(opts=[*opts, "DISTILLER.TEACHER_CKPT", f"[{files[0]},{files[1]}]"])
    data = build_data(cfg, CPU)
    first, second = load_teachers(cfg, data)
    assert not torch.equal(first.conv1.weight, second.conv1.weight)

    one_file = load_config(opts=[*opts, "DISTILLER.TEACHER_CKPT", str(files[0])])
    with pytest.raises(UserError, match="names 2 teachers, but TEACHER_CKPT has 1"):
        load_teachers(one_file, data)


def test_methods_that_read_features_take_one_teacher():
    from edkd.distillers import Distiller

    class Reads(Distiller):
        teacher_needs = ("logits", "pooled_feat")

        def losses(self, student, teacher, batch):
            raise AssertionError

    from edkd.registry import METHODS

    METHODS.add("TEST_READS", Reads)
    try:
        cfg = config("DISTILLER.TYPE", "TEST_READS", "DISTILLER.TEACHER", "[TinyNet,TinyNet]")
        networks = Networks([TinyNet()], [TinyNet(), TinyNet()])
        with pytest.raises(
            UserError, match="reads logits, pooled_feat of the teacher and takes one"
        ):
            build_distiller(cfg, tiny_data(cfg), networks)
    finally:
        METHODS.remove("TEST_READS")


def test_a_method_that_needs_indices_is_refused_without_them():
    from edkd.dataset.external import external_dataset
    from edkd.distillers import Distiller
    from edkd.registry import METHODS

    class Remembers(Distiller):
        needs_index = True

        def losses(self, student, teacher, batch):
            raise AssertionError

    batches = [(torch.randn(4, 3, 8, 8), torch.arange(4)) for _ in range(2)]
    METHODS.add("TEST_REMEMBERS", Remembers)
    try:
        cfg = config("DISTILLER.TYPE", "TEST_REMEMBERS")
        data = external_dataset(batches, batches, device=CPU)
        with pytest.raises(UserError, match="needs the number of each image"):
            build_distiller(cfg, data, Networks([TinyNet()], [TinyNet()]))
    finally:
        METHODS.remove("TEST_REMEMBERS")


def test_facts_reach_the_method():
    distiller = construct(find_method("KD"), TinyNet(), TinyNet(), config(), info())
    assert distiller.data.num_images == 40
    assert distiller.data.image_shape == (3, 8, 8)
