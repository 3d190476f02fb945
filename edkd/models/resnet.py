"""ResNet: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, https://arxiv.org/abs/1512.03385.

`resnet` is the paper's CIFAR network of three stages (and its x4 widening), `resnetv2` the ImageNet network with a stem
for 32x32 and 64x64 images, `resnet_imagenet` torchvision's. Convolutions start from He's fan-out normal; heads from
PyTorch's default.
"""

from collections.abc import Sequence

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from edkd.models._base import Network, Stage, conv, init_convolutions


class ResidualBlock(nn.Module):
    """`relu(body(x) + shortcut(x))`; `shortcut_name` is the published key of the shortcut's projection."""

    expansion: int

    def add_shortcut(self, shortcut_name: str, in_channels: int, out_channels: int, stride: int) -> None:
        self.shortcut_name = shortcut_name
        shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
        self.add_module(shortcut_name, shortcut)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        preact = self.body(x) + getattr(self, self.shortcut_name)(x)
        return F.relu(preact), preact


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut_name: str):
        super().__init__()
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.add_shortcut(shortcut_name, in_channels, channels, stride)

    def body(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.bn2


class Bottleneck(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions; the stride is the 3x3's, as in torchvision."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut_name: str):
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = conv(in_channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = conv(channels, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.add_shortcut(shortcut_name, in_channels, out_channels, stride)

    def body(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.bn3


class ResNet(Network):
    """A stem, then stages of residual blocks; each stage but the first halves H and W.

    `channels` are the stem's and each stage's (before the block's expansion), `blocks` the number in each stage, and
    `names` the published keys of the blocks' projection and of the head. `downsampling_stem` is the 7x7 convolution
    and the pooling of ImageNet: H and W shrink to a quarter before the first stage.
    """

    def __init__(
        self,
        block: type[ResidualBlock],
        blocks: Sequence[int],
        channels: Sequence[int],
        num_classes: int,
        names: tuple[str, str] = ("downsample", "fc"),
        downsampling_stem: bool = False,
    ):
        super().__init__()
        shortcut_name, self.head_name = names
        self.stage_channels = [channels[0], *(c * block.expansion for c in channels[1:])]
        self.conv1 = conv(3, channels[0], 7, 2) if downsampling_stem else conv(3, channels[0], 3)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.maxpool = nn.MaxPool2d(3, 2, 1) if downsampling_stem else nn.Identity()
        self.num_stages = len(blocks)
        for i, count in enumerate(blocks):
            entry = block(self.stage_channels[i], channels[i + 1], 1 if i == 0 else 2, shortcut_name)
            rest = (block(self.stage_channels[i + 1], channels[i + 1], 1, shortcut_name) for _ in range(count - 1))
            self.add_module(f"layer{i + 1}", Stage(entry, *rest))
        self.add_module(self.head_name, nn.Linear(self.stage_channels[-1], num_classes))
        init_convolutions(self)

    @property
    def stages(self) -> list[Stage]:
        return [getattr(self, f"layer{i + 1}") for i in range(self.num_stages)]

    def forward(self, x: Tensor) -> tuple[Tensor, dict]:
        """See `Network`."""
        stem = F.relu(self.bn1(self.conv1(x)))
        x = self.maxpool(stem)
        feats, preact_feats = [stem], [stem]
        for stage in self.stages:
            x, preact = stage(x)
            feats.append(x)
            preact_feats.append(preact)
        pooled = x.mean((2, 3))
        logits = getattr(self, self.head_name)(pooled)
        return logits, {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """See `Network`."""
        return [stage[-1].last_bn for stage in self.stages]


FOUR_STAGES = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


def resnet(depth: int, num_classes: int = 100, channels: Sequence[int] = (16, 16, 32, 64)) -> ResNet:
    """The CIFAR ResNet of `depth` = 6n + 2 layers; the x4 networks have channels (32, 64, 128, 256)."""
    return ResNet(BasicBlock, 3 * [(depth - 2) // 6], channels, num_classes)


def resnetv2(depth: int, num_classes: int = 100) -> ResNet:
    """The four-stage ResNet of `depth` layers for small images."""
    return ResNet(*FOUR_STAGES[depth], (64, 64, 128, 256, 512), num_classes, names=("shortcut", "linear"))


def resnet_imagenet(depth: int, num_classes: int = 1000) -> ResNet:
    """The four-stage ResNet of `depth` layers for 224x224 images, keys as in torchvision."""
    return ResNet(*FOUR_STAGES[depth], (64, 64, 128, 256, 512), num_classes, downsampling_stem=True)
