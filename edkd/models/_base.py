"""What every architecture of this package shares."""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from edkd.errors import UserError
from edkd.paths import DATA_ROOT
from edkd.registry import MODELS


class Network(nn.Module):
    """A classifier that also returns its features.

    `forward(x: (N,3,H,W)) -> (logits (N,C), features)`, where features is a dictionary:
        feats: list of (N,D,H,W), stem first (MobileNetV1 has none for its stem);
        preact_feats: the same list before the last ReLU; empty if no ReLU ends a stage;
        pooled_feat: (N,D), the input of the head;
        last_map: (N,D,H,W), whose mean over H and W is pooled_feat; absent where the last entry of
            feats is that map.

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
        """The batch norm before the ReLU of each entry of `preact_feats[1:]`.

        Raises:
            UserError: the architecture has no such batch norms.
        """
        name = type(self).__name__
        raise UserError(f"{name} has no batch norm before each ReLU: choose another teacher")


class Stage(nn.Sequential):
    """Blocks in a row. Each returns (output, the same before its last ReLU), as the stage does."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for block in self:
            x, preact = block(x)
        return x, preact


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Conv2d:
    """A convolution whose padding keeps H and W at stride 1."""
    padding = kernel // 2

    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride,
        padding,
        groups=groups,
        bias=bias,
    )


def init_convolutions(network: nn.Module) -> None:
    """Draw convolutions from N(0, 2 / (k * k * out_channels)), biases 0.

    This is the fan-out form of He et al., ICCV 2015.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_head(head: nn.Linear) -> None:
    """Draw a classifier from N(0, 0.01^2), bias 0."""
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)


def add_model(
    family: str,
    name: str,
    constructor: Callable[..., nn.Module],
    weights: str | None = None,
    **arguments: Any,
) -> None:
    """Register a constructor with some of its arguments.

    Args:
        family: of the images that the model is made for, as "cifar".
        name: how a configuration names the model.
        constructor: takes `num_classes`.
        weights: path of the published weights; None if there are none.
        arguments: passed to the constructor.
    """
    filled: Any = functools.partial(constructor, **arguments)

    # Messages name the place where the constructor is defined.
    filled.__module__ = constructor.__module__
    filled.__qualname__ = constructor.__qualname__
    MODELS.add(name, filled, family=family, weights=weights)


def weights_path(*parts: str) -> str:
    """A path below download_ckpts/; the file need not exist."""
    return str(DATA_ROOT.joinpath("download_ckpts", *parts))


def cifar_weights(name: str) -> str:
    """Path of a published teacher for CIFAR-100."""
    return weights_path("cifar_teachers", f"{name}_vanilla", "ckpt_epoch_240.pth")
