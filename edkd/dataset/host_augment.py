"""RandAugment for image folders: random operations on each image, made where it is read.

E. D. Cubuk, B. Zoph, J. Shlens, Q. V. Le, "RandAugment: Practical automated data augmentation with
a reduced search space", NeurIPS 2020, arXiv:1909.13719.
"""

from collections.abc import Sequence
from typing import Any

from edkd.errors import UserError


def with_randaugment(transforms: Sequence[Any], cfg: Any) -> list[Any]:
    """Training transforms with RandAugment before the last one, as DATASET.RANDAUGMENT says.

    Args:
        transforms: of torchvision; the last one makes a tensor of a PIL image.
        cfg: DATASET.RANDAUGMENT is read.

    Raises:
        UserError: the value is not two whole numbers, the first of them at least 1.

    Example:
        train = v2.Compose(with_randaugment([v2.RandomCrop(32), v2.PILToTensor()], cfg))
    """
    given = list(cfg.DATASET.RANDAUGMENT)
    if not given:
        return list(transforms)

    is_whole = all(float(value).is_integer() for value in given)
    if len(given) != 2 or not is_whole or given[0] < 1:
        raise UserError(
            f"DATASET.RANDAUGMENT is {given}, but must be two whole numbers, the operations per "
            "image and their magnitude, such as [2, 9]; or [] for none"
        )

    from torchvision.transforms import v2

    number, magnitude = (int(value) for value in given)
    *first, last = transforms
    return [*first, v2.RandAugment(number, magnitude), last]


def check_randaugment(transform: Any, cfg: Any) -> None:
    """Raise UserError where DATASET.RANDAUGMENT is set, but a transform has no RandAugment.

    Args:
        transform: a `Compose` of torchvision; None for images that stay on the device.
    """
    if not cfg.DATASET.RANDAUGMENT:
        return
    names = [type(part).__name__ for part in getattr(transform, "transforms", [])]
    if "RandAugment" in names:
        return
    raise UserError(
        f"DATASET.RANDAUGMENT has no effect on DATASET.TYPE {cfg.DATASET.TYPE}; it is for images "
        "read from files in each epoch, as with folder, imagenet and tiny_imagenet; set it to []"
    )
