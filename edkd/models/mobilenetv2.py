"""MobileNetV2: Sandler et al., Inverted Residuals and Linear Bottlenecks, CVPR 2018, https://arxiv.org/abs/1801.04381.

Two published networks: `MobileNetV2`, the half-width one for CIFAR, and `TinyMobileNetV2`, full width with biased
convolutions, for Tiny-ImageNet. No ReLU ends their stages, so `preact_feats` is empty.
"""

import torch.nn as nn
from torch import Tensor

from edkd.models._base import Network, conv, init_convolutions, init_head


class InvertedResidual(nn.Module):
    """Widen by `expansion` (1x1), filter each channel (3x3), project (1x1); added to an input of the same shape.

    Class attributes tell the two networks' blocks apart: the body's published key, its ReLU, its convolutions' bias.
    """

    key, relu, bias = "conv", nn.ReLU, False

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int):
        super().__init__()
        hidden = in_channels * expansion
        self.skips = stride == 1 and in_channels == out_channels
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
        return x + out if self.skips else out


class TinyInvertedResidual(InvertedResidual):
    """The block of `TinyMobileNetV2`."""

    key, relu, bias = "residual", nn.ReLU6, True


def stage(
    block: type[InvertedResidual], count: int, in_channels: int, out_channels: int, stride: int, expansion: int = 6
) -> nn.Sequential:
    """`count` blocks in a row, the first with the stride."""
    rest = (block(out_channels, out_channels, 1, expansion) for _ in range(count - 1))
    return nn.Sequential(block(in_channels, out_channels, stride, expansion), *rest)


class MobileNetV2(Network):
    """Half-width MobileNetV2 for 32x32 images.

    Convolutions start from He's fan-out normal, the head from N(0, 0.01 ** 2) with bias 0.
    """

    def __init__(self, num_classes: int = 100):
        super().__init__()
        self.stage_channels = [16, 12, 16, 48, 160]
        self.conv1 = nn.Sequential(conv(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(
            stage(InvertedResidual, 1, 16, 8, 1, expansion=1),
            stage(InvertedResidual, 2, 8, 12, 1),
            stage(InvertedResidual, 3, 12, 16, 2),
            stage(InvertedResidual, 4, 16, 32, 2),
            stage(InvertedResidual, 3, 32, 48, 1),
            stage(InvertedResidual, 3, 48, 80, 2),
            stage(InvertedResidual, 1, 80, 160, 1),
        )
        self.conv2 = nn.Sequential(conv(160, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))
        init_convolutions(self)
        init_head(self.classifier[0])

    def forward(self, x: Tensor) -> tuple[Tensor, dict]:
        """See `Network`."""
        x = self.conv1(x)
        feats = [x]
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in (1, 2, 4, 6):
                feats.append(x)
        pooled = self.conv2(x).mean((2, 3))
        return self.classifier(pooled), {"feats": feats, "preact_feats": [], "pooled_feat": pooled}


class TinyMobileNetV2(Network):
    """MobileNetV2 for 64x64 images, whose stem pads its 1x1 convolution (66x66 out) and whose head is a convolution.

    `pooled_feat` is (N,1280,1,1), as published. Weights start from PyTorch's defaults.
    """

    def __init__(self, num_classes: int = 200):
        super().__init__()
        self.stage_channels = [32, 24, 32, 64, 1280]
        self.pre = nn.Sequential(nn.Conv2d(3, 32, 1, padding=1), nn.BatchNorm2d(32), nn.ReLU6())
        self.stage1 = TinyInvertedResidual(32, 16, 1, expansion=1)
        self.stage2 = stage(TinyInvertedResidual, 2, 16, 24, 2)
        self.stage3 = stage(TinyInvertedResidual, 3, 24, 32, 2)
        self.stage4 = stage(TinyInvertedResidual, 4, 32, 64, 2)
        self.stage5 = stage(TinyInvertedResidual, 3, 64, 96, 1)
        self.stage6 = stage(TinyInvertedResidual, 3, 96, 160, 1)
        self.stage7 = TinyInvertedResidual(160, 320, 1, expansion=6)
        self.conv1 = nn.Sequential(conv(320, 1280, 1, bias=True), nn.BatchNorm2d(1280), nn.ReLU6())
        self.conv2 = nn.Conv2d(1280, num_classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, dict]:
        """See `Network`."""
        stem = self.pre(x)
        second = self.stage2(self.stage1(stem))
        third = self.stage3(second)
        fourth = self.stage4(third)
        last = self.conv1(self.stage7(self.stage6(self.stage5(fourth))))
        pooled = last.mean((2, 3), keepdim=True)
        features = {"feats": [stem, second, third, fourth, last], "preact_feats": [], "pooled_feat": pooled}
        return self.conv2(pooled).flatten(1), features
