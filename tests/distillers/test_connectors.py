"""FitNet, VID, OFD and ReviewKD: their losses, and connectors between networks of any shapes."""

import functools
import math

import pytest
import torch
from torch import nn

from edkd.distillers import construct, find_method
from edkd.distillers.fitnet import fitnet_loss
from edkd.distillers.ofd import margins_of, ofd_loss
from edkd.distillers.reviewkd import hcl_loss
from edkd.distillers.vid import inverse_softplus, vid_loss
from edkd.errors import UserError
from edkd.models import as_network, get_model
from edkd.types import Batch, DataInfo
from tests.distillers.reference import connectors as reference
from tests.golden.values import loss_cases
from tests.small import StagedNet, batch, config, info, make_distiller, make_trainer

METHODS = ("FITNET", "VID", "OFD", "REVIEWKD")
EVERY = pytest.mark.parametrize("name", METHODS)
EPS = 1e-5


def by_name(name, student, teacher, channel):
    """A loss of two maps (N,D,H,W); `channel` (D,) makes the variances or the margins."""
    if name == "FITNET":
        return fitnet_loss(student, teacher)
    if name == "VID":
        return vid_loss(student, teacher, channel, EPS)
    if name == "OFD":
        return ofd_loss(student, teacher, -channel.abs())
    return hcl_loss([student, student[:, :, :1, :1]], [teacher, teacher[:, :, :1, :1]])


def transcribed(name, student, teacher, channel):
    if name == "FITNET":
        return reference.fitnet(student.tolist(), teacher.tolist())
    if name == "VID":
        return reference.vid(student.tolist(), teacher.tolist(), channel.tolist(), EPS)
    if name == "OFD":
        return reference.ofd(student.tolist(), teacher.tolist(), (-channel.abs()).tolist())
    pairs = [(x.tolist(), x[:, :, :1, :1].tolist()) for x in (student, teacher)]
    return reference.hcl(*pairs)


