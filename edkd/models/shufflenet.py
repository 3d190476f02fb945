"""ShuffleNet for 32x32 images.

V1: X. Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile
Devices", CVPR 2018, arXiv:1707.01083.

V2: N. Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design",
ECCV 2018, arXiv:1807.11164.

Weights start from PyTorch's defaults, as published.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edkd.models._base import Network, Stage, add_model, conv

STEM_CHANNELS = 24  # too few to group: the convolution after the stem is dense
GROUPS = 3  # of the pointwise convolutions of V1
UNITS = (4, 8, 4)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the `groups` groups of channels of x (N,D,H,W)."""
    grouped = x.unflatten(1, (groups, -1))
    return grouped.transpose(1, 2).flatten(1, 2)


class BodyV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        hidden = out_channels // 4
        self.groups = GROUPS
        if in_channels == STEM_CHANNELS:
            self.groups = 1

        self.conv1 = conv(in_channels, hidden, 1, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = conv(hidden, hidden, 3, stride, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = conv(hidden, out_channels, 1, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def body(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        x = F.relu(x)
        x = channel_shuffle(x, self.groups)
        x = self.bn2(self.conv2(x))
        x = F.relu(x)
        return self.bn3(self.conv3(x))


class UnitV1(BodyV1):
    """The body added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, stride=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        preact = self.body(x) + x
        return F.relu(preact), preact


class EntryUnitV1(BodyV1):
    """The body with stride 2, concatenated with its average-pooled input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels - in_channels, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled = F.avg_pool2d(x, 3, 2, 1)
        out = self.body(x)
        preact = torch.cat([out, pooled], dim=1)
        return F.relu(preact), preact


class UnitV2(nn.Module):
    """1x1, depthwise 3x3, 1x1 on the second half of the channels; the first half is kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, out = x.chunk(2, dim=1)
        out = self.bn1(self.conv1(out))
        out = F.relu(out)
        out = self.bn2(self.conv2(out))
        out = self.bn3(self.conv3(out))

        # `kept` is not negative, so the ReLU does not change it.
        preact = torch.cat([kept, out], dim=1)
        out = F.relu(preact)
        return channel_shuffle(out, 2), preact


class EntryUnitV2(nn.Module):
    """Two branches of stride 2, concatenated.

    One is depthwise 3x3, 1x1; the other is 1x1, depthwise 3x3, 1x1.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2

        # The short branch.
        self.conv1 = conv(in_channels, in_channels, 3, 2, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv(in_channels, half, 1)
        self.bn2 = nn.BatchNorm2d(half)

        # The long branch.
        self.conv3 = conv(in_channels, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv(half, half, 3, 2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # The short branch.
        short = self.conv1(x)
        short = self.bn1(short)
        short = self.conv2(short)
        short = self.bn2(short)

        # The long branch.
        long = self.conv3(x)
        long = F.relu(self.bn3(long))
        long = self.conv4(long)
        long = self.bn4(long)
        long = self.conv5(long)
        long = self.bn5(long)

        preact = torch.cat([short, long], dim=1)
        out = F.relu(preact)
        return channel_shuffle(out, 2), preact


class ShuffleNet(Network):
    """A stem that keeps H and W, then three stages that each halve them.

    Args:
        channels: of the stem and of each stage.
        entry: (in_channels, out_channels) -> the first unit of a stage.
        unit: (channels) -> one of its further units.
    """

    def __init__(
        self,
        channels: Sequence[int],
        entry: Callable[[int, int], nn.Module],
        unit: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.stage_channels = list(channels)
        self.conv1 = conv(3, channels[0], 1)
        self.bn1 = nn.BatchNorm2d(channels[0])

        for number, count in enumerate(UNITS):
            before = channels[number]
            after = channels[number + 1]
            units = [entry(before, after)]
            for _ in range(count - 1):
                units.append(unit(after))
            stage = Stage(*units)
            self.add_module(f"layer{number + 1}", stage)

    @property
    def stages(self) -> list[Stage]:
        return [self.layer1, self.layer2, self.layer3]

    def embed(self, x: Tensor) -> Tensor:
        """From the output of the last stage to the maps that are averaged for the head."""
        return x

    def forward(self, x: Tensor) -> tuple[Tensor, dict]:
        x = self.bn1(self.conv1(x))
        x = F.relu(x)
        feats = [x]
        preact_feats = [x]
        for stage in self.stages:
            x, preact = stage(x)
            feats.append(x)
            preact_feats.append(preact)

        last = self.embed(x)
        pooled = last.mean((2, 3))
        features = {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}
        if last is not x:
            features["last_map"] = last
        return self.linear(pooled), features


class ShuffleV1(ShuffleNet):
    """ShuffleNet with three groups."""

    def __init__(self, num_classes: int = 100) -> None:
        channels = (STEM_CHANNELS, 240, 480, 960)
        super().__init__(channels, EntryUnitV1, UnitV1)
        self.linear = nn.Linear(960, num_classes)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return [stage[-1].bn3 for stage in self.stages]


class ShuffleV2(ShuffleNet):
    """ShuffleNetV2 1x.

    Half of a stage's channels reach its last ReLU without a batch norm, so `get_bn_before_relu`
    raises an error.
    """

    def __init__(self, num_classes: int = 100) -> None:
        channels = (STEM_CHANNELS, 116, 232, 464)
        super().__init__(channels, EntryUnitV2, UnitV2)
        self.conv2 = conv(464, 1024, 1)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        x = self.bn2(self.conv2(x))
        return F.relu(x)


add_model("cifar", "ShuffleV1", ShuffleV1)
add_model("cifar", "ShuffleV2", ShuffleV2)
add_model("tiny_imagenet", "ShuffleV2", ShuffleV2, num_classes=200)
