"""The stand-in: cached logits for the images of the batch, the real teacher for everything else."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from edkd.engine.memo.stand_in import StandIn
from edkd.types import Batch, Output, View
from tests.engine.memo.parts import counting, make_teacher
from tests.small import TinyNet, batch


@pytest.fixture
def teacher():
    return make_teacher()


@pytest.fixture
def stand_in(teacher):
    """With a table of 40 rows of cached logits, all different."""
    return StandIn(teacher, {"weak": {"logits": torch.arange(160.0).view(40, 4)}})


@pytest.fixture
def expected(stand_in):
    """A batch of 8 images, announced."""
    made = batch()
    stand_in.expect(made)
    return made


def test_the_images_of_the_batch_get_cached_logits(stand_in, teacher, expected):
    logits, _ = stand_in(expected.image)
    assert torch.equal(logits, torch.arange(32.0).view(8, 4))
    assert isinstance(stand_in(expected.image), Output)
    assert not logits.requires_grad
    assert teacher.calls == 0


def test_features_run_the_teacher_once_however_many_are_read(stand_in, teacher, expected):
    _, features = stand_in(expected.image)
    assert teacher.calls == 0
    pooled = features["pooled_feat"]
    assert len(features["feats"]) == 2
    assert set(features) == {"feats", "preact_feats", "pooled_feat"}
    assert len(features) == 3
    assert teacher.calls == 1
    assert torch.equal(pooled, teacher(expected.image)[1]["pooled_feat"])
    assert not pooled.requires_grad


def test_each_forward_pass_has_features_of_its_own(stand_in, teacher, expected):
    for _ in range(2):
        _, features = stand_in(expected.image)
        assert features["pooled_feat"] is features["pooled_feat"]
    assert teacher.calls == 2


def assert_live(stand_in, teacher, image):
    """The teacher itself runs for an image."""
    calls = teacher.calls
    logits, features = stand_in(image)
    assert teacher.calls == calls + 1
    assert torch.equal(logits, teacher(image)[0])
    assert isinstance(features, dict)


def test_other_images_run_the_teacher(stand_in, teacher, expected):
    assert_live(stand_in, teacher, expected.image.flip(3))
    assert_live(stand_in, teacher, expected.image.clone())
    assert_live(stand_in, teacher, expected.image[:4])


def test_an_image_that_was_changed_in_place_runs_the_teacher(stand_in, teacher, expected):
    expected.image[:, :, :2] = 0
    assert_live(stand_in, teacher, expected.image)
    stand_in.expect(expected)
    assert stand_in(expected.image)[0][0, 1] == 1


def test_an_image_whose_gradient_is_wanted_runs_the_teacher(stand_in, teacher, expected):
    expected.image.requires_grad_()
    logits, _ = stand_in(expected.image)
    (gradient,) = torch.autograd.grad(logits.sum(), expected.image)
    assert gradient.abs().sum() > 0
    assert teacher.calls == 1


def test_the_images_of_the_batch_before_run_the_teacher(stand_in, teacher, expected):
    stand_in.expect(batch(seed=2))
    assert_live(stand_in, teacher, expected.image)


def test_before_the_first_batch_the_teacher_runs(stand_in, teacher):
    assert_live(stand_in, teacher, batch().image)


def test_named_arguments_run_the_teacher(stand_in, teacher, expected):
    logits, _ = stand_in(x=expected.image)
    assert teacher.calls == 1
    assert torch.equal(logits, teacher(expected.image)[0])


def test_each_view_has_its_table():
    teacher = make_teacher()
    weak = {"logits": torch.zeros(40, 4)}
    tables = {"weak": weak, "strong": {"logits": torch.ones(40, 4)}}
    stand_in = StandIn(teacher, tables)
    weak, strong = batch(seed=1).image, batch(seed=2).image
    views = {"weak": View(weak, None), "strong": View(strong, None)}
    stand_in.expect(Batch(weak, torch.zeros(8, dtype=torch.long), torch.arange(8), views=views))
    assert stand_in(weak).logits.eq(0).all()
    assert stand_in(strong).logits.eq(1).all()
    assert teacher.calls == 0
    assert_live(stand_in, teacher, weak + strong)


def test_other_attributes_are_the_teachers(stand_in, teacher):
    assert stand_in.fc is teacher.fc
    assert stand_in.calls == teacher.calls
    with pytest.raises(AttributeError, match="no_such_attribute"):
        stand_in.no_such_attribute  # noqa: B018


def test_a_lookup_reads_nothing_from_the_device():
    """Fake tensors hold no values: to read one raises an error."""
    with FakeTensorMode():
        teacher = counting(TinyNet().eval())
        stand_in = StandIn(teacher, {"weak": {"logits": torch.zeros(40, 4)}})
        index = torch.randint(40, (8,))
        made = Batch(torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.long), index)
        stand_in.expect(made)
        assert stand_in(made.image).logits.shape == (8, 4)
        assert teacher.calls == 0
        with pytest.raises(Exception, match="aten._local_scalar_dense"):
            index[0].item()


def test_a_compiler_can_trace_a_lookup(stand_in, teacher, expected):
    def look_up(image, index):
        stand_in.expect(Batch(image, expected.target, index))
        return stand_in(image).logits * 2

    compiled = torch.compile(look_up, backend="eager", fullgraph=True)
    logits = compiled(expected.image, expected.index)
    assert torch.equal(logits, 2 * torch.arange(32.0).view(8, 4))
    assert teacher.calls == 0
