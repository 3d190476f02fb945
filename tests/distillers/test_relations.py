"""Methods that compare feature maps, and relations between the images of a batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edkd.distillers import construct, find_method
from edkd.distillers._features import feature_shapes
from edkd.distillers._math import matmul
from edkd.distillers._stages import after_stem, at_one_size, stage_pairs
from edkd.distillers.at import at_loss
from edkd.distillers.cc import cc_loss
from edkd.distillers.kdsvd import kdsvd_loss, right_singular_vectors
from edkd.distillers.nst import nst_loss, selectivity_distance
from edkd.distillers.pkt import neighbour_probabilities, pkt_loss
from edkd.distillers.rkd import relations, rkd_loss
from edkd.distillers.sp import sp_loss
from edkd.errors import UserError
from edkd.models import get_model
from tests.distillers.reference.at import at
from tests.distillers.reference.cc import cc
from tests.distillers.reference.kdsvd import kdsvd
from tests.distillers.reference.nst import nst
from tests.distillers.reference.rkd import rkd
from tests.golden.values import loss_cases
from tests.small import StagedNet, TinyNet, batch, config, info, make_distiller

STAGES = ("at", "nst", "kdsvd")
"""Losses of lists of feature maps; the others take one tensor of each network."""
NAMES = (*STAGES, "sp", "pkt", "rkd", "cc")
EVERY = pytest.mark.parametrize("name", NAMES)

SHAPES_STUDENT = [(3, 8, 4), (2, 4, 4), (5, 2, 3)]
SHAPES_TEACHER = [(6, 4, 4), (4, 8, 8), (3, 2, 3)]
"""(D,H,W) of each stage."""


def loss_of(name: str, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """A loss by its name, with the published weights within it."""
    if name == "at":
        return at_loss(student, teacher)
    if name == "nst":
        return nst_loss(student, teacher)
    if name == "kdsvd":
        return kdsvd_loss(student, teacher)
    if name == "rkd":
        return rkd_loss(student[0], teacher[0], distance_weight=25.0, angle_weight=50.0)
    functions = {"sp": sp_loss, "pkt": pkt_loss, "cc": cc_loss}
    return functions[name](student[0], teacher[0])


def draw(name: str, number: int = 5, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs of a loss, in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes_student: list[tuple[int, ...]] = [(7,)]
    shapes_teacher: list[tuple[int, ...]] = [(7 if name == "cc" else 11,)]
    if name in STAGES:
        shapes_student = list(SHAPES_STUDENT)
        shapes_teacher = list(SHAPES_TEACHER)
    if name == "sp":
        shapes_student = [(3, 4, 4)]
        shapes_teacher = [(6, 2, 2)]

    sets = (shapes_student, shapes_teacher)
    student, teacher = [
        [torch.randn(number, *shape, generator=generator).double() for shape in shapes]
        for shapes in sets
    ]
    return student, teacher


def gradients(name: str, student: list[Tensor], teacher: list[Tensor]) -> tuple[Tensor, Any]:
    """The loss and its gradients with respect to the student's inputs."""
    leaves = [tensor.clone().requires_grad_() for tensor in student]
    loss = loss_of(name, leaves, teacher)
    return loss, torch.autograd.grad(loss, leaves)


# Values.


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize(
    ("name", "cases"), [("at", 1), ("nst", 1), ("sp", 1), ("rkd", 2), ("pkt", 1)]
)
def test_golden(name, cases, dtype, tolerance):
    found = loss_cases(name)
    assert len(found) == cases
    for case in found:
        given = list(case.inputs.values())
        student, teacher = [
            [tensor.to(dtype) for tensor in (value if isinstance(value, list) else [value])]
            for value in given
        ]
        leaves = [tensor.requires_grad_() for tensor in student]
        loss = golden_loss(name, leaves, teacher, case.params)
        assert loss.item() == pytest.approx(case.value, rel=tolerance)

        found_gradients = torch.autograd.grad(loss, leaves)
        for gradient, expected in zip(found_gradients, case.grads, strict=True):
            assert (gradient - expected).norm() <= tolerance * expected.norm()


def golden_loss(name, student, teacher, parameters):
    if name == "rkd":
        weights = (parameters["distance_weight"], parameters["angle_weight"])
        return rkd_loss(student[0], teacher[0], *weights, parameters["squared"], parameters["eps"])
    return loss_of(name, student, teacher)


