"""ShuffleNet for 32x32 images; weights start from PyTorch's defaults, as published.

V1: Zhang et al., ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices, CVPR 2018,
https://arxiv.org/abs/1707.01083.
V2: Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018,
https://arxiv.org/abs/1807.11164.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from edkd.models._base import Network, Stage, conv

STEM_CHANNELS = 24  # too few to group: the convolution that follows the stem is dense
GROUPS = 3  # of the pointwise convolutions of V1


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the `groups` groups of channels of x (N,D,H,W)."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class BodyV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        hidden = out_channels // 4
        self.groups = 1 if in_channels == STEM_CHANNELS else GROUPS
        self.conv1 = conv(in_channels, hidden, 1, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = conv(hidden, hidden, 3, stride, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = conv(hidden, out_channels, 1, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def body(self, x: Tensor) -> Tensor:
        x = channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        x = F.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class UnitV1(BodyV1):
    """The body added to its input."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, stride=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        preact = self.body(x) + x
        return F.relu(preact), preact


class EntryUnitV1(BodyV1):
    """The body with stride 2 beside its averaged input, which gives `in_channels` of the output."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels - in_channels, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        preact = torch.cat([self.body(x), F.avg_pool2d(x, 3, 2, 1)], dim=1)
        return F.relu(preact), preact


class UnitV2(nn.Module):
    """The second half of the channels goes through 1x1, depthwise 3x3, 1x1; the first half passes by."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1 = conv(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        passing, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        preact = torch.cat([passing, out], dim=1)
        return channel_shuffle(F.relu(preact), 2), preact  # `passing` is non-negative: the ReLU leaves it


class EntryUnitV2(nn.Module):
    """Two branches of stride 2 put side by side: depthwise 3x3, 1x1, and 1x1, depthwise 3x3, 1x1."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        half = out_channels // 2
        self.conv1 = conv(in_channels, in_channels, 3, 2, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv(in_channels, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(in_channels, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv(half, half, 3, 2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        short = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        long = F.relu(self.bn3(self.conv3(x)))
        long = self.bn5(self.conv5(self.bn4(self.conv4(long))))
        preact = torch.cat([short, long], dim=1)
        return channel_shuffle(F.relu(preact), 2), preact


class ShuffleNet(Network):
    """A stem that keeps H and W, then three stages that halve them, each an `entry` unit and further `unit`s."""

    def __init__(self, channels: Sequence[int], entry: Callable[..., nn.Module], unit: Callable[..., nn.Module]):
        super().__init__()
        self.stage_channels = list(channels)
        self.conv1 = conv(3, channels[0], 1)
        self.bn1 = nn.BatchNorm2d(channels[0])
        for i, count in enumerate((4, 8, 4)):
            rest = (unit(channels[i + 1]) for _ in range(count - 1))
            self.add_module(f"layer{i + 1}", Stage(entry(channels[i], channels[i + 1]), *rest))

    def embed(self, x: Tensor) -> Tensor:
        """Map the last stage's output to what is averaged for the head."""
        return x

    def forward(self, x: Tensor) -> tuple[Tensor, dict]:
        """See `Network`."""
        x = F.relu(self.bn1(self.conv1(x)))
        feats, preact_feats = [x], [x]
        for stage in (self.layer1, self.layer2, self.layer3):
            x, preact = stage(x)
            feats.append(x)
            preact_feats.append(preact)
        pooled = self.embed(x).mean((2, 3))
        return self.linear(pooled), {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}


class ShuffleV1(ShuffleNet):
    """ShuffleNet with three groups."""

    def __init__(self, num_classes: int = 100):
        super().__init__((STEM_CHANNELS, 240, 480, 960), EntryUnitV1, UnitV1)
        self.linear = nn.Linear(960, num_classes)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """See `Network`."""
        return [stage[-1].bn3 for stage in (self.layer1, self.layer2, self.layer3)]


class ShuffleV2(ShuffleNet):
    """ShuffleNetV2 1x.

    Half of a stage's channels reach its last ReLU without a batch norm, so `get_bn_before_relu` refuses.
    """

    def __init__(self, num_classes: int = 100):
        super().__init__((STEM_CHANNELS, 116, 232, 464), EntryUnitV2, UnitV2)
        self.conv2 = conv(464, 1024, 1)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(x)))
