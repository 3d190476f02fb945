"""Heads that map a stage of the student to logits: of feature maps, and of tokens."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = 4
"""A head lowers the resolution as the stages after its own do."""

_FINAL_GRID = 7
"""Rows of patches down to which tokens are merged."""

_ATTENTION_HEADS = 4
_STD = 0.02


def map_head(stage: int, channels: int, width: int, num_classes: int) -> nn.Sequential:
    """A head for feature maps (N,D,H,W): a separable convolution for each later stage.

    Args:
        stage: from 1 to 4.
        channels: D, which each convolution but the last doubles.
        width: channels before the pooling.
        num_classes: C, of its logits (N,C).
    """
    layers: list[nn.Module] = []
    inputs = channels
    for later in range(stage + 1, STAGES + 1):
        outputs = width if later == STAGES else 2 * inputs
        layers.append(_separable(inputs, outputs))
        inputs = outputs
    if not layers:
        layers.append(nn.Conv2d(channels, width, 1))

    head = nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, num_classes),
    )
    _initialise(head)
    return head


class TokenHead(nn.Module):
    """A head for tokens (N,T,D): merges patches down to a grid of 7x7, then runs blocks of a ViT.

    The first class token is classified, or the mean of the tokens where there is none.

    Args:
        stage: from 1 to 4; there are max(4 - stage, 1) blocks.
        dim: D.
        grid: (rows, columns) of the patches; the tokens before them are class tokens.
        width: of the blocks.
        num_classes: C, of its logits (N,C).
    """

    def __init__(
        self, stage: int, dim: int, grid: tuple[int, int], width: int, num_classes: int
    ) -> None:
        super().__init__()
        self.grid = grid
        number = max(int(math.log2(min(grid) / _FINAL_GRID)), 0)

        # Tokens get the width of the blocks; where patches are merged, the first merge does it.
        self.class_project = _projection(dim, width)
        self.patch_project = nn.Identity() if number else _projection(dim, width)
        self.merges = nn.ModuleList()
        for step in range(number):
            inputs = dim if step == 0 else width
            is_inner = step == 0 or step < number - 1
            self.merges.append(PatchMerging(inputs, width, ends_in_gelu=is_inner))

        depth = max(STAGES - stage, 1)
        self.blocks = nn.Sequential(*(_block(width) for _ in range(depth)))
        self.classifier = nn.Linear(width, num_classes)
        _initialise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (N,C) of tokens (N,T,D)."""
        number = tokens.shape[1] - self.grid[0] * self.grid[1]
        of_classes = self.class_project(tokens[:, :number])

        # Patches are (N,H,W,D) until the blocks.
        patches = self.patch_project(tokens[:, number:].unflatten(1, self.grid))
        for merge in self.merges:
            patches = merge(patches)

        x = self.blocks(torch.cat([of_classes, patches.flatten(1, 2)], 1))
        pooled = x[:, 0] if number else x.mean(1)
        return self.classifier(pooled)


class PatchMerging(nn.Module):
    """Each 2x2 patches become one: (N,H,W,D) -> (N,H/2,W/2,width); an odd side is padded.

    Args:
        dim: D.
        width: of the result.
        ends_in_gelu: whether a GELU follows.
    """

    def __init__(self, dim: int, width: int, ends_in_gelu: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduce = nn.Linear(4 * dim, width, bias=False)
        self.activate = nn.GELU() if ends_in_gelu else nn.Identity()

    def forward(self, patches: Tensor) -> Tensor:
        height, width = patches.shape[1:3]
        even = F.pad(patches, (0, 0, 0, width % 2, 0, height % 2))
        pairs = even.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        joined = pairs.permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.activate(self.reduce(self.norm(joined)))


def _projection(dim: int, width: int) -> nn.Module:
    return nn.Identity() if dim == width else nn.Linear(dim, width)


def _separable(channels: int, width: int) -> nn.Sequential:
    """Two separable 3x3 convolutions; the first halves the resolution."""
    return nn.Sequential(
        *_depthwise(channels, channels, stride=2),
        *_depthwise(channels, width, stride=1),
    )


def _depthwise(channels: int, width: int, stride: int) -> list[nn.Module]:
    """A 3x3 convolution of each channel, and one that mixes the channels."""
    each = nn.Conv2d(
        channels,
        channels,
        kernel_size=3,
        stride=stride,
        padding=1,
        groups=channels,
        bias=False,
    )
    mix = nn.Conv2d(channels, width, kernel_size=1, bias=False)
    return [each, mix, nn.BatchNorm2d(width), nn.ReLU()]


def _block(width: int) -> nn.Module:
    """A block of a ViT, with normalisation first and no dropout."""
    heads = math.gcd(_ATTENTION_HEADS, width)
    return nn.TransformerEncoderLayer(
        width,
        heads,
        dim_feedforward=4 * width,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )


def _initialise(head: nn.Module) -> None:
    """Convolutions from N(0, 2 / fan-out), linear layers from a truncated N(0, 0.02^2)."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.MultiheadAttention):
            nn.init.trunc_normal_(module.in_proj_weight, std=_STD)
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
