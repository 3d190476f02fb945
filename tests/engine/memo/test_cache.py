"""Which methods get cached logits, how they get them, and that training does not change by it."""

import copy
import dataclasses

import pytest
import torch

from edkd.dataset import Loader
from edkd.distillers import Distiller, construct, find_method
from edkd.engine.checkpoint import fingerprint
from edkd.engine.memo.cache import attach, detach
from edkd.engine.memo.stand_in import StandIn
from edkd.models import get_model
from edkd.models._fixed_size import with_fixed_size
from edkd.types import Batch
from tests.engine.memo.parts import (
    HoldsTheTeacherTwice,
    OwnStep,
    ReadsFeatures,
    ReadsLogits,
    Roll,
    counting,
    make_loader,
    quiet,
)
from tests.small import CPU, TinyNet, batch, config, info, make_distiller


class Preferred(Distiller):
    def losses(self, student, teacher, batch):
        return {"loss_kd": (student.logits - teacher.logits).square().mean()}


class PreferredFeatures(Preferred):
    teacher_needs = ("logits", "pooled_feat", "feats")


class TwoViews(Distiller):
    views = ("weak", "strong")

    def losses(self, student, teacher, batch):
        terms = [(student[v].logits - teacher[v].logits).square().mean() for v in self.views]
        return {"loss_kd": sum(terms)}


class Hooks(ReadsLogits):
    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        teacher.fc.register_forward_hook(lambda *_: None)


def start(distiller, folder, loader=None, *opts, lines=None):
    """The cache of a method."""
    cfg = config("LOG.PREFIX", folder, *opts)
    say = quiet if lines is None else lines.append
    return attach(distiller, loader or make_loader(), cfg, CPU, None, [1, 2], say)


def train(distiller, loader, cache, epochs=2):
    """Plain training; the weights that it ends with."""
    optimizer = torch.optim.SGD(distiller.parameter_groups(), lr=0.1)
    distiller.train()
    for epoch in range(1, epochs + 1):
        if cache:
            cache.prepare(epoch, quiet)
        for made in loader.epoch(epoch):
            made = dataclasses.replace(made, epoch=epoch)
            if cache:
                cache.expect(made)
            _, terms = distiller.training_step(made)
            optimizer.zero_grad()
            sum(terms.values()).backward()
            optimizer.step()
    return [parameter.detach().clone() for parameter in distiller.student.parameters()]


METHODS = ["KD", "DKD", "EDKD", Preferred, ReadsLogits, HoldsTheTeacherTwice, OwnStep]


@pytest.mark.parametrize("method", METHODS)
def test_cold_warm_and_off_train_bit_for_bit_the_same(tmp_path, method):
    """One batch an epoch, of the size in which logits are computed."""
    results = []
    for enabled in (True, True, False):
        loader = make_loader(128, batch_size=128)
        distiller = make_distiller(method)
        counting(distiller.teachers()[0])
        lines = []
        cache = start(distiller, tmp_path, loader, "TEACHER_MEMO.ENABLED", enabled, lines=lines)
        assert (cache is not None) == enabled
        assert len(lines) == enabled
        calls = distiller.teachers()[0].calls
        results.append((train(distiller, loader, cache), distiller.teachers()[0].calls - calls))

    (cold, of_cold), (warm, of_warm), (off, of_off) = results
    assert [of_cold, of_warm, of_off] == [2, 0, 2]
    for values in zip(cold, warm, off, strict=True):
        assert torch.equal(values[0], values[1])
        assert torch.equal(values[0], values[2])


@pytest.mark.parametrize("method", [*METHODS, ReadsFeatures, PreferredFeatures])
@pytest.mark.parametrize("enabled", [True, False])
def test_the_teacher_is_never_changed(tmp_path, method, enabled):
    distiller = make_distiller(method)
    (teacher,) = distiller.teachers()
    before = fingerprint(teacher)
    loader = make_loader()
    cache = start(distiller, tmp_path, loader, "TEACHER_MEMO.ENABLED", enabled)
    train(distiller, loader, cache)
    assert fingerprint(teacher) == before
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert not teacher.training


# Which methods are served.


def test_the_line_at_the_start(tmp_path):
    lines = []
    cache = start(make_distiller("KD"), tmp_path, lines=lines)
    (line,) = lines
    assert line.startswith("teacher cache: ")
    assert " of 80 logits are cached or repeat, " in line
    folder = cache.memos[0].store.folder
    assert line.endswith(f" to compute; stored lossless; a step runs the student alone; {folder}")