def lists(tensors):
    return [tensor.tolist() for tensor in tensors]


@pytest.mark.parametrize("power", [1, 2, 3])
def test_at_by_the_formula(power):
    student, teacher = draw("at")
    expected = at(lists(student), lists(teacher), power)
    assert at_loss(student, teacher, power).item() == pytest.approx(expected, rel=1e-9)


def test_nst_by_the_formula():
    student, teacher = draw("nst")
    expected = nst(lists(student), lists(teacher))
    assert nst_loss(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_both_forms_of_nst_agree():
    """Kernels of channels, or of positions: the one with the smaller matrices is computed."""
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(2, 3, 2, 2, generator=generator).double()
    many = torch.randn(2, 9, 2, 2, generator=generator).double()
    by_channels = selectivity_distance(few, few.flip(1) + 0.1)  # 3 channels, 4 positions
    assert nst([few.tolist()], [(few.flip(1) + 0.1).tolist()]) == pytest.approx(
        by_channels.mean().item(), rel=1e-9
    )
    by_positions = selectivity_distance(few, many)  # 9 channels, 4 positions
    assert nst([few.tolist()], [many.tolist()]) == pytest.approx(
        by_positions.mean().item(), rel=1e-9
    )


@pytest.mark.parametrize("squared", [False, True])
def test_rkd_by_the_formula(squared):
    student, teacher = draw("rkd")
    expected = rkd(student[0].tolist(), teacher[0].tolist(), 25.0, 50.0, squared)
    loss = rkd_loss(student[0], teacher[0], 25.0, 50.0, squared)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_cc_by_the_formula():
    student, teacher = draw("cc")
    expected = cc(student[0].tolist(), teacher[0].tolist())
    assert cc_loss(student[0], teacher[0]).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_kdsvd_by_the_formula(k):
    """7: more vectors than any map has."""
    student, teacher = draw("kdsvd")
    pooled = [at_one_size(s, t) for s, t in zip(student, teacher, strict=True)]
    of_student, of_teacher = [[pair[side].numpy() for pair in pooled] for side in (0, 1)]
    expected = kdsvd(of_student, of_teacher, k)
    assert kdsvd_loss(student, teacher, k).item() == pytest.approx(expected, rel=1e-9)


@EVERY
def test_gradcheck(name):
    student, teacher = draw(name, number=2 if name in STAGES else 3)
    leaves = [tensor.requires_grad_() for tensor in student]
    assert torch.autograd.gradcheck(lambda *maps: loss_of(name, list(maps), teacher), leaves)


@EVERY
def test_zero_where_student_and_teacher_agree(name):
    student, _ = draw(name)
    loss, found = gradients(name, student, student)
    assert abs(loss.item()) < 1e-12
    tolerance = 1e-7 if name == "pkt" else 1e-9  # its epsilon moves the minimum
    assert max(gradient.abs().max() for gradient in found) < tolerance


@EVERY
def test_the_order_of_the_images(name):
    """Only CC depends on it, as it compares neighbours; it may be reversed."""
    student, teacher = draw(name)
    order = torch.tensor([2, 0, 4, 3, 1])
    loss = loss_of(name, student, teacher)
    permuted = loss_of(name, [f[order] for f in student], [f[order] for f in teacher])
    reversed_ = loss_of(name, [f.flip(0) for f in student], [f.flip(0) for f in teacher])
    torch.testing.assert_close(reversed_, loss)
    assert torch.isclose(permuted, loss, rtol=1e-9).item() == (name != "cc")


@pytest.mark.parametrize("name", ["at", "nst", "kdsvd", "sp", "pkt", "rkd"])
def test_the_scale_of_features_does_not_matter(name):
    student, teacher = draw(name)
    scaled = loss_of(name, [3 * f for f in student], [0.2 * f for f in teacher])
    torch.testing.assert_close(scaled, loss_of(name, student, teacher), rtol=1e-5, atol=1e-9)


# Numbers that are large, small, equal or in half precision.


def unusual(kind: str, tensor: Tensor) -> Tensor:
    """An input of a loss that is unlike those of a network in training."""
    if kind == "large":
        return 1e4 * tensor.sign()
    if kind == "small":
        return 1e-4 * tensor
    if kind == "constant":
        return torch.ones_like(tensor)
    if kind == "equal images":
        return tensor[:1].expand_as(tensor)
    if kind == "a dead image":
        return tensor.clone().index_fill(0, torch.tensor([1]), 0.0)
    return torch.zeros_like(tensor)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "kind", ["large", "small", "constant", "equal images", "a dead image", "zero"]
)
def test_finite(name, kind, dtype):
    student, teacher = draw(name)
    strange_student, strange_teacher = [
        [unusual(kind, tensor).to(dtype) for tensor in side] for side in (student, teacher)
    ]
    usual = [tensor.to(dtype) for tensor in teacher]
    for other in (usual, strange_teacher):
        loss, found = gradients(name, strange_student, other)
        assert loss.isfinite()
        assert loss.dtype == torch.float32
        assert all(gradient.isfinite().all() for gradient in found)


