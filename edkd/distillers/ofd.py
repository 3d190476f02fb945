"""A comprehensive overhaul of feature distillation.

B. Heo, J. Kim, S. Yun, H. Park, N. Kwak, J. Y. Choi, "A Comprehensive Overhaul of Feature
Distillation", ICCV 2019, arXiv:1904.01866.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers._base import Distiller
from edkd.distillers._math import at_least_float32
from edkd.distillers._stages import check_stages, last_of_each, maps_before_relu, pooled_to
from edkd.errors import UserError
from edkd.keys import Key
from edkd.registry import METHODS
from edkd.types import Batch, Output

SMALLEST_SHARE = 1e-3
"""Of negative values in a channel; below it the margin is a bound and not a mean."""


def ofd_loss(feature_student: Tensor, feature_teacher: Tensor, margin: Tensor) -> Tensor:
    """mean_n sum_chw d(s, max(t, m)), the partial L2 distance after the margin ReLU (equation 3).

    d(s, t) is 0 where s <= t <= 0, and (s - t)^2 elsewhere: where the teacher is negative and the
    student below it, both are 0 after a ReLU.

    Args:
        feature_student: s (N,D,H,W), before a ReLU; computed in float32 or better.
        feature_teacher: t (N,D,H,W), before a ReLU.
        margin: m (D,), < 0; see `margins_of`.

    Returns:
        A scalar >= 0; 0 where the student equals the teacher after the margin ReLU.

    Example:
        >>> teacher = torch.full((2, 3, 4, 4), -1.0)
        >>> margin = torch.full((3,), -0.5)
        >>> ofd_loss(teacher, teacher, margin).item()
        0.0
        >>> ofd_loss(teacher + 1, teacher, margin).item()  # 48 entries of (0 - m)^2
        12.0
    """
    s = at_least_float32(feature_student)
    t = at_least_float32(feature_teacher)
    m = at_least_float32(margin)[:, None, None]

    target = torch.maximum(t, m)
    counts = (s > target) | (target > 0)
    distance = torch.where(counts, s - target, 0.0).square()
    return distance.flatten(1).sum(1).mean()


@torch.no_grad()
def margins_of(bn: nn.Module) -> Tensor:
    """E[x | x < 0] of each channel x ~ N(bias, weight^2) of a batch norm (equation 5), (D,).

    With z = bias / |weight|, it is bias - |weight| * phi(z) / Phi(-z), where phi is the normal
    density and Phi its integral. Where Phi(-z), the share of negative values, is at most 0.001, it
    is -3 |weight| (as in the published code).

    Args:
        bn: a batch norm with weight and bias.

    Example:
        >>> margins_of(nn.BatchNorm2d(2))  # -sqrt(2 / pi)
        tensor([-0.7979, -0.7979])
    """
    weight: Any = bn.weight
    bias: Any = bn.bias
    mean = bias.double()
    deviation = weight.double().abs()

    # A channel without deviation is a constant.
    z = mean / deviation.clamp(min=torch.finfo(torch.float64).tiny)
    share = torch.special.ndtr(-z)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)

    expected = mean - deviation * density / share.clamp(min=SMALLEST_SHARE)
    margin = torch.where(share > SMALLEST_SHARE, expected, -3 * deviation)
    return margin.to(weight.dtype)


@METHODS.register("OFD")
class OFD(Distiller):
    """CE_WEIGHT * CE + FEAT_WEIGHT * sum_k 2^-(K - k) * ofd_loss(connector_k(student), teacher).

    The stages k = 1..K are all maps before a ReLU but the stem; the last ones are paired where one
    network has more. If a student has no maps before a ReLU (MobileNetV2), its maps are used as
    they are. The teacher's maps are average-pooled to the size of the student's.

    FEAT_WEIGHT 0.001 is that of CIFAR-100, 0.0001 that of ImageNet. The sum over all entries grows
    with the maps: if a narrow student, such as resnet20, ends below its accuracy without a teacher,
    use 0.0001.

    Differs from the published code: where the teacher has more stages than the student, each pair
    has the margins of its own stage, not those of the teacher's first stages.
    """

    teacher_needs = ("preact_feats",)
    student_needs = ("logits", "feats")
    defaults = dict(
        LOSS=dict(
            CE_WEIGHT=Key(1.0, "weight of the cross-entropy with the labels", low=0.0),
            FEAT_WEIGHT=Key(0.001, "weight of the partial distance, a sum over a map", low=0.0),
        ),
        CONNECTOR=dict(
            KERNEL_SIZE=Key(1, "of the convolution from student's to teacher's channels", low=1),
        ),
    )

    def set_up(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        """See `Distiller.set_up`."""
        shapes_student = self.feature_shapes(student)
        shapes_teacher = self.feature_shapes(teacher)
        check_stages("OFD", "student", shapes_student)
        check_stages("OFD", "teacher", shapes_teacher)
        own = maps_before_relu(shapes_student._asdict())[1:]
        of_teacher = shapes_teacher.preact_feats[1:]
        bns = batch_norms_of(teacher, [shape[1] for shape in of_teacher])

        # Each stage: a connector from the student, and margins of the teacher.
        kernel_size = self.hp.CONNECTOR.KERNEL_SIZE
        own, of_teacher = last_of_each(own, of_teacher)
        pairs = zip(own, of_teacher, strict=True)
        self.connectors = nn.ModuleList(
            connector(shape[1], hint[1], kernel_size) for shape, hint in pairs
        )
        self.num_stages = len(self.connectors)
        for number, bn in enumerate(bns[-self.num_stages :]):
            self.register_buffer(f"margin{number}", margins_of(bn))

    def losses(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """See `Distiller.losses`."""
        own = maps_before_relu(student.features)[1:]
        own, hints = last_of_each(own, teacher.features["preact_feats"][1:])

        terms = []
        for number, connect in enumerate(self.connectors):
            connected = connect(own[number])
            hint = pooled_to(hints[number], (connected.shape[2], connected.shape[3]))
            margin = self.get_buffer(f"margin{number}")
            weight = 0.5 ** (self.num_stages - 1 - number)
            terms.append(weight * ofd_loss(connected, hint, margin))
        return {"loss_kd": self.hp.LOSS.FEAT_WEIGHT * torch.stack(terms).sum()}


def connector(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """A convolution and a batch norm, from the student's channels to the teacher's."""
    padding = (kernel_size - 1) // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def batch_norms_of(teacher: nn.Module, channels: Sequence[int]) -> list[nn.Module]:
    """The batch norm before the ReLU of each stage of a teacher.

    Args:
        teacher: with `get_bn_before_relu`.
        channels: of its maps before a ReLU, without the stem.

    Raises:
        UserError: it has none, or others than those of its stages.
    """
    name = type(getattr(teacher, "module", teacher)).__name__
    advice = "choose another teacher, as a ResNet, WRN or VGG of this package"
    getter: Any = getattr(teacher, "get_bn_before_relu", None)
    if getter is None:
        raise UserError(
            f"OFD takes its margins from the batch norms before the ReLUs, but the teacher {name} "
            f"has no get_bn_before_relu; {advice}"
        )

    bns = list(getter())
    found = [getattr(bn, "num_features", 0) for bn in bns]
    if found != list(channels):
        raise UserError(
            f"OFD: get_bn_before_relu of the teacher {name} returns batch norms of {found} "
            f"channels, but its stages have {list(channels)}; {advice}"
        )
    if not all(getattr(bn, "affine", False) for bn in bns):
        raise UserError(f"OFD: a batch norm of the teacher {name} has no weight and bias; {advice}")
    return bns