def test_another_method_finds_all_logits(tmp_path):
    start(make_distiller("KD"), tmp_path).prepare(1, quiet)
    lines = []
    cache = start(make_distiller(ReadsLogits), tmp_path, lines=lines)
    cache.prepare(2, quiet)
    start(make_distiller("EDKD"), tmp_path, lines=lines)
    assert "80 of 80 logits are cached or repeat, 0 to compute" in lines[1]


def test_a_method_in_the_preferred_style_needs_no_trial_step(tmp_path):
    class Counts(Preferred):
        steps = 0

        def losses(self, student, teacher, batch):
            Counts.steps += 1
            return super().losses(student, teacher, batch)

    distiller = make_distiller(Counts)
    teacher = counting(distiller.teachers()[0])
    assert start(distiller, tmp_path) is not None
    assert Counts.steps == 0
    assert teacher.calls == 1  # the sample of the fingerprint


REASONS = [
    (PreferredFeatures, "the method reads the teacher's feats"),
    (ReadsFeatures, "the method reads the teacher's features"),
    (Hooks, "the method registers hooks on the teacher"),
]


@pytest.mark.parametrize(("method", "reason"), REASONS)
def test_a_method_that_needs_more_keeps_the_real_teacher(tmp_path, method, reason):
    lines = []
    distiller = make_distiller(method)
    assert start(distiller, tmp_path, lines=lines) is None
    assert lines == [f"teacher cache: off ({reason}); the teacher runs in every step"]
    assert not any(isinstance(module, StandIn) for module in distiller.modules())
    assert distiller.cached_teachers == {}
    assert not list(tmp_path.iterdir())
    _, losses = distiller.train().training_step(batch())
    sum(losses.values()).backward()


@pytest.mark.parametrize("method", ["NONE", "DML", "KDCL"])
def test_a_method_without_a_teacher_has_no_cache_and_no_line(tmp_path, method):
    lines = []
    assert start(make_distiller(method), tmp_path, lines=lines) is None
    assert lines == []


class Unnumbered(Loader):
    num_images = 8

    def __len__(self):
        return 1

    def inputs(self, epoch=0, first=0):
        yield (torch.zeros(8, 3, 8, 8),)

    def batch(self, image):
        return Batch(image, torch.zeros(8, dtype=torch.long))


class ManyViews(Roll):
    num_views = 2**28


def repeating_loader():
    loader = make_loader()
    loader.members = torch.zeros(40, dtype=torch.long)
    return loader


UNSUITABLE = [
    (Unnumbered(), "the augmented views of these images are not numbered"),
    (make_loader(weak=ManyViews()), "40 images with 268435456 views each are too many keys"),
    (repeating_loader(), "an epoch contains images more than once"),
]


@pytest.mark.parametrize(("loader", "reason"), UNSUITABLE)
def test_a_loader_whose_logits_cannot_be_cached(tmp_path, loader, reason):
    lines = []
    assert start(make_distiller("KD"), tmp_path, loader, lines=lines) is None
    assert lines == [f"teacher cache: off ({reason}); the teacher runs in every step"]


class Wrapped(torch.nn.Module):
    """A teacher that finds its features by a hook of its own."""

    def __init__(self):
        super().__init__()
        self.network = TinyNet()
        self.network.conv.register_forward_hook(self.keep)

    def keep(self, module, inputs, output):
        self.kept = output

    def forward(self, x):
        return self.network(x)


def test_hooks_of_the_teacher_itself_are_no_hindrance(tmp_path):
    cfg = config("DISTILLER.TYPE", "KD", "LOG.PREFIX", tmp_path)
    for teacher in (Wrapped(), with_fixed_size(TinyNet(), (12, 12))):
        assert start(Preferred(TinyNet(), teacher, cfg, info()), tmp_path) is not None


@pytest.mark.parametrize("method", ["KD", "PKT"])
def test_a_teacher_of_one_size_is_cached(tmp_path, method):
    """It resizes its images in a hook."""
    cfg = config("DISTILLER.TYPE", method, "LOG.PREFIX", tmp_path)
    teacher = get_model("cifar", "deit_micro_p8", 4)
    distiller = construct(find_method(method), TinyNet(), teacher, cfg, info()).train()
    loader = make_loader()
    batch = loader.batch(*next(loader.inputs(1)))
    live = distiller.training_step(batch)[1]["loss_kd"]

    cache = start(distiller, tmp_path, loader)
    cache.prepare(1, quiet)
    cache.expect(batch)
    teacher.forward = None
    cached = distiller.training_step(batch)[1]["loss_kd"]
    torch.testing.assert_close(cached, live)


# Several teachers and views.


