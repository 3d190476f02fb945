"""Whether two data sets of a user have items in common."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset


def may_share(dataset: Any, other: Any) -> bool:
    """Whether `count_shared` can find items that are in both data sets."""
    whole = _whole(dataset)
    other_whole = _whole(other)
    return _is_same(whole, other_whole) or (_has_paths(whole) and _has_paths(other_whole))


def count_shared(dataset: Any, index: Tensor, other: Any, other_index: Tensor) -> int:
    """The number of items of a data set that are among those of another one.

    Items are compared by their numbers in the same data set, or by the paths in `samples`.

    Args:
        dataset: a data set, or a subset of one.
        index: numbers of the items that are used.
        other: the same for the other one.
        other_index: the same.
    """
    whole = _whole(dataset)
    other_whole = _whole(other)
    numbers = _numbers_in_whole(dataset, index)
    other_numbers = _numbers_in_whole(other, other_index)
    if _is_same(whole, other_whole):
        return len(numbers & other_numbers)
    return len(_paths(whole, numbers) & _paths(other_whole, other_numbers))


def _whole(dataset: Any) -> Any:
    """The data set that a subset is of."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def _numbers_in_whole(dataset: Any, index: Tensor) -> set[int]:
    """The numbers of items of a subset in the data set that it is of."""
    while isinstance(dataset, Subset):
        index = torch.as_tensor(dataset.indices)[index]
        dataset = dataset.dataset
    return set(index.tolist())


def _is_same(dataset: Any, other: Any) -> bool:
    """Whether two data sets are one, or hold the same memory."""
    if dataset is other:
        return True
    if not (isinstance(dataset, TensorDataset) and isinstance(other, TensorDataset)):
        return False
    image = dataset.tensors[0]
    other_image = other.tensors[0]
    return image.data_ptr() == other_image.data_ptr() and image.shape == other_image.shape


def _has_paths(dataset: Any) -> bool:
    """Whether this is an image folder: a data set with (path, class number) of each item."""
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, list) or not samples:
        return False
    first = samples[0]
    return isinstance(first, tuple) and isinstance(first[0], str)


def _paths(dataset: Any, numbers: set[int]) -> set[str]:
    return {dataset.samples[number][0] for number in numbers}
