"""MobileNetV2.

M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
arXiv:1801.04381.

There are two published networks: `MobileNetV2` has half the width and is for CIFAR,
`TinyMobileNetV2` has the full width, biased convolutions, and is for Tiny-ImageNet. No ReLU ends
their stages, so `preact_feats` is empty.
"""

from torch import Tensor, nn

from edkd.models._base import Network, conv, init_convolutions, init_head
from edkd.registry import MODELS

STAGE_ENDS = (1, 2, 4, 6)


class InvertedResidual(nn.Module):
    """Widen by `expansion` (1x1), filter each channel (3x3), project (1x1).

    The result is added to the input if both have the same shape. The class attributes are what
    differs between the two networks.
    """

    key = "conv"
    """Published name of the body."""
    relu: type[nn.Module] = nn.ReLU
    bias = False
    """Whether convolutions have a bias."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.skips = stride == 1 and in_channels == out_channels

        hidden = in_channels * expansion
        body = nn.Sequential(
            conv(in_channels, hidden, 1, bias=self.bias),
            nn.BatchNorm2d(hidden),
            self.relu(),
            conv(hidden, hidden, 3, stride, groups=hidden, bias=self.bias),
            nn.BatchNorm2d(hidden),
            self.relu(),
            conv(hidden, out_channels, 1, bias=self.bias),
            nn.BatchNorm2d(out_channels),
        )
        self.add_module(self.key, body)

    def forward(self, x: Tensor) -> Tensor:
        out = getattr(self, self.key)(x)
        if self.skips:
            return x + out
        return out


class TinyInvertedResidual(InvertedResidual):
    """The block of `TinyMobileNetV2`."""

    key = "residual"
    relu = nn.ReLU6
    bias = True


def stage(
    block: type[InvertedResidual],
    count: int,
    in_channels: int,
    out_channels: int,
    stride: int,
    expansion: int = 6,
) -> nn.Sequential:
    """`count` blocks in a row, the first one with the stride."""
    blocks = [block(in_channels, out_channels, stride, expansion)]
    for _ in range(count - 1):
        blocks.append(block(out_channels, out_channels, 1, expansion))
    return nn.Sequential(*blocks)


@MODELS.register("MobileNetV2", family="cifar")
class MobileNetV2(Network):
    """MobileNetV2 of half the width for 32x32 images.

    Convolutions start from He's fan-out normal, the head from N(0, 0.01^2) with bias 0.
    """

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__()
        self.stage_channels = [16, 12, 16, 48, 160]

        self.conv1 = nn.Sequential(
            conv(3, 16, 3, 2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(
            stage(InvertedResidual, 1, 16, 8, 1, expansion=1),
            stage(InvertedResidual, 2, 8, 12, 1),
            stage(InvertedResidual, 3, 12, 16, 2),
            stage(InvertedResidual, 4, 16, 32, 2),
            stage(InvertedResidual, 3, 32, 48, 1),
            stage(InvertedResidual, 3, 48, 80, 2),
            stage(InvertedResidual, 1, 80, 160, 1),
        )
        self.conv2 = nn.Sequential(
            conv(160, 1280, 1),
            nn.BatchNorm2d(1280),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))

        init_convolutions(self)
        init_head(self.classifier[0])

    def forward(self, x: Tensor) -> tuple[Tensor, dict]:
        x = self.conv1(x)
        feats = [x]
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in STAGE_ENDS:
                feats.append(x)

        last = self.conv2(x)
        pooled = last.mean((2, 3))
        features = {
            "feats": feats,
            "preact_feats": [],
            "pooled_feat": pooled,
            "last_map": last,
        }
        return self.classifier(pooled), features


@MODELS.register("MobileNetV2", family="tiny_imagenet")
class TinyMobileNetV2(Network):
    """MobileNetV2 for 64x64 images.

    The stem pads its 1x1 convolution, so its output is 66x66. The head is a convolution, and
    `pooled_feat` is (N,1280,1,1), as published. Weights start from PyTorch's defaults.
    """

    def __init__(self, num_classes: int = 200) -> None:
        super().__init__()
        self.stage_channels = [32, 24, 32, 64, 1280]

        self.pre = nn.Sequential(
            nn.Conv2d(3, 32, 1, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU6(),
        )
        self.stage1 = TinyInvertedResidual(32, 16, 1, expansion=1)
        self.stage2 = stage(TinyInvertedResidual, 2, 16, 24, 2)
        self.stage3 = stage(TinyInvertedResidual, 3, 24, 32, 2)
        self.stage4 = stage(TinyInvertedResidual, 4, 32, 64, 2)
        self.stage5 = stage(TinyInvertedResidual, 3, 64, 96, 1)
        self.stage6 = stage(TinyInvertedResidual, 3, 96, 160, 1)
        self.stage7 = TinyInvertedResidual(160, 320, 1, expansion=6)

        self.conv1 = nn.Sequential(
            conv(320, 1280, 1, bias=True),
            nn.BatchNorm2d(1280),
            nn.ReLU6(),
        )
        self.conv2 = nn.Conv2d(1280, num_classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, dict]:
        stem = self.pre(x)
        second = self.stage2(self.stage1(stem))
        third = self.stage3(second)
        fourth = self.stage4(third)
        fifth = self.stage5(fourth)
        sixth = self.stage6(fifth)
        seventh = self.stage7(sixth)
        last = self.conv1(seventh)

        pooled = last.mean((2, 3), keepdim=True)
        feats = [stem, second, third, fourth, last]
        features = {"feats": feats, "preact_feats": [], "pooled_feat": pooled}
        logits = self.conv2(pooled).flatten(1)
        return logits, features
