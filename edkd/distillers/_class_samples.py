"""Features of a limited number of images of each class, gathered batch by batch."""

import torch
import torch.nn.functional as F
from torch import Tensor


class ClassSamples:
    """The first features of each class, in the order in which they are added.

    Memory: num_classes * size * D numbers, from the first call of `add` on.

    Args:
        num_classes: C.
        size: S, samples of a class that are kept.
    """

    def __init__(self, num_classes: int, size: int) -> None:
        self.num_classes = num_classes
        self.size = size
        self.features = torch.empty(0)
        """(C,S,D); rows of a class from its `number` on are 0."""
        self.number = torch.empty(0, dtype=torch.long)
        """(C,)."""

    def add(self, features: Tensor, target: Tensor) -> None:
        """Keep those features whose class is not full.

        Args:
            features: (N,D).
            target: (N,), class numbers.
        """
        if not self.number.numel():
            shape = (self.num_classes, self.size, features.shape[1])
            self.features = features.new_zeros(shape)
            self.number = target.new_zeros(self.num_classes)

        # The place of each image among those of its class.
        is_class = F.one_hot(target, self.num_classes)
        before = is_class.cumsum(0) - is_class
        place = self.number[target] + before.gather(1, target[:, None]).squeeze(1)

        fits = place < self.size
        self.features[target[fits], place[fits]] = features[fits]
        self.number = (self.number + is_class.sum(0)).clamp(max=self.size)
