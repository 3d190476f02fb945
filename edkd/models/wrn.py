"""Wide ResNet: Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, https://arxiv.org/abs/1605.07146.

Convolutions start from He's fan-out normal, the head from PyTorch's default with bias 0.
"""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from edkd.models._base import Network, conv, init_convolutions


class WideBlock(nn.Module):
    """Pre-activation block of two 3x3 convolutions; gives (output, bn1(input))."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.convShortcut = None if in_channels == channels else conv(in_channels, channels, 1, stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        preact = self.bn1(x)
        out = F.relu(preact)
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(out)))), preact


class WideStage(nn.Module):
    """`count` wide blocks; gives (output, normalised input), the latter being the preact of the stage before."""

    def __init__(self, count: int, in_channels: int, channels: int, stride: int):
        super().__init__()
        rest = (WideBlock(channels, channels, 1) for _ in range(count - 1))
        self.layer = nn.ModuleList([WideBlock(in_channels, channels, stride), *rest])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        entry, *rest = self.layer
        x, preact = entry(x)
        for block in rest:
            x, _ = block(x)
        return x, preact


class WideResNet(Network):
    """WRN-`depth`-`widen_factor`, depth = 6n + 4. Its `feats` are the stages' sums, which no ReLU has passed.

    Differs from the published code: each batch norm runs once a step, where there those of `preact_feats` ran twice
    and so moved their running statistics twice.
    """

    def __init__(self, depth: int, widen_factor: int, num_classes: int = 100):
        super().__init__()
        self.stage_channels = [16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        stem, first, second, third = self.stage_channels
        count = (depth - 4) // 6
        self.conv1 = conv(3, stem, 3)
        self.block1 = WideStage(count, stem, first, 1)
        self.block2 = WideStage(count, first, second, 2)
        self.block3 = WideStage(count, second, third, 2)
        self.bn1 = nn.BatchNorm2d(third)
        self.fc = nn.Linear(third, num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, dict]:
        """See `Network`."""
        stem = self.conv1(x)
        first, _ = self.block1(stem)
        second, first_preact = self.block2(first)
        third, second_preact = self.block3(second)
        third_preact = self.bn1(third)
        pooled = F.relu(third_preact).mean((2, 3))
        return self.fc(pooled), {
            "feats": [stem, first, second, third],
            "preact_feats": [stem, first_preact, second_preact, third_preact],
            "pooled_feat": pooled,
        }

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """See `Network`."""
        return [self.block2.layer[0].bn1, self.block3.layer[0].bn1, self.bn1]
