"""Random erasing: a box of an image is set to the mean of the data.

Z. Zhong, L. Zheng, G. Kang, S. Li, Y. Yang, "Random Erasing Data Augmentation", AAAI 2020,
arXiv:1708.04896.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

from edkd.dataset._base import with_images
from edkd.dataset.boxes import inside
from edkd.keys import Key
from edkd.types import Batch

KEYS = {
    "DATASET.RANDOM_ERASING": Key(
        0.0,
        "probability that a box of a training image is set to the mean of the data; 0: off",
        low=0.0,
        high=1.0,
        includes_high=True,
    ),
}

AREA = (0.02, 0.33)
"""Share of the image that a box covers, as in torchvision."""
RATIO = (0.3, 3.3)
"""Height of a box divided by its width, the same."""
TRIES = 10
"""Boxes that are drawn for an image; the first that is smaller than the image is used."""


class RandomErasing:
    """Erases one box in some of the images, with the distribution of torchvision's RandomErasing.

    All views of an image get the same box.

    Args:
        probability: for each image.
        height: of the images, in pixels.
        width: the same.
    """

    per_image: tuple[bool, ...] = (True,)
    not_numbered = "DATASET.RANDOM_ERASING makes new images in each epoch"

    def __init__(self, probability: float, height: int, width: int) -> None:
        self.probability = probability
        self.height = height
        self.width = width

    def draw(self, random: RandomState, number: int) -> tuple[Tensor, ...]:
        """A box for each of `number` images, (N,4), see `boxes.inside`; an empty one for none."""
        shape = (TRIES, number)
        pixels = self.height * self.width * random.uniform(*AREA, shape)
        ratio = np.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1]), shape))
        height = np.rint(np.sqrt(pixels * ratio))
        width = np.rint(np.sqrt(pixels / ratio))

        # Of the boxes that fit into an image, the first.
        fits = (height < self.height) & (width < self.width)
        first = (fits.argmax(0), np.arange(number))
        is_erased = (random.uniform(size=number) < self.probability) & fits.any(0)
        height = height[first] * is_erased
        width = width[first] * is_erased

        top = np.floor(random.uniform(size=number) * (self.height - height + 1))
        left = np.floor(random.uniform(size=number) * (self.width - width + 1))
        rows = np.stack([top, top + height]) / self.height
        columns = np.stack([left, left + width]) / self.width
        box = np.concatenate([rows, columns]).T
        return (torch.from_numpy(box.astype(np.float32)),)

    def apply(self, batch: Batch, numbers: Sequence[Tensor]) -> Batch:
        """The batch with these boxes erased: normalised images are 0 at the mean."""
        (box,) = numbers
        return with_images(batch, lambda image: erased(image, box))


def erased(image: Tensor, box: Tensor) -> Tensor:
    """Images (N,C,H,W) that are 0 within their boxes (N,4)."""
    mask = inside(box, *image.shape[2:])
    return image.clone().masked_fill_(mask[:, None], 0.0)  # in place: the layout stays
