"""What the batches and data sets of a user contain, and whether they can be used."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from edkd.errors import UserError

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

# Batches.


def checked(batch: Any, what: str, num_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """The image and the target of a batch.

    Args:
        what: the batch, for messages.
        num_classes: class numbers must be below it; None: there is no limit.

    Raises:
        UserError: the batch has another form.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise UserError(
            f"{what} is {described(batch)}; expected a pair (image, target); convert it in "
            "collate_fn or in the data set"
        )

    image, target = batch
    for part in (image, target):
        if not isinstance(part, Tensor):
            raise UserError(
                f"{what} has a part {described(part)}; expected a pair of tensors (image, target)"
            )

    shape = tuple(image.shape)
    if len(shape) < 2 or shape[0] == 0:
        raise UserError(
            f"images in {what} have the shape {shape}; expected (N, channels, height, width)"
        )
    _check_target(target, len(image), what, num_classes)
    return image, target


def _check_target(target: Tensor, size: int, what: str, num_classes: int | None) -> None:
    """Raise UserError if targets are neither class numbers nor class probabilities.

    Args:
        size: number of images.
        what: the batch, for messages.
    """
    shape = tuple(target.shape)
    is_soft = target.is_floating_point() and len(shape) == 2
    is_hard = target.dtype in INTEGERS and len(shape) == 1
    fits = shape[:1] == (size,)

    if not fits or not (is_soft or is_hard):
        raise UserError(
            f"targets in {what} are {target.dtype} of shape {shape} for {size} images; expected "
            "integer class numbers (N,) or floating-point class probabilities (N, number of "
            "classes)"
        )
    if is_hard:
        check_range(target, what, num_classes)
    elif num_classes not in (None, shape[1]):
        raise UserError(
            f"targets in {what} have {shape[1]} class probabilities, but there are {num_classes} "
            "classes"
        )


def check_range(target: Tensor, what: str, num_classes: int | None) -> None:
    """Raise UserError if a class number is not in [0, num_classes)."""
    lowest = int(target.min())
    highest = int(target.max())
    if lowest < 0:
        raise UserError(f"{what} has class number {lowest}; class numbers start at 0")
    if num_classes is not None and highest >= num_classes:
        raise UserError(
            f"{what} has class number {highest}, but there are {num_classes} classes, numbered "
            "from 0; correct the targets or num_classes"
        )


def described(value: Any) -> str:
    """A value's form for a message."""
    kind = type(value).__name__
    if isinstance(value, dict):
        keys = ", ".join(str(key) for key in value)
        return f"a dictionary with the keys {keys}"
    if isinstance(value, (tuple, list)):
        return f"a {kind} of {len(value)} parts"
    return f"of type {kind}"


# Data sets.


def dataset_classes(dataset: Any) -> tuple[str, ...]:
    """The names in `classes` of a data set, or of the one that it is a subset of; else ()."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset

    names = getattr(dataset, "classes", None)
    if _changes_targets(dataset) or not isinstance(names, (list, tuple)):
        return ()
    return tuple(str(name) for name in names)


def dataset_targets(dataset: Any) -> Tensor | None:
    """The class number of each item (len(dataset),), if they can be read without the images."""
    if isinstance(dataset, Subset):
        targets = dataset_targets(dataset.dataset)
        if targets is None:
            return None
        return targets[torch.as_tensor(dataset.indices)]

    given = getattr(dataset, "targets", None)
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        given = dataset.tensors[1]
    if given is None or _changes_targets(dataset):
        return None

    try:
        targets = torch.as_tensor(given).cpu()
    except (TypeError, ValueError, RuntimeError):
        return None
    expected = (len(dataset),)
    if targets.dtype not in INTEGERS or targets.shape != expected:
        return None
    return targets.long()


def _changes_targets(dataset: Any) -> bool:
    """Whether items have other targets than `targets` has, as with torchvision's data sets."""
    return getattr(dataset, "target_transform", None) is not None
