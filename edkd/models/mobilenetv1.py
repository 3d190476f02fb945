"""MobileNet.

A. G. Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
Applications", 2017, arXiv:1704.04861.

Weights start from PyTorch's defaults, as published.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from edkd.models._base import Network, conv
from edkd.registry import MODELS

LAYERS = [
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *5 * [(512, 1)],
    (1024, 2),
    (1024, 1),
]
"""Output channels and stride of each depthwise separable convolution."""

STAGE_ENDS = (3, 5, 11, 13)


def separable(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A depthwise 3x3 and a pointwise convolution, up to the second batch norm."""
    return nn.Sequential(
        conv(in_channels, in_channels, 3, stride, groups=in_channels),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        conv(in_channels, out_channels, 1),
        nn.BatchNorm2d(out_channels),
    )


@MODELS.register("MobileNetV1", family="imagenet")
class MobileNetV1(Network):
    """MobileNet 1.0 for 224x224 images.

    `feats` begin after the second stride, with 128 channels at a quarter of H and W.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stage_channels = [128, 256, 512, 1024]

        stem = nn.Sequential(conv(3, 32, 3, 2), nn.BatchNorm2d(32))
        self.model = nn.ModuleList([stem])
        in_channels = 32
        for out_channels, stride in LAYERS:
            self.model.append(separable(in_channels, out_channels, stride))
            in_channels = out_channels

        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, dict]:
        feats = []
        preact_feats = []
        for number, layer in enumerate(self.model):
            preact = layer(x)
            x = F.relu(preact)
            if number in STAGE_ENDS:
                feats.append(x)
                preact_feats.append(preact)

        pooled = x.mean((2, 3))
        features = {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}
        return self.fc(pooled), features

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return [list(self.model[number].children())[-1] for number in STAGE_ENDS[1:]]
