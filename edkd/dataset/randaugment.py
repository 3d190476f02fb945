"""The random numbers of RandAugment for numbered views: the operations, their amounts, a box.

E. D. Cubuk, B. Zoph, J. Shlens, Q. V. Le, "RandAugment: Practical automated data augmentation with
a reduced search space", NeurIPS 2020, arXiv:1909.13719.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

PUBLISHED = "published"
TORCHVISION = "torchvision"
FORMS = (PUBLISHED, TORCHVISION)

NUM_OPERATIONS = 2
"""Operations for each image, one after the other."""

OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)

LARGEST_BOX = 0.5
"""Side of the largest grey box, as a share of the image's width."""
GREY = (125, 123, 114)
"""Of the box, as red, green and blue."""

_SIZE_FREE = {
    PUBLISHED: {
        "ShearX": (-0.3, 0.3),
        "ShearY": (-0.3, 0.3),
        "Rotate": (-30.0, 30.0),
        "Brightness": (0.05, 0.95),
        "Color": (0.05, 0.95),
        "Contrast": (0.05, 0.95),
        "Sharpness": (0.05, 0.95),
        "Posterize": (4.0, 8.0),
        "Solarize": (0.0, 256.0),
    },
    TORCHVISION: {
        "ShearX": (-0.1, 0.1),
        "ShearY": (-0.1, 0.1),
        "Rotate": (-10.0, 10.0),
        "Brightness": (0.7, 1.3),
        "Color": (0.7, 1.3),
        "Contrast": (0.7, 1.3),
        "Sharpness": (0.7, 1.3),
        "Posterize": (7.0, 7.0),
        "Solarize": (170.0, 170.0),
    },
}
"""Smallest and largest amount of an operation, as `Draws.amount`; torchvision's at magnitude 10 of
31."""

_TRANSLATION = 0.3
"""Largest published shift, as a share of the image's size."""
_TRANSLATION_TORCHVISION = 150 / 331 * 10 / 30
"""Of torchvision, which rounds the pixels towards zero."""


class Draws(NamedTuple):
    """What is done with each image of a batch."""

    operation: Tensor
    """(N,2), places in OPERATIONS."""
    amount: Tensor
    """(N,2), float32: a slope for the shears; pixels, to the right and down, for the translations;
    degrees counter-clockwise; a factor for Brightness to Sharpness; bits; a threshold for Solarize;
    0 for the others."""
    box: Tensor
    """(N,4): left, top, right and bottom pixel of a grey box, all within it; -1: none."""


def draw(form: str, index: Tensor, number: Tensor, height: int, width: int) -> Draws:
    """The draws of numbered views, which depend on the number of the image and of the view alone.

    Args:
        form: "published" (Jin et al., CVPR 2023, and Zhang et al., ACM MM 2024): each operation has
            a random amount, and a grey box of a random size follows. "torchvision": each operation
            has magnitude 10 of 31 and a random sign, as in its RandAugment(2, 10).
        index: (N,), image numbers.
        number: (N,), view numbers.
        height: of the images, in pixels.
        width: the same.

    Example:
        >>> index = torch.tensor([7])
        >>> drawn = draw(TORCHVISION, index, torch.tensor([9]), height=32, width=32)
        >>> [OPERATIONS[place] for place in drawn.operation[0]]
        ['ShearY', 'Color']
        >>> drawn.amount
        tensor([[0.1000, 1.3000]])
    """
    random = uniforms(index, number, 2 * NUM_OPERATIONS + 3)
    operation = (random[:, :NUM_OPERATIONS] * len(OPERATIONS)).long()

    share = random[:, NUM_OPERATIONS : 2 * NUM_OPERATIONS]
    if form == TORCHVISION:
        share = share.round()

    limits = _limits(form, height, width, index.device)
    low, high = limits[operation].unbind(-1)
    amount = torch.lerp(low, high, share)

    box = _box(random[:, -3:], height, width)
    if form == TORCHVISION:
        box = torch.full_like(box, -1)
    return Draws(operation, amount, box)


def uniforms(index: Tensor, number: Tensor, count: int) -> Tensor:
    """Random numbers in [0, 1) from a hash of two numbers, (N,count), float32.

    The hash is the output function of SplitMix64 (G. L. Steele, D. Lea, C. H. Flood, "Fast
    Splittable Pseudorandom Number Generators", OOPSLA 2014), applied to a counter.

    Args:
        index: (N,), int64.
        number: (N,), int64.
        count: of the random numbers for each pair.
    """
    start = _mixed(_mixed(index.long()) + number.long())
    counter = torch.arange(1, count + 1, device=index.device)
    bits = _mixed(start[:, None] + counter * _signed(0x9E3779B97F4A7C15))
    return _shifted(bits, 40).float() / 2**24


def _mixed(bits: Tensor) -> Tensor:
    """A bijection of 64 bits in which each bit of the input changes half of the output."""
    bits = bits + _signed(0x9E3779B97F4A7C15)
    bits = (bits ^ _shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shifted(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Shifted to the right, with zeros from the left; torch's own shift repeats the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _signed(word: int) -> int:
    """A word of 64 bits as int64 holds it."""
    return word - (1 << 64) if word >> 63 else word


@functools.cache  # a CUDA graph cannot contain a copy from the host
def _limits(form: str, height: int, width: int, device: torch.device) -> Tensor:
    """The smallest and the largest amount of each operation, (14,2)."""
    limits = dict(_SIZE_FREE[form])
    for name, size in (("TranslateX", width), ("TranslateY", height)):
        largest = _TRANSLATION * size
        if form == TORCHVISION:
            largest = float(int(_TRANSLATION_TORCHVISION * size))
        limits[name] = (-largest, largest)
    rows = [limits.get(name, (0.0, 0.0)) for name in OPERATIONS]
    return torch.tensor(rows, device=device)


def _box(random: Tensor, height: int, width: int) -> Tensor:
    """Boxes (N,4) around random pixels, from random numbers (N,3)."""
    side = random[:, 0] * LARGEST_BOX * width
    left = (random[:, 1] * width - side / 2).clamp(min=0).long()
    top = (random[:, 2] * height - side / 2).clamp(min=0).long()
    right = (left + side).clamp(max=width).long()
    bottom = (top + side).clamp(max=height).long()
    return torch.stack([left, top, right, bottom], 1)
