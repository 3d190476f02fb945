"""A numbered augmentation of a user, and the fingerprint of images that it shows."""

import torch
from torch import Tensor

from edkd.dataset.augment import Augmentation, Normalize
from edkd.dataset.resident import Images, TrainLoader

CPU = torch.device("cpu")
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)


class Shift:
    """Brightness in steps; has the default repr."""

    num_views = 3

    def __init__(self, step: int) -> None:
        self.step = step

    def identity(self) -> str:
        return f"Shift({self.step})"

    def __call__(self, image: Tensor, number: Tensor) -> Tensor:
        return image + (self.step * number).byte()[:, None, None, None]


def fingerprint(*augmentations: Augmentation) -> str:
    """The fingerprint of the last view, of "weak" and "strong"."""
    image = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    images = Images(image, torch.tensor([0, 1]))
    views = dict(zip(("weak", "strong"), augmentations, strict=False))
    loader = TrainLoader(images, torch.arange(2), views, Normalize(MEAN, STD, CPU), 2, 1)
    return loader.fingerprint(list(views)[-1])
