"""Strong views: the weak view of an image after RandAugment.

For methods with two views of each image. Images on the device have a finite, numbered set of them,
so that the teacher's logits can be cached; images that are read for each batch have new ones in
each epoch.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edkd.dataset._base import WEAK
from edkd.dataset.augment import Augmentation
from edkd.dataset.operations import augmented, boxed
from edkd.dataset.randaugment import FORMS, OPERATIONS, PUBLISHED, draw, uniforms
from edkd.keys import Key

STRONG = "strong"
"""Name of the view."""

KEYS = {
    "DATASET.STRONG_VIEWS": Key(
        50,
        "number of strong views of an image, for methods with two views; images that are read for "
        "each batch have a new one in each epoch",
        low=1,
        high=2**20,
    ),
    "DATASET.STRONG_FORM": Key(
        PUBLISHED,
        "RandAugment of the strong views; published: as in the code of MLKD and CRLD, with random "
        "amounts and a grey box; torchvision: its RandAugment(2, 10)",
        choices=FORMS,
    ),
}


class StrongViews:
    """A weak view of each image, then two random operations; see `randaugment.draw`.

    View k of image i is decided by i and k alone, so that it can be made again.

    Args:
        weak: makes the view that the operations change.
        num_views: strong views of an image.
        form: of the operations.
    """

    per_image = True

    def __init__(self, weak: Augmentation, num_views: int, form: str = PUBLISHED) -> None:
        self.weak = weak
        self.num_views = num_views
        self.form = form

    def identity(self) -> str:
        """The parameters as text."""
        return f"{type(self).__name__}({self.weak.identity()}, {self.num_views}, {self.form})"

    def __call__(self, image: Tensor, number: Tensor, index: Tensor) -> Tensor:
        """Make one view of each image.

        Args:
            image: (N,3,H,W), uint8.
            number: (N,), in [0, num_views).
            index: (N,), image numbers.

        Returns:
            (N,3,H,W), uint8.
        """
        # `draw` gets no view numbers below 0, so the weak view is independent of the operations.
        share = uniforms(index, -1 - number, 1)[:, 0]
        weak = self.weak(image, (share * self.weak.num_views).long())
        return augmented(weak, draw(self.form, index, number, *image.shape[2:]))


def with_strong(
    augmentations: Mapping[str, Augmentation], channels: int, cfg: Any
) -> dict[str, Augmentation]:
    """Views of images on the device, with "strong" made of "weak" if it is not among them.

    Args:
        augmentations: the training views by name.
        channels: of the images; RandAugment needs three.
        cfg: DATASET.STRONG_VIEWS and STRONG_FORM are read.
    """
    views: dict[str, Any] = dict(augmentations)
    weak: Any = views.get(WEAK)
    is_usual = isinstance(weak, Augmentation) and not getattr(weak, "per_image", False)
    if STRONG not in views and is_usual and channels == 3:
        views[STRONG] = StrongViews(weak, cfg.DATASET.STRONG_VIEWS, cfg.DATASET.STRONG_FORM)
    return views


def strengthened(image: Tensor, seed: int, form: str) -> Tensor:
    """One image after RandAugment, made where it is read.

    Args:
        image: (3,H,W), uint8.
        seed: decides the operations.
        form: see `randaugment.draw`.
    """
    draws = draw(form, torch.tensor([seed]), torch.tensor([0]), *image.shape[1:])
    steps = zip(draws.operation[0].tolist(), draws.amount[0].tolist(), strict=True)
    for place, amount in steps:
        image = changed(image, OPERATIONS[place], amount)
    return boxed(image[None], draws.box)[0]


def changed(image: Tensor, operation: str, amount: float) -> Tensor:
    """Images (...,3,H,W), uint8, after one operation of torchvision.

    Args:
        operation: one of OPERATIONS.
        amount: see `Draws`.
    """
    from torchvision.transforms.v2 import functional as F

    unmoved: dict[str, Any] = dict(angle=0.0, translate=[0, 0], scale=1.0, shear=[0.0, 0.0])
    slope = math.degrees(math.atan(amount))
    changes = {
        "Identity": lambda: image,
        "ShearX": lambda: F.affine(image, **unmoved | dict(shear=[slope, 0.0], center=[0, 0])),
        "ShearY": lambda: F.affine(image, **unmoved | dict(shear=[0.0, slope], center=[0, 0])),
        "TranslateX": lambda: F.affine(image, **unmoved | dict(translate=[amount, 0.0])),
        "TranslateY": lambda: F.affine(image, **unmoved | dict(translate=[0.0, amount])),
        "Rotate": lambda: F.rotate(image, amount),
        "Brightness": lambda: F.adjust_brightness(image, amount),
        "Color": lambda: F.adjust_saturation(image, amount),
        "Contrast": lambda: F.adjust_contrast(image, amount),
        "Sharpness": lambda: F.adjust_sharpness(image, amount),
        "Posterize": lambda: F.posterize(image, int(amount)),
        "Solarize": lambda: F.solarize(image, amount) if amount <= 255 else image,
        "AutoContrast": lambda: F.autocontrast(image),
        "Equalize": lambda: F.equalize(image),
    }
    return changes[operation]()
