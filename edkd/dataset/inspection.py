"""What the batches and data sets of a user contain, and whether they can be used."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from edkd.errors import UserError

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

TOLERANCE = 0.05
"""Deviation of the sum of class probabilities from 1 that counts as rounding."""

# Batches.

EXPECTED_BATCH = "expected a pair of tensors (image, target)"


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
            f"{what} is {described(batch)}; {EXPECTED_BATCH}; convert it in collate_fn or in the "
            "data set"
        )

    image, target = batch
    if not isinstance(image, Tensor):
        remedy = "; add torchvision.transforms.ToTensor()" if _has_pictures(image) else ""
        raise UserError(f"images in {what} are {described(image)}; {EXPECTED_BATCH}{remedy}")
    if not isinstance(target, Tensor):
        raise UserError(f"targets in {what} are {described(target)}; {EXPECTED_BATCH}")

    _check_image(image, what)
    _check_target(target, len(image), what, num_classes)
    return image, target


def with_clear_faults(batches: Iterable[Any], name: str) -> Iterator[Any]:
    """The batches of a loader; items that cannot be made into a batch raise UserError.

    Args:
        name: of the loader, for messages.
    """
    try:
        yield from batches
    except (TypeError, RuntimeError) as error:
        reason = _fault_of_items(" ".join(str(error).split()))
        if not reason:
            raise
        raise UserError(f"{name}: {reason}") from None


def _fault_of_items(text: str) -> str:
    """What an error of torch's collate function says about the items; "" for another error."""
    found = re.search(r"default_collate: .* found <class '([\w.]+)'>", text)
    if found and found[1].startswith("PIL."):
        return "the data set returns PIL images; add torchvision.transforms.ToTensor()"
    if found:
        return (
            f"the data set returns items of type {found[1]}; they must be tensors or numbers, or "
            "give a collate_fn"
        )

    sizes = re.search(
        r"stack expects each tensor to be equal size, but got (.*?) at .* and (.*?) at", text
    )
    if sizes:
        return (
            f"the items of a batch have different sizes, {sizes[1]} and {sizes[2]}; for images, "
            "add Resize and a crop"
        )
    return ""


def check_same_form(image: Tensor, first: tuple[int, ...], what: str) -> None:
    """Raise UserError if a batch has images of another form than those before it.

    Height and width may differ, the number of channels may not.

    Args:
        image: (N,C,H,W), or (N,D).
        first: shape of an image of the first batch, without N.
        what: the batch, for messages.
    """
    shape = tuple(image.shape[1:])
    if len(shape) != len(first) or shape[0] != first[0]:
        raise UserError(
            f"images in {what} have the shape {shape}, but {first} before; all images must have "
            "the same number of channels"
        )


def _check_image(image: Tensor, what: str) -> None:
    """Raise UserError if images are not finite floating-point numbers."""
    shape = tuple(image.shape)
    if len(shape) < 2 or shape[0] == 0:
        raise UserError(
            f"images in {what} have the shape {shape}; expected (N, channels, height, width)"
        )
    if not image.is_floating_point():
        raise UserError(
            f"images in {what} are {image.dtype}; expected floating-point numbers, normalised as "
            "for the training of the networks: add ToTensor() and Normalize(...), or use "
            "image.float() / 255"
        )

    # The sum is cheap; on an accelerator the check would wait for the device.
    if image.device.type == "cpu" and not image.sum().isfinite() and not image.isfinite().all():
        bad = image.flatten(1).isfinite().all(1).logical_not().nonzero().flatten().tolist()
        raise UserError(
            f"images in {what} have values that are not finite (image {bad[0]} of the batch, from "
            "0); correct the data"
        )


def check_target_form(target: Tensor, size: int, what: str) -> bool:
    """Raise UserError if targets are neither class numbers nor class probabilities.

    Only type and shape are looked at, which does not wait for a device.

    Args:
        size: number of images.
        what: the batch, for messages.

    Returns:
        Whether they are class probabilities.
    """
    shape = tuple(target.shape)
    is_soft = target.is_floating_point() and len(shape) == 2 and shape[1] > 1
    is_hard = target.dtype in INTEGERS and len(shape) == 1
    fits = shape[:1] == (size,)

    if not fits or not (is_soft or is_hard):
        remedy = _remedy(target) if fits else ""
        raise UserError(
            f"targets in {what} are {target.dtype} of shape {shape} for {size} images; expected "
            "integer class numbers (N,) or floating-point class probabilities (N, number of "
            f"classes){remedy}"
        )
    return is_soft


def _check_target(target: Tensor, size: int, what: str, num_classes: int | None) -> None:
    """Raise UserError if targets have another form, or values that are out of range."""
    is_soft = check_target_form(target, size, what)
    if not is_soft:
        check_range(target, what, num_classes)
        return

    if num_classes not in (None, target.shape[1]):
        raise UserError(
            f"targets in {what} have {target.shape[1]} class probabilities, but there are "
            f"{num_classes} classes"
        )
    _check_probabilities(target, what)


def _remedy(target: Tensor) -> str:
    """How to convert targets of a usual other form."""
    is_column = target.dim() == 2 and target.shape[1] == 1
    if is_column:
        return "; use target.squeeze(1).long()"
    if target.dim() == 2 and target.dtype in (*INTEGERS, torch.bool):
        return "; for one-hot targets, use target.float()"
    return "; use target.long()" if target.dim() == 1 else ""


def _check_probabilities(target: Tensor, what: str) -> None:
    """Raise UserError if rows of targets are not distributions, up to rounding."""
    sums = target.float().sum(1)
    is_distribution = (sums - 1).abs() < TOLERANCE
    lowest = target.min().item()
    if is_distribution.all() and lowest >= -TOLERANCE:
        return

    low, high = sums.aminmax()
    raise UserError(
        f"targets in {what} of shape {tuple(target.shape)} are not class probabilities: the lowest "
        f"is {lowest:.3g}, and the sums of the rows are {low:.3g} to {high:.3g} instead of 1; use "
        "softmax(1), or divide by the sums"
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
    if isinstance(value, Mapping):
        keys = ", ".join(str(key) for key in value)
        return f"a dictionary with the keys {keys}"
    if isinstance(value, (tuple, list)):
        parts = ", ".join(_part(part) for part in value[:4])
        more = ", ..." if len(value) > 4 else ""
        return f"a {kind} of {len(value)} parts ({parts}{more})"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"of type {kind}"


def _part(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    return type(value).__name__


def _has_pictures(value: Any) -> bool:
    """Whether this is a picture of PIL, or a list of them."""
    first = value[0] if isinstance(value, (tuple, list)) and value else value
    return any(cls.__module__.startswith("PIL.") for cls in type(first).__mro__)


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