def several_teachers(cls=Preferred, number=3):
    torch.manual_seed(0)
    teachers = torch.nn.ModuleList(TinyNet(channels=4 * i) for i in range(1, number + 1))
    cfg = config("DISTILLER.TYPE", "KD")
    return cls(TinyNet(), teachers, cfg, info())


def test_each_of_several_teachers_has_a_memo(tmp_path):
    loader = make_loader(128, batch_size=128)
    lines = []
    distiller = several_teachers()
    cache = start(distiller, tmp_path, loader, lines=lines)
    assert len(lines) == len(cache.memos) == len(cache.stand_ins) == 3
    assert len({memo.store.folder for memo in cache.memos}) == 3
    assert sorted(distiller.cached_teachers) == [0, 1, 2]
    for teacher in distiller.teachers():
        counting(teacher)
    cached = train(distiller, loader, cache)
    assert [teacher.calls for teacher in distiller.teachers()] == [2, 2, 2]
    live = train(several_teachers(), loader, None)
    assert all(torch.equal(*pair) for pair in zip(cached, live, strict=True))


def test_several_teachers_that_the_method_runs_itself(tmp_path):
    lines = []
    distiller = several_teachers(lambda student, teacher, *_: OwnStep(student, teacher))
    assert start(distiller, tmp_path, lines=lines) is None
    assert "the method runs several teachers itself" in lines[0]


def test_each_view_has_a_memo(tmp_path):
    results = []
    for enabled in (True, False):
        loader = make_loader(128, batch_size=128, views=TwoViews.views, strong=Roll())
        distiller = make_distiller(TwoViews)
        teacher = counting(distiller.teachers()[0])
        cache = start(distiller, tmp_path, loader, "TEACHER_MEMO.ENABLED", enabled)
        if enabled:
            assert [memo.view for memo in cache.memos] == ["weak", "strong"]
            assert len(cache.stand_ins) == 1
        before = teacher.calls
        results.append(train(distiller, loader, cache, epochs=1))
        assert teacher.calls - before == 2
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_a_method_with_one_view_is_served_the_first_of_the_loader(tmp_path):
    loader = make_loader(views=("strong",), strong=Roll())
    for method in ("KD", ReadsLogits):
        cache = start(make_distiller(method), tmp_path, loader)
        assert [memo.view for memo in cache.memos] == ["strong"]


# The stand-in's place.


def test_the_stand_in_is_in_every_place_of_the_teacher(tmp_path):
    distiller = make_distiller(HoldsTheTeacherTwice)
    (teacher,) = distiller.teachers()
    cache = start(distiller, tmp_path)
    (stand_in,) = cache.stand_ins
    assert distiller.teacher is distiller.networks[1] is stand_in
    assert stand_in.teacher is teacher
    assert distiller.teachers() == (teacher,)


def test_the_preferred_style_keeps_its_teacher_attribute(tmp_path):
    distiller = make_distiller("KD")
    (teacher,) = distiller.teachers()
    (stand_in,) = start(distiller, tmp_path).stand_ins
    assert distiller.teacher is teacher
    assert distiller.cached_teachers == {0: stand_in}


@pytest.mark.parametrize("method", ["KD", ReadsLogits, HoldsTheTeacherTwice])
def test_the_trained_state_is_the_same_with_and_without_a_cache(tmp_path, method):
    """A checkpoint made with a cache is loaded by a run without one, and vice versa."""
    distiller = make_distiller(method)
    before = distiller.trained_state()
    start(distiller, tmp_path)
    after = distiller.trained_state()
    assert list(before) == list(after)
    assert not any("teacher" in name for name in after)


@pytest.mark.parametrize("method", ["KD", HoldsTheTeacherTwice])
def test_a_second_attach_replaces_the_first_and_detach_undoes_it(tmp_path, method):
    distiller = make_distiller(method)
    (teacher,) = distiller.teachers()
    names = [name for name, _ in distiller.named_modules(remove_duplicate=False)]
    first = start(distiller, tmp_path)
    second = start(distiller, tmp_path)
    assert first.stand_ins[0] not in list(distiller.modules())
    assert second.stand_ins[0].teacher is teacher
    assert distiller.cached_teachers[0] is second.stand_ins[0]

    detach(distiller)
    assert names == [name for name, _ in distiller.named_modules(remove_duplicate=False)]
    assert distiller.teacher is teacher
    assert distiller.cached_teachers == {}


def test_a_served_method_can_be_copied(tmp_path):
    distiller = make_distiller(ReadsLogits)
    start(distiller, tmp_path)
    again = copy.deepcopy(distiller)
    assert isinstance(again.teacher, StandIn)
    assert again.teacher.fc is not distiller.teacher.fc