@EVERY
def test_a_batch_of_one(name):
    student, teacher = draw(name, number=1)
    loss, found = gradients(name, student, teacher)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in found)
    if name in ("sp", "pkt", "rkd", "cc"):
        assert abs(loss.item()) < 1e-12  # there is no other image


@EVERY
def test_half_precision_is_left_within_autocast(name):
    """There, a product of matrices is computed in bfloat16, with three digits."""
    student, teacher = [[tensor.float() for tensor in side] for side in draw(name)]
    leaves = [tensor.requires_grad_() for tensor in student]
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(name, leaves, teacher)
    expected = loss_of(name, leaves, teacher)
    torch.testing.assert_close(loss, expected)

    inside, outside = [torch.autograd.grad(each, leaves) for each in (loss, expected)]
    torch.testing.assert_close(inside, outside)
    with torch.autocast("cpu", torch.bfloat16):
        assert matmul(torch.ones(2, 2).bfloat16(), torch.ones(2, 2)).dtype == torch.float32


def test_images_at_one_place_have_no_direction():
    """A direction from 1e-12 would make a gradient of 1e12."""
    feature = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert not relations(feature).angles[0, 1].any()
    (gradient,) = torch.autograd.grad(rkd_loss(feature, teacher, 25.0, 50.0), feature)
    assert 0 < gradient.abs().max() < 100


def test_a_dead_image_is_similar_to_none():
    probabilities = neighbour_probabilities(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]))
    torch.testing.assert_close(probabilities[0], torch.full((3,), 1 / 3))


def test_equal_singular_values():
    """The gradient of torch.linalg.svd is not a number here."""
    identity = torch.eye(4).expand(2, 3, 4, 4).clone().requires_grad_()
    values, vectors = right_singular_vectors(identity, 2)
    torch.testing.assert_close(values, torch.full((2, 2), 3**0.5))
    (gradient,) = torch.autograd.grad(vectors.square().sum() + vectors.sum(), identity)
    assert gradient.isfinite().all()

    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(2, 3, 5, 4, generator=generator).double()
    gram = torch.diag_embed(right_singular_vectors(feature, 4).values.square())
    v = right_singular_vectors(feature, 4).vectors
    rows = (feature / feature.abs().amax((1, 2, 3), keepdim=True)).flatten(1, 2)
    torch.testing.assert_close(v @ gram @ v.mT, rows.mT @ rows)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_show_in_the_loss(value):
    """Not as an error of the decomposition: the engine reports the loss."""
    student, teacher = draw("kdsvd")
    student[0][0, 0, 0, 0] = value
    assert not kdsvd_loss(student, teacher).isfinite()


# Which maps are compared.


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ([32, 16, 8], [32, 16, 8], [(0, 0), (1, 1), (2, 2)]),
        ([16, 8, 4, 4], [32, 16, 8, 4], [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ([16, 8, 4], [32, 16, 8, 4], [(0, 1), (1, 2), (2, 3)]),
        ([32, 16, 8], [16, 8, 4, 4], [(0, 0), (1, 1), (2, 3)]),
        ([32, 16, 8, 4], [16, 8], [(1, 0), (2, 1)]),
        ([8], [16, 8, 8], [(0, 2)]),
        ([], [8], []),
    ],
)
def test_pairs_of_maps(student, teacher, expected):
    shapes_student, shapes_teacher = [
        [(1, 4, size, size) for size in sizes] for sizes in (student, teacher)
    ]
    assert stage_pairs(shapes_student, shapes_teacher) == expected


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ("MobileNetV2", "vgg13", [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ("ShuffleV1", "ResNet50", [(0, 1), (1, 2), (2, 3)]),
        ("vgg8", "resnet20", [(0, 0), (1, 1), (3, 2)]),
    ],
)
def test_pairs_of_maps_of_architectures(student, teacher, expected):
    shapes_student, shapes_teacher = [
        after_stem(feature_shapes(get_model("cifar", name, 100), (3, 32, 32)).feats)
        for name in (student, teacher)
    ]
    assert stage_pairs(shapes_student, shapes_teacher) == expected


