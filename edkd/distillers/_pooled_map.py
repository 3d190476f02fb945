"""The feature map whose mean over height and width is the pooled feature of a network."""

import torch
from torch import Tensor, nn

from edkd.types import Output

LAST = "feats"
BEFORE_RELU = "preact_feats"
NONE = "pooled_feat"


@torch.no_grad()
def find_pooled_map(network: nn.Module, image_shape: tuple[int, int, int]) -> str:
    """Which of a network's features gives the map, found by running it on two images.

    Args:
        network: under the contract of a model; its weights, statistics and mode stay.
        image_shape: (channels, height, width).

    Returns:
        "feats": the last feature map; "preact_feats": the last one before a ReLU, after that ReLU;
        "pooled_feat": neither, so that the pooled feature is a map of 1x1.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, *image_shape, generator=generator)
    parameter = next(network.parameters())

    mode = network.training
    network.eval()
    output = Output(*network(image.to(parameter)))
    network.train(mode)

    pooled = output.features["pooled_feat"]
    for kind in (LAST, BEFORE_RELU):
        if not output.features[kind]:
            continue
        mean = pooled_map(output, kind).mean((2, 3))
        if mean.shape == pooled.shape and torch.allclose(mean, pooled, rtol=1e-3, atol=1e-4):
            return kind
    return NONE


def pooled_map(output: Output, kind: str) -> Tensor:
    """The map (N,D,H,W).

    Args:
        output: of a network.
        kind: from `find_pooled_map`.
    """
    features = output.features
    if kind == LAST:
        return features[LAST][-1]
    if kind == BEFORE_RELU:
        return features[BEFORE_RELU][-1].relu()
    return features[NONE][:, :, None, None]
