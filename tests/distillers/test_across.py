"""OFAKD and DEIT, and pairs of a convolutional network and a transformer."""

import pytest
import torch
import torchvision
from torch import nn

from edkd.distillers import construct, find_method
from edkd.distillers._stage_heads import PatchMerging, TokenHead, map_head
from edkd.distillers.deit import deit_loss
from edkd.distillers.ofakd import ofakd_loss
from edkd.engine.config.load import load_config
from edkd.errors import UserError
from edkd.models import as_network, get_model
from edkd.types import Batch, DataInfo
from tests.distillers.reference import ofakd as reference
from tests.short_forms import slow_but
from tests.small import StagedNet, TokenNet, batch, config, info, make_distiller

LOSSES = {
    "ofakd": lambda s, t, y, **more: ofakd_loss(s, t, y, 1.5, 2.0, **more),
    "ofakd_plain": lambda s, t, y, **more: ofakd_loss(s, t, y, **more),
    "deit_hard": lambda s, t, y, **more: deit_loss(s, t, **more),
    "deit_soft": lambda s, t, y, **more: deit_loss(s, t, "soft", 3.0, **more),
}
REFERENCES = {
    "ofakd": lambda s, t, y: reference.ofakd(s, t, y, 1.5, 2.0),
    "ofakd_plain": lambda s, t, y: reference.ofakd(s, t, y, 1.0, 1.0),
    "deit_hard": lambda s, t, y: reference.deit_hard(s, t),
    "deit_soft": lambda s, t, y: reference.deit_soft(s, t, 3.0),
}
EVERY = pytest.mark.parametrize("name", LOSSES)


def case(number=7, classes=5, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    student = scale * torch.randn(number, classes, generator=generator, dtype=torch.float64)
    teacher = scale * torch.randn(number, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (number,), generator=generator)
    return student.to(dtype).requires_grad_(), teacher.to(dtype), target


# The losses.


@EVERY
def test_the_equation(name):
    student, teacher, target = case()
    expected = REFERENCES[name](student.tolist(), teacher.tolist(), target.tolist())
    assert LOSSES[name](student, teacher, target).item() == pytest.approx(expected, abs=1e-9)


@EVERY
def test_gradients(name):
    student, teacher, target = case(3, 4)
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, teacher, target), student)


@EVERY
def test_a_loss_for_each_image_and_no_order(name):
    student, teacher, target = case()
    loss = LOSSES[name](student, teacher, target)
    each = LOSSES[name](student, teacher, target, reduction="none")
    torch.testing.assert_close(each.mean(), loss)
    order = torch.randperm(len(target))
    shuffled = LOSSES[name](student[order], teacher[order], target[order])
    torch.testing.assert_close(shuffled, loss)


@EVERY
@pytest.mark.parametrize(
    ("number", "classes", "scale", "dtype"),
    [
        (8, 10, 1e4, torch.float32),
        (1, 2, 1e4, torch.float32),
        (4, 5, 0.0, torch.float32),
        (4, 5, 100.0, torch.float16),
        (4, 5, 100.0, torch.bfloat16),
    ],
)
def test_extreme_values(name, number, classes, scale, dtype):
    student, teacher, target = case(number, classes, scale, dtype)
    loss = LOSSES[name](student, teacher, target)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_equal_predictions():
    student, _, target = case()
    assert deit_loss(student, student.detach(), "soft", 3.0).item() == 0
    assert ofakd_loss(student, student.detach(), target).item() > 0


def test_soft_targets_count_by_their_largest_class():
    student, teacher, target = case()
    soft = 0.8 * nn.functional.one_hot(target, 5) + 0.04
    assert ofakd_loss(student, teacher, soft, 1.5) == ofakd_loss(student, teacher, target, 1.5)


def test_a_form_that_is_not_there():
    with pytest.raises(UserError, match="form is 'sotf'.*did you mean 'soft'"):
        deit_loss(torch.zeros(1, 2), torch.zeros(1, 2), "sotf")


