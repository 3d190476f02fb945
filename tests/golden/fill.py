"""Weights and images that depend on nothing but names and shapes.

Two implementations of an architecture with equal state-dict keys get equal weights, so their logits
can be compared. The draws are NumPy's, which do not change between versions of PyTorch.
"""

from binascii import crc32

import numpy as np
import torch
from torch import Tensor, nn


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers in float64, from a generator seeded by the name."""
    generator = np.random.default_rng(crc32(name.encode()))
    return generator.standard_normal(shape)


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of an entry of a state dict, in float64.

    Convolutions and linear layers keep activations near unit variance. Batch norms are close to the
    identity.
    """
    noise = draw(key, shape)
    last = key.rsplit(".", 1)[-1]

    if last.endswith("running_var"):
        return 1 + 0.1 * np.abs(noise)
    if last.endswith("running_mean"):
        return 0.1 * noise
    if len(shape) > 1:
        fan_in = np.prod(shape[1:])
        return noise * np.sqrt(2 / fan_in)
    if last.endswith("weight"):
        return 1 + 0.1 * noise
    return 0.1 * noise


def fill(module: nn.Module) -> nn.Module:
    """Replace all weights and statistics of a module, in place; counters stay as they are.

    Values are rounded to the dtype of the module: fill in float32, then convert to float64.
    """
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                value = np.asarray(weight(key, tuple(tensor.shape)))
                tensor.copy_(torch.from_numpy(value).to(tensor.dtype))
    return module


def image(size: int) -> Tensor:
    """Two images (2,3,size,size) in float32."""
    return torch.from_numpy(draw("image", (2, 3, size, size))).float()
