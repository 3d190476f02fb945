"""What every architecture of this package shares."""

import torch.nn as nn
from torch import Tensor

from edkd.errors import UserError


class Network(nn.Module):
    """A classifier whose forward also gives its features.

    `forward(x: (N,3,H,W)) -> (logits (N,C), features)`, features a dict with
        feats: list of (N,D,H,W), stem first (MobileNetV1 alone gives none for its stem);
        preact_feats: the same list before the last ReLU, empty where no ReLU ends a stage;
        pooled_feat: (N,D), what the head sees.

    The head is the last child that a subclass registers.
    """

    stage_channels: list[int]

    def get_stage_channels(self) -> list[int]:
        """Number of channels of each entry of `feats`."""
        return list(self.stage_channels)

    def get_feat_modules(self) -> nn.ModuleList:
        """All modules but the head, in order of use."""
        return nn.ModuleList(self.children())[:-1]

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The batch norms that end in `preact_feats[1:]`, one each. Raises UserError where there is no such norm."""
        raise UserError(f"{type(self).__name__} has no batch norm before each ReLU: choose another teacher")


class Stage(nn.Sequential):
    """Blocks in a row, each giving (output, the same before its last ReLU); gives the last block's pair."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for block in self:
            x, preact = block(x)
        return x, preact


def conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    """A convolution padded so that stride 1 keeps H and W."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias)


def init_convolutions(network: nn.Module) -> None:
    """Draw each convolution from N(0, 2 / (k * k * out_channels)), its bias 0 (He et al., ICCV 2015, fan-out form)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_head(head: nn.Linear) -> None:
    """Draw a classifier from N(0, 0.01 ** 2), its bias 0."""
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
