"""A feature of each training image, kept over the steps, and the choice of images to compare."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edkd.errors import UserError

DENSE_RATIO = 16
"""Up to this number of images for each compared one, a product with the whole bank is used.

On a CPU, copies of rows take five times as long at a ratio of 6, and as long at 40. The limit is
lower, as the product needs memory for a number for each image of the batch and each row.
"""

GATHERED_AT_ONCE = 2**25
"""Largest number of elements of a bank in one copy; 128 MiB in float32."""


class MemoryBank(nn.Module):
    """Features of norm 1, a row for each training image, that follow the network's features.

    Args:
        num_images: rows.
        width: D, features of a row.
        momentum: share of the old row that an update keeps, in [0, 1].
    """

    rows: Tensor

    def __init__(self, num_images: int, width: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        bound = math.sqrt(3 / width)  # so that the norm of a row is near 1
        rows = torch.empty(num_images, width).uniform_(-bound, bound)
        self.register_buffer("rows", rows)

    def similarities(self, anchor: Tensor, index: Tensor) -> Tensor:
        """The dot product of each feature with rows of the bank, (N,M).

        Later updates of the bank do not change its gradient. No tensor (N,M,D) is made.

        Args:
            anchor: (N,D).
            index: (N,M), numbers of rows.
        """
        rows = self.rows.clone()

        # A row that is chosen twice gets equal gradients, whose sum has no order.
        if len(rows) <= DENSE_RATIO * index.shape[1]:
            return (anchor @ rows.T).gather(1, index)

        # Each part gathers its rows again in the backward pass, so that they are not kept.
        size = max(1, GATHERED_AT_ONCE // (index.shape[1] * anchor.shape[1]))
        parts = zip(anchor.split(size), index.split(size), strict=True)
        found = [
            checkpoint(_dot, part, rows, chosen, use_reentrant=False, preserve_rng_state=False)
            for part, chosen in parts
        ]
        return torch.cat(found)

    @torch.no_grad()
    def update(self, index: Tensor, features: Tensor) -> None:
        """Move rows towards new features.

        Args:
            index: (N,), numbers of rows.
            features: (N,D), of norm 1.
        """
        mixed = self.momentum * self.rows[index] + (1 - self.momentum) * features
        self.rows.index_copy_(0, index, F.normalize(mixed).to(self.rows.dtype))


class Negatives(nn.Module):
    """Draws training images of other classes, on the device, with replacement.

    Args:
        targets: (num_images,), class numbers.

    Raises:
        UserError: all images are of one class.
    """

    order: Tensor
    begin: Tensor
    size: Tensor

    def __init__(self, targets: Tensor) -> None:
        super().__init__()
        counts = targets.bincount()
        if counts.max() == len(targets):
            raise UserError(
                f"the {len(targets)} training images are of one class, so that none has a "
                "negative; use images of two classes or more"
            )

        # The images in the order of their classes, and where the class of each image is in it.
        ends = counts.cumsum(0)
        self.register_buffer("order", targets.argsort(stable=True), persistent=False)
        self.register_buffer("begin", (ends - counts)[targets], persistent=False)
        self.register_buffer("size", counts[targets], persistent=False)

    def of_other_classes(self, index: Tensor, number: int) -> Tensor:
        """Images of other classes than those of a batch, (N,number).

        Args:
            index: (N,), the images of the batch.
            number: for each.
        """
        begin = self.begin[index][:, None]
        size = self.size[index][:, None]

        # A place among the others, which lie before and after the own class.
        place = _uniform(len(self.order) - size, number)
        place = place + size * (place >= begin)
        return self.order[place]

    def of_same_class(self, index: Tensor) -> Tensor:
        """An image of the class of each image, perhaps itself, (N,)."""
        place = self.begin[index] + _uniform(self.size[index][:, None], 1)[:, 0]
        return self.order[place]


def _uniform(limit: Tensor, number: int) -> Tensor:
    """Whole numbers in [0, limit) for each row, (N,number), from limits (N,1)."""
    share = torch.rand(len(limit), number, device=limit.device)
    drawn = (share * limit).long()
    return torch.minimum(drawn, limit - 1)  # the product may be rounded up


def _dot(anchor: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    return torch.einsum("nd,nmd->nm", anchor, F.embedding(index, rows))