# OFAKD.


def test_a_head_of_maps_halves_the_resolution_for_each_later_stage():
    head = map_head(2, channels=8, width=20, num_classes=5)
    convolutions = [each for each in head.modules() if isinstance(each, nn.Conv2d)]
    assert [each.stride for each in convolutions].count((2, 2)) == 2
    assert convolutions[-1].out_channels == 20
    assert head(torch.randn(2, 8, 16, 16)).shape == (2, 5)
    assert isinstance(map_head(4, 8, 20, 5)[0], nn.Conv2d)


def test_patches_are_merged_by_four_and_odd_sides_are_padded():
    merge = PatchMerging(2, 6, ends_in_gelu=False)
    patches = torch.randn(1, 4, 6, 2)
    merged = merge(patches)
    first = patches[:, :2, :2].transpose(1, 2).reshape(1, 8)
    torch.testing.assert_close(merged[:, 0, 0], merge.reduce(merge.norm(first)))
    assert merged.shape == (1, 2, 3, 6)
    assert merge(torch.randn(1, 5, 3, 2)).shape == (1, 3, 2, 6)


@pytest.mark.parametrize(
    ("stage", "grid", "merges", "blocks"),
    [(1, (56, 56), 3, 3), (3, (14, 14), 1, 1), (4, (7, 7), 0, 1)],
)
def test_a_head_of_tokens_is_the_published_one(stage, grid, merges, blocks):
    head = TokenHead(stage, 8, grid, 12, 5)
    assert (len(head.merges), len(head.blocks)) == (merges, blocks)
    tokens = torch.randn(2, 1 + grid[0] * grid[1], 8)
    assert head(tokens).shape == head(tokens[:, 1:]).shape == (2, 5)


def test_a_head_of_tokens_classifies_the_first_token():
    head = TokenHead(4, 8, (2, 2), 8, 5)
    head.blocks = nn.Identity()
    tokens = torch.randn(3, 6, 8)
    torch.testing.assert_close(head(tokens), head.classifier(tokens[:, 0]))
    torch.testing.assert_close(head(tokens[:, 2:]), head.classifier(tokens[:, 2:].mean(1)))


