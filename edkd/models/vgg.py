"""VGG with batch norm.

K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
ICLR 2015, arXiv:1409.1556.

The networks are for 32x32 images: five blocks and one linear layer. Convolutions start from He's
fan-out normal with bias 0, the head from N(0, 0.01^2) with bias 0.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from edkd.models._base import (
    Network,
    add_model,
    cifar_weights,
    conv,
    init_convolutions,
    init_head,
)

CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Number of convolutions in each block, by depth."""


def vgg_block(in_channels: int, channels: int, count: int) -> nn.Sequential:
    """`count` 3x3 convolutions with batch norm, and ReLUs between them."""
    layers: list[nn.Module] = []
    for _ in range(count):
        layers.append(conv(in_channels, channels, 3, bias=True))
        layers.append(nn.BatchNorm2d(channels))
        layers.append(nn.ReLU())
        in_channels = channels
    return nn.Sequential(*layers[:-1])


class VGG(Network):
    """VGG. H and W halve after each of the first three blocks.

    Args:
        depth: 8, 11, 13, 16 or 19.
        num_classes: number of logits.
    """

    def __init__(self, depth: int, num_classes: int = 100) -> None:
        super().__init__()
        self.stage_channels = [64, 128, 256, 512, 512]

        widths = pairwise([3, *self.stage_channels])
        for number, (in_channels, channels) in enumerate(widths):
            block = vgg_block(in_channels, channels, CONVOLUTIONS[depth][number])
            self.add_module(f"block{number}", block)

        self.classifier = nn.Linear(512, num_classes)
        init_convolutions(self)
        init_head(self.classifier)

    @property
    def blocks(self) -> list[nn.Sequential]:
        return [self.block0, self.block1, self.block2, self.block3, self.block4]

    def forward(self, x: Tensor) -> tuple[Tensor, dict]:
        feats = []
        preact_feats = []
        for number, block in enumerate(self.blocks):
            if number in (1, 2, 3):
                x = F.max_pool2d(x, 2)
            preact = block(x)
            x = F.relu(preact)
            feats.append(x)
            preact_feats.append(preact)

        # As published: the entry of the stem is after its ReLU in both lists.
        preact_feats[0] = feats[0]

        pooled = x.mean((2, 3))
        features = {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}
        return self.classifier(pooled), features

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return [block[-1] for block in self.blocks[1:]]


add_model("cifar", "vgg8", VGG, depth=8)
add_model("cifar", "vgg11", VGG, depth=11)
add_model("cifar", "vgg13", VGG, cifar_weights("vgg13"), depth=13)
add_model("cifar", "vgg16", VGG, depth=16)
add_model("cifar", "vgg19", VGG, depth=19)
