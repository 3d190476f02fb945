"""Shapes of features, found by running a network on fake tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn


class FeatureShapes(NamedTuple):
    """Shapes for a batch of one image."""

    feats: list[tuple[int, ...]]
    """(1,D,H,W) each, stem first."""
    preact_feats: list[tuple[int, ...]]
    pooled_feat: tuple[int, ...]
    """(1,D)."""
    tokens: Sequence[tuple[int, ...]] = ()
    """(1,T,D) each, of transformers: the entries of `feats` with their class tokens."""


def feature_shapes(network: nn.Module, image_shape: tuple[int, int, int]) -> FeatureShapes:
    """Run a network on a fake image; its weights, statistics and mode stay as they are.

    Args:
        network: `forward(x: (N,3,H,W)) -> (logits, features)`.
        image_shape: (channels, height, width).
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = network.training
    network.eval()
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            image = torch.empty(1, *image_shape)
            _, features = network(image)
    finally:
        network.train(mode)

    return FeatureShapes(
        feats=[tuple(feature.shape) for feature in features["feats"]],
        preact_feats=[tuple(feature.shape) for feature in features["preact_feats"]],
        pooled_feat=tuple(features["pooled_feat"].shape),
        tokens=[tuple(feature.shape) for feature in features.get("tokens", ())],
    )
