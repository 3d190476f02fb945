"""VGG with batch norm: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition,
ICLR 2015, https://arxiv.org/abs/1409.1556.

For 32x32 images: five blocks, one linear layer. Convolutions start from He's fan-out normal with bias 0, the head from
N(0, 0.01 ** 2) with bias 0.
"""

from itertools import pairwise

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from edkd.models._base import Network, conv, init_convolutions, init_head

# Number of convolutions in each block.
CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def vgg_block(in_channels: int, channels: int, count: int) -> nn.Sequential:
    """`count` 3x3 convolutions, each normalised, a ReLU between two; ends in the last batch norm."""
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [conv(in_channels, channels, 3, bias=True), nn.BatchNorm2d(channels), nn.ReLU()]
        in_channels = channels
    return nn.Sequential(*layers[:-1])


class VGG(Network):
    """VGG of `depth` in {8, 11, 13, 16, 19}; H and W halve after each of the first three blocks."""

    def __init__(self, depth: int, num_classes: int = 100):
        super().__init__()
        self.stage_channels = [64, 128, 256, 512, 512]
        for i, (in_channels, channels) in enumerate(pairwise([3, *self.stage_channels])):
            self.add_module(f"block{i}", vgg_block(in_channels, channels, CONVOLUTIONS[depth][i]))
        self.classifier = nn.Linear(512, num_classes)
        init_convolutions(self)
        init_head(self.classifier)

    @property
    def blocks(self) -> list[nn.Sequential]:
        return [self.block0, self.block1, self.block2, self.block3, self.block4]

    def forward(self, x: Tensor) -> tuple[Tensor, dict]:
        """See `Network`."""
        feats, preact_feats = [], []
        for i, block in enumerate(self.blocks):
            preact = block(x if i in (0, 4) else F.max_pool2d(x, 2))
            x = F.relu(preact)
            feats.append(x)
            preact_feats.append(preact)
        preact_feats[0] = feats[0]  # as published: the stem's entry comes after its ReLU in both lists
        pooled = x.mean((2, 3))
        return self.classifier(pooled), {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """See `Network`."""
        return [block[-1] for block in self.blocks[1:]]
