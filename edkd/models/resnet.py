"""ResNet.

K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385.

`resnet` is the paper's network for CIFAR, with three stages, also with four times the width.
`resnetv2` is the network for ImageNet with a stem for 32x32 and 64x64 images. `resnet_imagenet` is
torchvision's. Convolutions start from He's fan-out normal, heads from PyTorch's default.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from edkd.models._base import (
    Network,
    Stage,
    add_model,
    cifar_weights,
    conv,
    init_convolutions,
    weights_path,
)


class ResidualBlock(nn.Module):
    """`relu(body(x) + shortcut(x))`."""

    expansion: int
    """Output channels for each inner channel."""

    def add_shortcut(
        self, shortcut_name: str, in_channels: int, out_channels: int, stride: int
    ) -> None:
        """Add the shortcut under its published name: the identity if the shape stays the same."""
        self.shortcut_name = shortcut_name
        shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            projection = conv(in_channels, out_channels, 1, stride)
            shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))
        self.add_module(shortcut_name, shortcut)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shortcut = getattr(self, self.shortcut_name)
        preact = self.body(x) + shortcut(x)
        return F.relu(preact), preact


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut_name: str) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.add_shortcut(shortcut_name, in_channels, channels, stride)

    def body(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        x = F.relu(x)
        return self.bn2(self.conv2(x))

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.bn2


class Bottleneck(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions. The 3x3 one has the stride, as in torchvision."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut_name: str) -> None:
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
        x = self.bn1(self.conv1(x))
        x = F.relu(x)
        x = self.bn2(self.conv2(x))
        x = F.relu(x)
        return self.bn3(self.conv3(x))

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.bn3


def residual_stage(
    block: type[ResidualBlock],
    count: int,
    in_channels: int,
    channels: int,
    stride: int,
    shortcut_name: str,
) -> Stage:
    """`count` blocks in a row, the first one with the stride."""
    blocks = [block(in_channels, channels, stride, shortcut_name)]
    for _ in range(count - 1):
        blocks.append(block(channels * block.expansion, channels, 1, shortcut_name))
    return Stage(*blocks)


class ResNet(Network):
    """A stem, then stages of residual blocks. Each stage but the first halves H and W.

    Args:
        block: kind of the blocks.
        blocks: number of blocks in each stage.
        channels: of the stem and of each stage, before the block's expansion.
        num_classes: number of logits.
        names: published names of the blocks' projection and of the head.
        downsampling_stem: whether a 7x7 convolution and a pooling shrink H and W to a quarter
            before the first stage, as for ImageNet.
    """

    def __init__(
        self,
        block: type[ResidualBlock],
        blocks: Sequence[int],
        channels: Sequence[int],
        num_classes: int,
        names: tuple[str, str] = ("downsample", "fc"),
        downsampling_stem: bool = False,
    ) -> None:
        super().__init__()
        shortcut_name, head_name = names
        self.head_name = head_name
        self.num_stages = len(blocks)
        self.stage_channels = [channels[0]]
        self.stage_channels += [inner * block.expansion for inner in channels[1:]]

        # Stem.
        stem = channels[0]
        self.conv1 = conv(3, stem, 7, 2) if downsampling_stem else conv(3, stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if downsampling_stem else nn.Identity()

        # Stages: the order of construction decides the initial weights.
        for number, count in enumerate(blocks):
            stride = 1 if number == 0 else 2
            before = self.stage_channels[number]
            inner = channels[number + 1]
            stage = residual_stage(block, count, before, inner, stride, shortcut_name)
            self.add_module(f"layer{number + 1}", stage)

        # Head.
        self.add_module(head_name, nn.Linear(self.stage_channels[-1], num_classes))
        init_convolutions(self)

    @property
    def stages(self) -> list[Stage]:
        return [getattr(self, f"layer{number}") for number in range(1, self.num_stages + 1)]

    def forward(self, x: Tensor) -> tuple[Tensor, dict]:
        stem = self.bn1(self.conv1(x))
        stem = F.relu(stem)
        x = self.maxpool(stem)

        feats = [stem]
        preact_feats = [stem]
        for stage in self.stages:
            x, preact = stage(x)
            feats.append(x)
            preact_feats.append(preact)

        pooled = x.mean((2, 3))
        head = getattr(self, self.head_name)
        features = {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}
        return head(pooled), features

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return [stage[-1].last_bn for stage in self.stages]


FOUR_STAGES: dict[int, tuple[type[ResidualBlock], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}
"""Kind and number of blocks by depth."""

THREE_STAGES_CHANNELS = (16, 16, 32, 64)
X4_CHANNELS = (32, 64, 128, 256)
FOUR_STAGES_CHANNELS = (64, 64, 128, 256, 512)


def resnet(
    depth: int, num_classes: int = 100, channels: Sequence[int] = THREE_STAGES_CHANNELS
) -> ResNet:
    """The ResNet for CIFAR, depth = 6n + 2."""
    count = (depth - 2) // 6
    return ResNet(BasicBlock, 3 * [count], channels, num_classes)


def resnetv2(depth: int, num_classes: int = 100) -> ResNet:
    """The ResNet of four stages for small images."""
    block, blocks = FOUR_STAGES[depth]
    names = ("shortcut", "linear")
    return ResNet(block, blocks, FOUR_STAGES_CHANNELS, num_classes, names)


def resnet_imagenet(depth: int, num_classes: int = 1000) -> ResNet:
    """The ResNet of four stages for 224x224 images, with torchvision's names."""
    block, blocks = FOUR_STAGES[depth]
    return ResNet(block, blocks, FOUR_STAGES_CHANNELS, num_classes, downsampling_stem=True)


# CIFAR.
add_model("cifar", "resnet8", resnet, depth=8)
add_model("cifar", "resnet14", resnet, depth=14)
add_model("cifar", "resnet20", resnet, depth=20)
add_model("cifar", "resnet32", resnet, depth=32)
add_model("cifar", "resnet44", resnet, depth=44)
add_model("cifar", "resnet56", resnet, cifar_weights("resnet56"), depth=56)
add_model("cifar", "resnet110", resnet, cifar_weights("resnet110"), depth=110)
add_model("cifar", "resnet8x4", resnet, depth=8, channels=X4_CHANNELS)
add_model(
    "cifar",
    "resnet32x4",
    resnet,
    cifar_weights("resnet32x4"),
    depth=32,
    channels=X4_CHANNELS,
)
add_model("cifar", "ResNet18", resnetv2, depth=18)
add_model("cifar", "ResNet50", resnetv2, cifar_weights("ResNet50"), depth=50)

# Tiny-ImageNet.
add_model(
    "tiny_imagenet",
    "ResNet18",
    resnetv2,
    weights_path("tiny_imagenet_teachers", "ResNet18_vanilla", "ti_res18"),
    depth=18,
    num_classes=200,
)

# ImageNet, with torchvision's weights.
for _depth, _file in [
    (18, "resnet18-5c106cde.pth"),
    (34, "resnet34-333f7ec4.pth"),
    (50, "resnet50-19c8e357.pth"),
    (101, "resnet101-5d3b4d8f.pth"),
]:
    _weights = weights_path("imagenet_teachers", _file)
    add_model("imagenet", f"ResNet{_depth}", resnet_imagenet, _weights, depth=_depth)
