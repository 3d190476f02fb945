"""A student with the classifier of its teacher, and the projector between both.

D. Chen, J.-P. Mei, H. Zhang, C. Wang, Y. Feng, C. Chen, "Knowledge Distillation with the Reused
Teacher Classifier", CVPR 2022, arXiv:2203.14001.

Such a network is named "<student>+simkd-<projection>", as "resnet8x4+simkd-256to256x8x8f2", so that
`edkd.models.get_model` can build it again.
"""

import re
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from edkd.errors import UserError

_NAME = re.compile(r"(?P<student>.+)\+simkd-(\d+)to(\d+)x(\d+)x(\d+)f(\d+)")


class Projection(NamedTuple):
    """The shape of a projector."""

    in_channels: int
    """Of the student's last feature map."""
    out_channels: int
    """Of the teacher's, which its classifier takes."""
    height: int
    """To which a larger map of the student is pooled."""
    width: int
    factor: int
    """The projector has `out_channels // factor` channels inside."""


def name_with(student: str, projection: Projection) -> str:
    """The name of a student with a projector and a classifier."""
    in_channels, out_channels, height, width, factor = projection
    return f"{student}+simkd-{in_channels}to{out_channels}x{height}x{width}f{factor}"


def parts_of(name: str) -> tuple[str, Projection | None]:
    """The name of the student alone, and its projection; (the name, None) for other networks."""
    match = _NAME.fullmatch(name)
    if match is None:
        return name, None
    return match["student"], Projection(*map(int, match.groups()[1:]))


class ReusedClassifier(nn.Module):
    """A student, a projector, and a classifier that is not trained.

    `forward(x: (N,3,H,W)) -> (logits (N,C), features)`. The last of `feats` is the projected map.

    Args:
        student: `forward(x) -> (logits, features)`; its own classifier is replaced by
            `nn.Identity`, as nothing reads it.
        projection: the shape of the projector.
        num_classes: C.

    Raises:
        UserError: the factor is larger than the number of channels.
    """

    def __init__(self, student: nn.Module, projection: Projection, num_classes: int) -> None:
        super().__init__()
        in_channels, out_channels, _, _, factor = projection
        inside = out_channels // factor
        if inside < 1:
            raise UserError(
                f"a projector with the factor {factor} has no channel, as it divides "
                f"{out_channels}; choose a factor between 1 and {out_channels}"
            )

        _remove_classifier(student, num_classes)
        self.student = student

        self.projection = projection
        self.projector = nn.Sequential(
            *_convolution(in_channels, inside, 1),
            *_convolution(inside, inside, 3),
            *_convolution(inside, out_channels, 1),
        )
        self.classifier = _FixedLinear(out_channels, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Logits (N,C) and features for images (N,3,H,W)."""
        _, features = self.student(x)
        feats = list(features["feats"])

        projected = self.projector(self._pooled(feats[-1]))
        pooled = projected.mean((2, 3))

        features = {"feats": [*feats, projected], "preact_feats": [], "pooled_feat": pooled}
        return self.classifier(pooled), features

    def _pooled(self, feature: Tensor) -> Tensor:
        """A map that is not larger than the teacher's."""
        height = min(feature.shape[2], self.projection.height)
        width = min(feature.shape[3], self.projection.width)
        if feature.shape[2:] == (height, width):
            return feature
        return F.adaptive_avg_pool2d(feature, (height, width))


class _FixedLinear(nn.Linear):
    """A linear layer whose weights are buffers: saved with the network, and never trained."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        for name in ("weight", "bias"):
            value = getattr(self, name).detach()
            delattr(self, name)
            self.register_buffer(name, value)


def _convolution(in_channels: int, out_channels: int, kernel: int) -> list[nn.Module]:
    padding = kernel // 2
    return [
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


def _remove_classifier(network: nn.Module, num_classes: int) -> None:
    """Replace the last linear layer with an output for each class, where there is one.

    Others of its shape are classifiers, too: DeiT has one for each of its two tokens.
    """
    found = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == num_classes
    }
    if not found:
        return
    width = list(found.values())[-1].in_features
    for name, module in found.items():
        if module.in_features == width:
            network.set_submodule(name, nn.Identity())
