"""Wide ResNet.

S. Zagoruyko, N. Komodakis, "Wide Residual Networks", BMVC 2016, arXiv:1605.07146.

Convolutions start from He's fan-out normal, the head from PyTorch's default with bias 0.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from edkd.models._base import Network, add_model, cifar_weights, conv, init_convolutions


class WideBlock(nn.Module):
    """Pre-activation block of two 3x3 convolutions; returns (output, bn1(input))."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.convShortcut = None
        if in_channels != channels:
            self.convShortcut = conv(in_channels, channels, 1, stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        preact = self.bn1(x)
        active = F.relu(preact)
        shortcut = x
        if self.convShortcut is not None:
            shortcut = self.convShortcut(active)

        out = self.bn2(self.conv1(active))
        out = F.relu(out)
        out = self.conv2(out)
        return shortcut + out, preact


class WideStage(nn.Module):
    """`count` wide blocks in a row, the first one with the stride.

    Returns (output, normalised input); the second is the preact of the stage before.
    """

    def __init__(self, count: int, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        blocks = [WideBlock(in_channels, channels, stride)]
        for _ in range(count - 1):
            blocks.append(WideBlock(channels, channels, 1))
        self.layer = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        entry, *rest = self.layer
        x, preact = entry(x)
        for block in rest:
            x, _ = block(x)
        return x, preact


class WideResNet(Network):
    """WRN-depth-widen_factor. No ReLU comes between a stage's last sum and its entry of `feats`.

    Differs from the published code: each batch norm runs once a step. There, those of
    `preact_feats` ran twice and moved their running statistics twice.

    Args:
        depth: 6n + 4.
        widen_factor: of the channels.
        num_classes: number of logits.
    """

    def __init__(self, depth: int, widen_factor: int, num_classes: int = 100) -> None:
        super().__init__()
        stem = 16
        first = 16 * widen_factor
        second = 32 * widen_factor
        third = 64 * widen_factor
        self.stage_channels = [stem, first, second, third]

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
        # A stage returns the preact of the stage before.
        stem = self.conv1(x)
        first, _ = self.block1(stem)
        second, first_preact = self.block2(first)
        third, second_preact = self.block3(second)
        third_preact = self.bn1(third)

        last = F.relu(third_preact)
        pooled = last.mean((2, 3))
        features = {
            "feats": [stem, first, second, third],
            "preact_feats": [stem, first_preact, second_preact, third_preact],
            "pooled_feat": pooled,
            "last_map": last,
        }
        return self.fc(pooled), features

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        second = self.block2.layer[0]
        third = self.block3.layer[0]
        return [second.bn1, third.bn1, self.bn1]


add_model("cifar", "wrn_16_1", WideResNet, depth=16, widen_factor=1)
add_model("cifar", "wrn_16_2", WideResNet, depth=16, widen_factor=2)
add_model("cifar", "wrn_40_1", WideResNet, depth=40, widen_factor=1)
add_model(
    "cifar",
    "wrn_40_2",
    WideResNet,
    cifar_weights("wrn_40_2"),
    depth=40,
    widen_factor=2,
)
