"""DeiT with a distillation token, for images of 32x32.

H. Touvron, M. Cord, M. Douze, F. Massa, A. Sablayrolles, H. Jegou, "Training data-efficient image
transformers & distillation through attention", ICML 2021, arXiv:2012.12877.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edkd.models._base import add_model
from edkd.models._fixed_size import with_fixed_size

IMAGE_SIZE = 32

_EPSILON = 1e-6
_STD = 0.02


class Sizes(NamedTuple):
    """Of a transformer."""

    patch: int
    """Height and width of a patch, in pixels."""
    width: int
    """Of a token."""
    depth: int
    """Number of blocks."""
    heads: int
    """Of the attention in each."""


class DeiT(nn.Module):
    """A vision transformer with a class token and a distillation token.

    `forward(x: (N,3,32,32)) -> logits (N,C)`, the mean of both tokens' logits. In training, after
    `set_distilled_training()`, it returns both: those of the class token first.

    Args:
        sizes: of the transformer.
        num_classes: C.
    """

    def __init__(self, sizes: Sizes, num_classes: int) -> None:
        super().__init__()
        width = sizes.width
        patches = (IMAGE_SIZE // sizes.patch) ** 2

        self.patch_embed = nn.Conv2d(3, width, sizes.patch, sizes.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 2 + patches, width))

        blocks = [Block(width, sizes.heads) for _ in range(sizes.depth)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width, _EPSILON)
        self.head = nn.Linear(width, num_classes)
        self.head_dist = nn.Linear(width, num_classes)

        self.distilled_training = False
        self._draw()

    def _draw(self) -> None:
        """First weights: truncated N(0, 0.02^2), biases 0; the convolution has torch's."""
        for token in (self.cls_token, self.dist_token, self.pos_embed):
            nn.init.trunc_normal_(token, std=_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_STD)
                nn.init.zeros_(module.bias)

    def set_distilled_training(self, enable: bool = True) -> None:
        """Whether the logits of both tokens are returned in training."""
        self.distilled_training = enable

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (N,C) for images (N,3,H,W): the mean of both tokens.

        In training, after `set_distilled_training`, those of the class token and those of the
        distillation token.
        """
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        number = x.shape[0]
        of_class = self.cls_token.expand(number, -1, -1)
        of_teacher = self.dist_token.expand(number, -1, -1)

        tokens = torch.cat([of_class, of_teacher, patches], 1)
        tokens = self.norm(self.blocks(tokens + self.pos_embed))

        logits = self.head(tokens[:, 0])
        logits_dist = self.head_dist(tokens[:, 1])
        if self.distilled_training and self.training:
            return logits, logits_dist
        return (logits + logits_dist) / 2


class Block(nn.Module):
    """Attention and two linear layers, each on normalised tokens (N,T,D) and added to them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, _EPSILON)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, _EPSILON)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Attention of tokens (N,T,D) to one another, in several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        # (N,T,3D) -> three of (N,heads,T,D/heads)
        parts = self.qkv(x).unflatten(2, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


def deit(sizes: Sizes, num_classes: int) -> nn.Module:
    """A DeiT; it resizes images of another size to 32x32."""
    return with_fixed_size(DeiT(sizes, num_classes), (IMAGE_SIZE, IMAGE_SIZE))


for _name, _sizes in (
    ("deit_tiny_p4", Sizes(patch=4, width=192, depth=12, heads=3)),
    ("deit_micro_p8", Sizes(patch=8, width=64, depth=4, heads=4)),
):
    add_model("cifar", _name, deit, sizes=_sizes)