def maps(number=3, height=5, width=6, seed=0):
    """Maps of student and teacher, and a number for each channel, in float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (number, 4, height, width)
    student = torch.randn(shape, generator=generator, dtype=torch.float64)
    teacher = torch.randn(shape, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randn(4, generator=generator, dtype=torch.float64)


# The losses.


@EVERY
@pytest.mark.parametrize(("height", "width"), [(5, 6), (8, 8), (1, 1), (2, 9)])
def test_the_transcription_of_the_paper(name, height, width):
    about = maps(height=height, width=width)
    expected = transcribed(name, *about)
    assert by_name(name, *about).item() == pytest.approx(expected, rel=1e-9)
    in_float32 = by_name(name, *(each.float() for each in about))
    assert in_float32.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_golden_values_of_the_hierarchical_context_loss(dtype, tolerance):
    found = loss_cases("hcl")
    assert found
    for case in found:
        student = [x.to(dtype).requires_grad_() for x in case.inputs["features_student"]]
        teacher = [x.to(dtype) for x in case.inputs["features_teacher"]]
        loss = hcl_loss(student, teacher)
        gradients = torch.autograd.grad(loss, student)
        assert loss.item() == pytest.approx(case.value, rel=tolerance)
        for gradient, expected in zip(gradients, case.grads, strict=True):
            assert (gradient - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("weight", [1.0, -0.3, 2.5, 1e-3])
@pytest.mark.parametrize("bias", [0.0, 0.4, -0.4, 2.0, -2.0, 20.0, -20.0])
def test_margins(weight, bias):
    bn = nn.BatchNorm2d(1).double()
    nn.init.constant_(bn.weight, weight)
    nn.init.constant_(bn.bias, bias)
    assert margins_of(bn).item() == pytest.approx(reference.margin(weight, bias), rel=1e-9)


def test_the_margin_of_a_channel_without_deviation():
    """The published code divided by zero."""
    bn = nn.BatchNorm2d(3)
    nn.init.zeros_(bn.weight)
    bn.bias.data = torch.tensor([-2.0, 0.0, 2.0])
    assert margins_of(bn).tolist() == [-2.0, 0.0, 0.0]


def test_the_margin_is_the_mean_of_the_negative_values():
    bn = nn.BatchNorm2d(1)
    nn.init.constant_(bn.weight, 2.0)
    nn.init.constant_(bn.bias, 0.5)
    values = 0.5 + 2 * torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    assert margins_of(bn).item() == pytest.approx(values[values < 0].mean().item(), rel=0.01)


@pytest.mark.parametrize("value", [1e-4, 0.3, 5.0, 50.0])
def test_inverse_softplus(value):
    assert math.log1p(math.exp(inverse_softplus(value))) == pytest.approx(value, rel=1e-9)


@EVERY
def test_gradcheck(name):
    student, teacher, channel = maps(number=2, height=5, width=5)
    student.requires_grad_()
    channel.requires_grad_(name == "VID")
    assert torch.autograd.gradcheck(functools.partial(by_name, name), (student, teacher, channel))


@EVERY
def test_the_order_of_the_images_does_not_matter(name):
    student, teacher, channel = maps(number=5)
    order = torch.tensor([3, 0, 4, 1, 2])
    expected = by_name(name, student, teacher, channel)
    torch.testing.assert_close(by_name(name, student[order], teacher[order], channel), expected)


def test_losses_are_zero_where_the_student_has_what_it_should():
    _, teacher, channel = maps()
    assert fitnet_loss(teacher, teacher) == 0
    assert hcl_loss([teacher], [teacher]) == 0
    margin = -channel.abs()
    after_margin = torch.maximum(teacher, margin[:, None, None])
    assert ofd_loss(after_margin, teacher, margin) == 0


def test_the_best_variance_is_the_mean_squared_error():
    student, teacher, _ = maps()
    error = (student - teacher).square().mean((0, 2, 3))
    best = [inverse_softplus(value - EPS) for value in error.tolist()]
    log_scale = torch.tensor(best, dtype=torch.float64, requires_grad=True)
    vid_loss(student, teacher, log_scale, EPS).backward()
    assert log_scale.grad.abs().max() < 1e-9


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["large", "constant", "equal", "single"])
def test_losses_and_gradients_are_finite(name, dtype, kind):
    student, teacher, channel = maps(number=1 if kind == "single" else 3)
    if kind == "large":
        student, teacher = 1e4 * student.sign(), -1e4 * teacher.sign()
    if kind == "constant":
        student, teacher = torch.zeros_like(student), torch.full_like(teacher, -3)
    if kind == "equal":
        student = teacher.clone()

    student = student.to(dtype).requires_grad_()
    loss = by_name(name, student, teacher.to(dtype), channel.to(dtype))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad.isfinite().all()


# The connectors.


@functools.cache
def shipped(name, role):
    """A student or a teacher of this package; a teacher stays frozen."""
    torch.manual_seed(0)
    return get_model("cifar", name, 4)


def of_shape(name, student, teacher, *opts, shape=(3, 32, 32)):
    """A method between two networks for images of a shape."""
    data = DataInfo(4, 8, torch.arange(8) % 4, shape)
    cfg = config("DISTILLER.TYPE", name, *opts)
    return construct(find_method(name), student, teacher, cfg, data)


def one_step(distiller, shape=(3, 32, 32), number=2):
    """Check that everything that learns has a finite gradient."""
    image = torch.randn(number, *shape, generator=torch.Generator().manual_seed(0))
    about = Batch(image, torch.arange(number) % 4)
    _, losses = distiller.train().training_step(about)
    sum(losses.values()).backward()
    for parameter in distiller.get_learnable_parameters():
        assert parameter.grad.isfinite().all()
    for parameter in distiller.student.parameters():
        parameter.grad = None


@pytest.mark.parametrize(
    ("name", "teacher", "student"),
    [
        ("OFD", "vgg8", "MobileNetV2"),
        ("REVIEWKD", "vgg8", "MobileNetV2"),
        *[(name, "vgg8", "resnet8") for name in METHODS],
    ],
)
def test_networks_of_different_families(name, teacher, student):
    """Reported in megvii-research/mdistiller, issues 22, 23 and 68."""
    networks = (shipped(student, "student"), shipped(teacher, "teacher"))
    shape = (3, 16, 16)
    one_step(of_shape(name, *networks, shape=shape), shape)


@EVERY
@pytest.mark.parametrize("shape", [(3, 12, 20), (3, 20, 12), (3, 9, 9), (3, 8, 8)])
def test_images_of_any_size(name, shape):
    torch.manual_seed(0)
    distiller = of_shape(name, StagedNet(), StagedNet(channels=12), shape=shape)
    one_step(distiller, shape)


@EVERY
def test_mixed_precision(name, tmp_path):
    trainer = make_trainer(name, tmp_path, "SOLVER.AMP", "bf16")
    inputs = trainer.data.train.inputs(1)
    values = [trainer.train_step(1, *next(inputs))[0]["loss"].item() for _ in range(2)]
    assert all(map(math.isfinite, values))


@EVERY
def test_all_that_is_added_learns_is_saved_and_is_counted(name):
    distiller = make_distiller(name).train()
    own = [n for n, _ in distiller.named_parameters() if not n.startswith(("student.", "teacher."))]
    number = sum(distiller.get_parameter(each).numel() for each in own)
    assert distiller.get_extra_parameters() == number > 0
    assert set(own) <= distiller.trained_state().keys()

    before = {each: distiller.get_parameter(each).clone() for each in own}
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.1)
    _, losses = distiller.training_step(batch())
    sum(losses.values()).backward()
    optimizer.step()
    assert not any(torch.equal(distiller.get_parameter(each), before[each]) for each in own)


def test_saved_names():
    """Those of mdistiller, where it saves them."""
    names = {
        "FITNET": ["conv_reg.conv.weight", "conv_reg.bn.weight"],
        "VID": ["regressors.0.0.weight", "regressors.2.4.weight", "log_scales.2"],
        "OFD": ["connectors.2.0.weight", "margin0", "margin2"],
        "REVIEWKD": ["abfs.0.conv1.0.weight", "abfs.3.conv2.1.bias", "abfs.1.att_conv.0.weight"],
    }
    for name, some in names.items():
        assert set(some) <= make_distiller(name).trained_state().keys()
    assert "abfs.0.att_conv.0.weight" not in make_distiller("REVIEWKD").trained_state()


@pytest.mark.parametrize("name", ["KD+FITNET", "KD+VID", "DKD+OFD", "KD+REVIEWKD"])
def test_they_can_be_combined(name):
    distiller = make_distiller(name).train()
    _, losses = distiller.training_step(batch())
    assert len(losses) == 3


def test_a_batch_of_one_image(tmp_path):
    for name in ("FITNET", "VID", "OFD"):
        make_trainer(name, tmp_path).train_step.forward(batch(number=1))
    with pytest.raises(UserError, match="a batch has one image, which batch normalisation"):
        make_trainer("REVIEWKD", tmp_path).train_step.forward(batch(number=1))


# FitNet.


def test_the_stages_of_fitnet(tmp_path):
    """First the layers up to the hint and the regressor, then the student without the regressor."""
    opts = ["FITNET.HINT_EPOCHS", 1, "SOLVER.WEIGHT_DECAY", 0.1]
    trainer = make_trainer("FITNET", tmp_path, *opts, "FITNET.LOSS.KD_WEIGHT", 0.5)
    distiller = trainer.distiller

    changed = []
    for epoch in (1, 2):
        before = {n: p.clone() for n, p in distiller.named_parameters()}
        distiller.start_epoch(epoch)
        for inputs in trainer.data.train.inputs(epoch):
            losses, *_ = trainer.train_step(epoch, *inputs)
            hint_is_on = epoch == 1
            assert (losses["loss_kd"] > 0) == hint_is_on
            assert (losses["loss_ce"] == losses["loss_kd_logits"] == 0) == hint_is_on
        after = dict(distiller.named_parameters())
        changed.append({name for name in before if not torch.equal(after[name], before[name])})

    student = {f"student.{n}" for n, _ in distiller.student.named_parameters()}
    above = {n for n in student if n.startswith(("student.convs.3", "student.bns.3", "student.fc"))}
    regressor = {f"conv_reg.{n}" for n, _ in distiller.conv_reg.named_parameters()}
    assert len(above) == 6
    assert changed[0] == (student - above) | regressor
    assert changed[1] == student


def test_the_temperature_of_fitnet():
    weight = ["FITNET.LOSS.KD_WEIGHT", 1]
    values = []
    for temperature in (3, 1):
        distiller = make_distiller("FITNET", *weight, "FITNET.TEMPERATURE", temperature).train()
        values.append(distiller.training_step(batch())[1]["loss_kd_logits"].item())
    assert values[0] != values[1]


# VID.


def test_the_smallest_variance():
    """At the start of training it has no effect: the variance is INIT_PRED_VAR."""
    values = []
    for eps in (1e-5, 0.1):
        distiller = make_distiller("VID", "VID.EPS", eps).train()
        values.append(distiller.training_step(batch())[1]["loss_kd"].item())
        for log_scale in distiller.log_scales:
            nn.init.constant_(log_scale, -20)
        values.append(distiller.training_step(batch())[1]["loss_kd"].item())
    assert values[0] == pytest.approx(values[2], rel=1e-4)
    assert values[1] > 100 * values[3]


# ReviewKD.


def test_review_without_a_warm_up():
    """It divided by zero."""
    losses = {}
    for warmup in (0, 1, 4):
        distiller = make_distiller("REVIEWKD", "REVIEWKD.WARMUP_EPOCHS", warmup).train()
        losses[warmup] = distiller.training_step(batch())[1]["loss_kd"].item()
    assert losses[0] == losses[1] == pytest.approx(4 * losses[4])


PUBLISHED_SHAPES = [  # teacher, student, SHAPES, OUT_SHAPES, IN_CHANNELS, OUT_CHANNELS
    ("resnet8x4", "resnet8x4", [1, 8, 16, 32], 0, [64, 128, 256, 256], 0),
    ("vgg8", "vgg8", [1, 4, 4, 8, 16], 0, [128, 256, 512, 512, 512], 0),
    (
        *("vgg8", "MobileNetV2", [1, 2, 4, 8, 16], [1, 4, 4, 8, 16]),
        *([12, 16, 48, 160, 1280], [128, 256, 512, 512, 512]),
    ),
]
"""As the authors and mdistiller type them in, for these networks or deeper ones of their kind."""


@pytest.mark.parametrize(
    ("teacher", "student", "shapes", "out_shapes", "in_channels", "out_channels"), PUBLISHED_SHAPES
)
def test_published_shapes_are_those_that_are_found(
    teacher, student, shapes, out_shapes, in_channels, out_channels
):
    keys = dict(
        SHAPES=shapes,
        OUT_SHAPES=out_shapes or shapes,
        IN_CHANNELS=in_channels,
        OUT_CHANNELS=out_channels or in_channels,
    )
    opts = [word for key, value in keys.items() for word in (f"REVIEWKD.{key}", value)]
    networks = (shipped(student, "student"), shipped(teacher, "teacher"))
    distiller = of_shape("REVIEWKD", *networks, *opts)
    assert len(distiller.abfs) == len(shapes)


def test_the_largest_number_of_fused_channels():
    distiller = make_distiller("REVIEWKD", "REVIEWKD.MAX_MID_CHANNEL", 5)
    assert {fusion.conv1[0].out_channels for fusion in distiller.abfs} == {5}


# What cannot work.


class Plain(nn.Module):
    """As a network of another library: two stages, logits alone."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU()
        )
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


