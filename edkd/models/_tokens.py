"""The stages of a transformer: the blocks whose outputs are features, as tokens and as maps.

Tokens are (N,T,D), with tokens for classes and the like before those of the patches, or (N,H,W,D).
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

Grid = tuple[int, int]
"""Rows and columns of the patches that an image is cut into."""

_MOST_CLASS_TOKENS = 16


class Call(NamedTuple):
    """A call of a module during a forward pass."""

    name: str
    """Of the module."""
    number: int
    """From 1: a module may run several times."""


class Block(NamedTuple):
    """A call that may be one of a block of a transformer."""

    call: Call
    kind: type
    """Of the module."""
    input: Tensor
    output: Tensor


def token_stages(blocks: Sequence[Block], patches: Tensor) -> list[Block]:
    """The blocks that end a stage.

    Blocks are the outermost modules of a kind that runs several times and returns tokens, each on
    the output of the one before, or on fewer patches. Where the number of patches falls, as in
    Swin, a stage ends with the last block at each number. Otherwise there are four stages, which
    end after 1/6, 1/3, 5/6 and all of the blocks, as for a ViT in OFA-KD.

    Args:
        blocks: in the order in which they ended.
        patches: (N,D,H,W), what the network cuts an image into.

    Returns:
        In order; empty where there are no such blocks.
    """
    found = [each for each in blocks if _are_tokens(each.output, patches)]
    numbers = Counter(each.kind for each in found)
    repeated = [each for each in found if numbers[each.kind] > 1]

    names = {each.call.name for each in repeated}
    trunk = [each for each in repeated if not names.intersection(_parents(each.call.name))]
    if not all(_follows(b, a) for a, b in itertools.pairwise(trunk)):
        return []

    last_of_size = {each.output.shape[1:-1]: each for each in trunk}
    if len(last_of_size) > 1:
        return list(last_of_size.values())
    return [trunk[position - 1] for position in _ends(len(trunk))]


def features_of(
    outputs: Sequence[Tensor], pooled: Tensor | None, grid: Grid | None
) -> dict[str, Any]:
    """`feats`, those of transformers also as `tokens`; `pooled_feat` if there is one."""
    feats = list(outputs)
    features: dict[str, Any] = {}
    if grid and outputs:
        feats = [as_map(output, grid) for output in outputs]
        features["tokens"] = [as_tokens(output) for output in outputs]
    features["feats"] = feats

    if pooled is not None:
        features["pooled_feat"] = pooled.flatten(1)
    elif feats:
        features["pooled_feat"] = feats[-1].mean((2, 3))
    return features


def as_tokens(output: Tensor) -> Tensor:
    """(N,T,D)."""
    return output.flatten(1, 2) if output.dim() == 4 else output


def as_map(output: Tensor, grid: Grid) -> Tensor:
    """(N,D,H,W), without the tokens that belong to no patch."""
    if output.dim() == 4:
        return output.permute(0, 3, 1, 2)
    height, width = grid
    number = height * width
    of_patches = output[:, output.shape[1] - number :]
    return of_patches.transpose(1, 2).unflatten(2, grid)


def _are_tokens(output: Tensor, patches: Tensor) -> bool:
    """Whether an output is the tokens of these patches, or of a coarser grid."""
    _, _, height, width = patches.shape
    if output.shape[0] != patches.shape[0]:
        return False

    if output.dim() == 3:
        of_classes = output.shape[1] - height * width
        return 0 <= of_classes <= _MOST_CLASS_TOKENS
    if output.dim() == 4:
        rows, columns = output.shape[1:3]
        difference = abs(columns * height - rows * width)
        return rows <= height and difference <= max(height, width) / 2
    return False


def _follows(block: Block, before: Block) -> bool:
    """Whether a block runs on the output of the one before it, or on another number of patches."""
    is_new_size = block.output.shape[1:-1] != before.output.shape[1:-1]
    return is_new_size or block.input is before.output


def _parents(name: str) -> list[str]:
    """The modules that contain one, by name."""
    parts = name.split(".")
    return [".".join(parts[:number]) for number in range(1, len(parts))]


def _ends(depth: int) -> list[int]:
    """The numbers of the blocks that end four stages, from 1; fewer where there are fewer."""
    ends: list[int] = []
    for share in (1 / 6, 1 / 3, 5 / 6, 1.0):
        after = ends[-1] if ends else 0
        ends.append(max(after + 1, round(share * depth)))
    return [end for end in ends if end <= depth]