def test_maps_of_any_two_sizes_are_compared_at_the_smaller_one():
    student, teacher = at_one_size(torch.ones(1, 2, 7, 8), torch.ones(1, 3, 5, 12).half())
    assert student.shape == (1, 2, 5, 8)
    assert teacher.shape == (1, 3, 5, 8)
    assert teacher.dtype == torch.float32


def made(name: str, student: nn.Module, teacher: nn.Module):
    return construct(find_method(name), student, teacher, config("DISTILLER.TYPE", name), info())


class WithoutMaps(TinyNet):
    def forward(self, x):
        logits, features = super().forward(x)
        return logits, features | {"feats": []}


class TwoStages(StagedNet):
    def forward(self, x):
        logits, features = super().forward(x)
        return logits, features | {"feats": features["feats"][:3]}


@pytest.mark.parametrize("name", ["AT", "NST", "KDSVD"])
def test_networks_without_maps_are_refused(name):
    with pytest.raises(
        UserError, match=f"{name} compares feature maps, of which the student has 0"
    ):
        made(name, WithoutMaps(), TinyNet())
    with pytest.raises(UserError, match="and the teacher 0"):
        made(name, StagedNet(), WithoutMaps())


def test_kdsvd_needs_two_stages():
    with pytest.raises(UserError, match="KDSVD relates the feature maps of successive stages"):
        made("KDSVD", TinyNet(), StagedNet())
    made("AT", TinyNet(), StagedNet())


@pytest.mark.parametrize("name", ["AT", "SP", "NST", "PKT", "RKD", "CC", "KDSVD"])
def test_networks_of_different_depths(name):
    distiller = made(name, TwoStages(), StagedNet(channels=10)).train()
    _, losses = distiller.training_step(batch())
    losses["loss_kd"].backward()
    gradient = distiller.student.convs[0].weight.grad
    assert gradient.isfinite().all()
    assert gradient.any()


# What the engine knows of them.


@pytest.mark.parametrize(
    ("name", "reads", "gathers"),
    [
        ("AT", "feats", False),
        ("NST", "feats", False),
        ("KDSVD", "feats", False),
        ("SP", "feats", True),
        ("PKT", "pooled_feat", True),
        ("RKD", "pooled_feat", True),
        ("CC", "pooled_feat", True),
    ],
)
def test_what_is_read(name, reads, gathers):
    distiller = make_distiller(name)
    assert distiller.teacher_needs == distiller.student_needs == (reads,)
    assert distiller.gathers_batch == gathers

    # Nothing else is: a batch in halves has the same mean loss, unless it gathers the batch.
    about = batch(8)
    outputs = [distiller.student.eval()(about.image), distiller.teacher(about.image)]
    only = [(None, {reads: features[reads]}) for _, features in outputs]
    whole = distiller.losses(*[output_of(pair, slice(None)) for pair in only], about)["loss_kd"]
    halves = [
        distiller.losses(*[output_of(pair, rows) for pair in only], about)["loss_kd"]
        for rows in (slice(4), slice(4, 8))
    ]
    assert torch.isclose(sum(halves) / 2, whole, rtol=1e-4).item() == (not gathers)


def output_of(pair, rows):
    from edkd.types import Output

    logits, features = pair
    cut = {
        name: [each[rows] for each in value] if isinstance(value, list) else value[rows]
        for name, value in features.items()
    }
    return Output(logits, cut)


def test_the_embeddings_of_cc_learn():
    distiller = make_distiller("CC").train()
    _, losses = distiller.training_step(batch())
    losses["loss_kd"].backward()
    for embedding in (distiller.embed_student, distiller.embed_teacher):
        assert embedding.weight.grad.any()
    assert distiller.get_extra_parameters() == (6 + 1) * 128 + (12 + 1) * 128
