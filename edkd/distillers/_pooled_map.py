"""The feature map whose mean over height and width is the pooled feature of a network."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edkd.types import Output

Shape = tuple[int, ...]


def last_map(features: Mapping[str, Any]) -> Tensor:
    """The map (N,D,H,W) that is averaged for the classifier: `last_map`, or the last of `feats`."""
    return features["last_map"] if "last_map" in features else features["feats"][-1]


@torch.no_grad()
def shape_of_pooled_map(network: nn.Module, image_shape: tuple[int, int, int]) -> Shape | None:
    """The shape of `last_map`, if its mean is the pooled feature. Runs the network on two images.

    Args:
        network: under the contract of a model; its weights, statistics and mode stay.
        image_shape: (channels, height, width).

    Returns:
        (2,D,H,W); None where the pooled feature is no such mean, or there are no feature maps.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, *image_shape, generator=generator)
    parameter = next(network.parameters())

    mode = network.training
    network.eval()
    _, features = network(image.to(parameter))
    network.train(mode)
    if not features["feats"]:
        return None

    feature = last_map(features)
    mean = feature.mean((2, 3))
    pooled = features["pooled_feat"]
    is_same = mean.shape == pooled.shape and torch.allclose(mean, pooled, rtol=1e-3, atol=1e-4)
    return tuple(feature.shape) if is_same else None


def pooled_map(output: Output, has_map: bool) -> Tensor:
    """The map (N,D,H,W).

    Args:
        output: of a network.
        has_map: whether `shape_of_pooled_map` found one; without it, the pooled feature is a map
            of 1x1.
    """
    if has_map:
        return last_map(output.features)
    return output.features["pooled_feat"][:, :, None, None]