def test_stages_and_exponents_of_ofakd():
    distiller = make_distiller("OFAKD", "OFAKD.STAGES", "[2,4]", "OFAKD.EPS", "[1,1.2,1.5]")
    assert distiller.exponents == [1, 1.2, 1.5]
    assert len(distiller.stage_heads) == 2
    assert distiller.get_extra_parameters() > 0
    with pytest.raises(
        UserError, match="EPS has 2 numbers, but OFAKD.STAGES has 4; give one numbe"
    ):
        make_distiller("OFAKD", "OFAKD.EPS", "[1,1.5]")

    two = torchvision.ops.Conv2dNormActivation(3, 6, 3), nn.Conv2d(6, 8, 3, 2, 1)
    student = as_network(
        nn.Sequential(*two, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    )
    cfg = config("DISTILLER.TYPE", "OFAKD")
    with pytest.raises(
        UserError, match=r"STAGES is \[1, 2, 3, 4\].* are \[3, 4\].*STAGES \[3,4\]$"
    ):
        construct(find_method("OFAKD"), student, StagedNet(), cfg, info())


# DEIT.


def test_deit_trains_both_heads_and_predicts_with_their_mean():
    distiller = make_distiller("DEIT", "DEIT.ALPHA", 0.3).train()
    about = batch()
    logits, losses = distiller.training_step(about)
    student, pooled = distiller.student, distiller.student(about.image)[1]["pooled_feat"]
    torch.testing.assert_close(logits, student.fc(pooled))

    teacher = distiller.teacher(about.image)[0]
    expected = 0.7 * nn.functional.cross_entropy(logits, about.target)
    torch.testing.assert_close(losses["loss_ce"], expected)
    expected = 0.3 * nn.functional.cross_entropy(student.fc_dist(pooled), teacher.argmax(1))
    torch.testing.assert_close(losses["loss_kd"], expected)

    distiller.eval()
    pooled = student(about.image)[1]["pooled_feat"]
    mean = (student.fc(pooled) + student.fc_dist(pooled)) / 2
    torch.testing.assert_close(distiller.forward_test(about.image), mean)


def test_deit_where_only_the_heads_learn():
    """The student is then in eval mode, in which such networks return one output."""
    distiller = make_distiller("DEIT", "SOLVER.TRAIN_ONLY", "head").train()
    assert not distiller.student.bn.training
    _, losses = distiller.training_step(batch())
    sum(losses.values()).backward()
    learned = {name for name, each in distiller.student.named_parameters() if each.grad is not None}
    assert learned == {"fc.weight", "fc.bias", "fc_dist.weight", "fc_dist.bias"}


def test_deit_in_a_combination():
    distiller = construct(
        find_method("KD+DEIT"),
        TokenNet(),
        TokenNet(channels=12),
        config("DISTILLER.TYPE", "KD+DEIT"),
        info(),
    ).train()
    _, losses = distiller.training_step(batch())
    assert losses.keys() == {"loss_ce", "loss_kd_KD", "loss_kd_DEIT"}


def test_a_student_without_a_distillation_token():
    with pytest.raises(
        UserError, match="which StagedNet does not have; set DISTILLER.STUDENT to ti"
    ):
        construct(
            find_method("DEIT"), StagedNet(), StagedNet(), config("DISTILLER.TYPE", "DEIT"), info()
        )


# Across architectures.

TRANSFORMER = dict(img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=3, num_classes=10)


def transformer(is_distilled=True):
    pytest.importorskip("timm")
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    kind = VisionTransformerDistilled if is_distilled else VisionTransformer
    return as_network(kind(**TRANSFORMER))


def swin():
    return as_network(
        torchvision.models.SwinTransformer([4, 4], 12, [2, 2], [2, 2], [4, 4], num_classes=10)
    )


def resnet():
    return get_model("cifar", "resnet8", 10)


PAIRS = [
    *[(method, transformer, resnet) for method in ("KD", "DKD", "OFAKD", "DEIT")],
    *[(method, resnet, transformer) for method in ("KD", "DKD", "OFAKD")],
    ("OFAKD", lambda: transformer(False), resnet),
    ("KD+OFAKD", transformer, swin),
]


@pytest.mark.parametrize(("method", "make_student", "make_teacher"), PAIRS)
@pytest.mark.parametrize("amp", slow_but([torch.bfloat16], [torch.float32, torch.bfloat16]))
def test_three_steps_of_a_pair(method, make_student, make_teacher, amp):
    words = [
        "DATASET.TYPE",
        "digits",
        "DISTILLER.STUDENT",
        "resnet8",
        "DISTILLER.TEACHER",
        "resnet8",
    ]
    cfg = load_config(opts=[*words, "DISTILLER.TYPE", method])
    torch.manual_seed(0)
    student, teacher = make_student(), make_teacher()
    data = DataInfo(10, 100, None, (3, 32, 32))
    distiller = construct(find_method(method), student, teacher, cfg, data).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.01)

    for step in range(3):
        images = Batch(torch.randn(4, 3, 32, 32), torch.arange(4) + step, torch.arange(4), 1)
        with torch.autocast("cpu", amp, enabled=amp != torch.float32):
            logits, losses = distiller.training_step(images)
        assert logits.shape == (4, 10)
        assert all(loss.isfinite() for loss in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    without = [n for n, each in distiller.named_parameters() if each.grad is None]
    assert all(name.startswith("teacher.") for name in without), without
    assert not teacher.training
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    distiller.eval()
    assert distiller.forward_test(torch.randn(2, 3, 32, 32)).shape == (2, 10)