class OneMap(StagedNet):
    def forward(self, x):
        logits, features = super().forward(x)
        return logits, {name: value[:1] for name, value in features.items()}


class NoPreact(StagedNet):
    """As MobileNetV2: no ReLU ends its stages."""

    def forward(self, x):
        logits, features = super().forward(x)
        return logits, features | {"preact_feats": []}


def staged():
    return StagedNet(channels=12)


SHAPES = r"but the {} are {} for these networks; leave it out"


@pytest.mark.parametrize(
    ("name", "opts", "message"),
    [
        ("FITNET", ["FITNET.HINT_LAYER", 4], "HINT_LAYER is 4, but the student has 4 feature maps"),
        ("FITNET", ["FITNET.INPUT_SIZE", "(32, 32)"], r"SIZE is \(32, 32\), but .* are \(8, 8\)"),
        ("FITNET", ["FITNET.HINT_EPOCHS", 2], "HINT_EPOCHS is 2, which leaves none of"),
        ("FITNET", ["FITNET.HINT_EPOCHS", 1, "SOLVER.TRAIN_ONLY", "head"], "TRAIN_ONLY head fixes"),
        ("FITNET", ["DISTILLER.LSKD", True], "LSKD has no effect on FITNET without"),
        ("KD+FITNET", ["FITNET.HINT_EPOCHS", 1], "needs epochs without other losses"),
        ("VID", ["VID.INPUT_SIZE", "[32, 32]"], r"SIZE is \(32, 32\), but .* are \(8, 8\)"),
        ("VID", ["VID.EPS", 6], r"INIT_PRED_VAR is 5.0, but must be above VID.EPS, 6.0"),
        ("REVIEWKD", ["REVIEWKD.SHAPES", [1, 8]], r"SHAPES is \[1, 8\], but .* are \[1, 2, 4, 8\]"),
        ("REVIEWKD", ["REVIEWKD.OUT_SHAPES", [7]], r"\[7\], but the heights of the teacher's"),
        ("REVIEWKD", ["REVIEWKD.IN_CHANNELS", [64]], r"are \[6, 12, 24, 24\] for these"),
        ("REVIEWKD", ["REVIEWKD.OUT_CHANNELS", [64]], r"are \[12, 24, 48, 48\] for these"),
    ],
)
def test_configurations_that_cannot_work(name, opts, message):
    with pytest.raises(UserError, match=message) as caught:
        make_distiller(name, *opts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "opts", "student", "teacher", "message"),
    [
        ("OFD", [], staged, lambda: as_network(Plain()), "the teacher Plain has no get_bn_before"),
        ("OFD", [], staged, NoPreact, r"but its stages have \[\]; choose another teacher"),
        *[(name, [], OneMap, staged, "the student has 1 feature map") for name in METHODS],
        *[(name, [], staged, OneMap, "the teacher has 1 feature map") for name in METHODS],
        (
            *("REVIEWKD", ["REVIEWKD.STU_PREACT", True], NoPreact, staged),
            "STU_PREACT is True, but the student has no feature maps before a ReLU",
        ),
    ],
)
def test_networks_that_cannot_work(name, opts, student, teacher, message):
    with pytest.raises(UserError, match=message) as caught:
        of_shape(name, student(), teacher(), *opts)
    assert "\n" not in str(caught.value)


