"""Logits of the cells of a grid over the map that a network averages for its classifier."""

import torch
from torch import Tensor, nn

from edkd.distillers._pooled_map import last_map
from edkd.errors import UserError


def cell_logits(feature: Tensor, classifier: nn.Module, grid: int) -> Tensor:
    """The classifier's logits for the mean of each cell of a grid, (N, grid^2, C).

    Cells are those of adaptive average pooling: from floor(i * H / grid) to
    ceil((i + 1) * H / grid). On a map that is smaller than the grid, cells repeat.

    Args:
        feature: (N,D,H,W).
        classifier: (...,D) -> (...,C).
        grid: cells in each direction.
    """
    rows = _shares(feature.shape[2], grid, feature)
    columns = _shares(feature.shape[3], grid, feature)

    # A product, as the gradient of adaptive pooling is not deterministic on a GPU.
    means = torch.einsum("ndhw,ih,jw->nijd", feature, rows, columns)
    return classifier(means.flatten(1, 2))


def _shares(size: int, grid: int, like: Tensor) -> Tensor:
    """The share of each of `size` positions in the mean of each cell, (grid, size)."""
    cell = torch.arange(grid, device=like.device)[:, None]
    position = torch.arange(size, device=like.device)
    start = cell * size // grid
    end = ((cell + 1) * size + grid - 1) // grid

    inside = ((position >= start) & (position < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


@torch.no_grad()
def check_cells(
    network: nn.Module, classifier: nn.Linear, image_shape: tuple[int, ...], method: str
) -> None:
    """Raise UserError where the classifier does not see the mean of the last map alone.

    Runs the network on one image, in evaluation mode.

    Args:
        image_shape: (channels, height, width).
        method: that needs it, for messages.
    """
    weight = classifier.weight
    pixels = torch.linspace(-1.0, 1.0, image_shape[0] * image_shape[1] * image_shape[2])
    image = pixels.reshape(1, *image_shape).to(weight.device, weight.dtype)

    mode = network.training
    logits, features = network.eval()(image)
    network.train(mode)
    mean = last_map(features).mean((2, 3))
    if mean.shape[1] == classifier.in_features:
        pooled = features["pooled_feat"].flatten(1)
        if _is_close(mean, pooled) and _is_close(classifier(mean), logits):
            return

    own = getattr(network, "module", network)
    raise UserError(
        f"{method} applies the classifier of {type(own).__name__} to parts of its last feature "
        "map, but its logits are not the classifier of that map's mean; use another network, or "
        "return that map as `last_map` with its features"
    )


def _is_close(a: Tensor, b: Tensor) -> bool:
    largest = b.abs().max().clamp(min=1e-6)
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-3 * largest)