def test_the_batch_norms_of_a_teacher_must_be_those_of_its_stages():
    teacher = staged()
    teacher.get_bn_before_relu = lambda: [teacher.bns[3]]
    with pytest.raises(UserError, match=r"batch norms of \[48\] channels, but its stages have"):
        construct(find_method("OFD"), StagedNet(), teacher, config(), info())

    teacher = staged()
    teacher.bns[2] = nn.BatchNorm2d(24, affine=False)
    with pytest.raises(UserError, match="a batch norm of the teacher StagedNet has no weight"):
        construct(find_method("OFD"), StagedNet(), teacher, config(), info())


@pytest.mark.parametrize("name", ["FITNET", "VID", "REVIEWKD"])
def test_a_teacher_without_maps_before_a_relu(name):
    one_step(of_shape(name, StagedNet(), NoPreact(channels=12)))


@pytest.mark.parametrize("name", ["FITNET", "VID", "REVIEWKD"])
def test_a_teacher_of_another_library(name):
    one_step(of_shape(name, StagedNet(), as_network(Plain()), *hint_layer(name)))


@EVERY
def test_a_student_of_another_library(name):
    one_step(of_shape(name, as_network(Plain()), staged(), *hint_layer(name)))


def hint_layer(name):
    return ["FITNET.HINT_LAYER", 1] if name == "FITNET" else []
