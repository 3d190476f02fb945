"""Loaders that a user brings: any iterable of batches (image, target), as for `edkd.distill`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset

from edkd.dataset._base import DataSet, Loader, single_view
from edkd.dataset.identity import dataset_hash
from edkd.dataset.inspection import (
    check_range,
    check_same_form,
    checked,
    dataset_classes,
    dataset_targets,
    described,
    with_clear_faults,
)
from edkd.dataset.overlap import count_shared, may_share
from edkd.dataset.reproducible import IterableSource, MapSource, Numbered, Source, has_keys
from edkd.errors import UserError, warn
from edkd.types import Batch, DataInfo

CPU = torch.device("cpu")


class Survey(NamedTuple):
    """Facts about a loader, found by reading it once."""

    num_batches: int
    num_images: int
    num_classes: int
    """The highest class number plus one, or the number of class probabilities."""


class ExternalLoader(Loader):
    """Checked batches of a loader of the user, on the device.

    Args:
        source: its batches.
        survey: its size.
        num_classes: class numbers must be below it.
    """

    def __init__(
        self, source: Source, survey: Survey, num_classes: int, device: torch.device
    ) -> None:
        self.source = source
        self.num_batches = survey.num_batches
        self.num_images = survey.num_images
        self.num_classes = num_classes
        self.device = device
        self.has_index = isinstance(source, MapSource)
        self.first_shape: Any = ()
        """Of an image of the first batch that was read; () before."""

    def __len__(self) -> int:
        return self.num_batches

    def inputs(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Images, targets and, if they are known, image numbers of each batch.

        Raises:
            UserError: a batch is not usable, or there are more or fewer batches than before.
            WorkerError: a data worker failed.
        """
        number = first
        batches = with_clear_faults(self.source.batches(epoch, first), self.source.name)
        for number, numbered in enumerate(batches, first + 1):
            if number > self.num_batches:
                raise self._other_length("more")
            parts = self._parts(numbered, number, is_evaluation=epoch == 0)
            yield tuple(part.to(self.device, non_blocking=True) for part in parts)

        if number < self.num_batches:
            raise self._other_length("fewer")

    def batch(  # type: ignore[override]
        self, image: Tensor, target: Tensor, index: Tensor | None = None
    ) -> Batch:
        """Convert the types, and order the memory of images (N,C,H,W) channels last."""
        image = image.to(torch.get_default_dtype())
        if image.dim() == 4:
            image = image.contiguous(memory_format=torch.channels_last)

        is_soft = target.is_floating_point()
        target = target.to(image.dtype) if is_soft else target.long()
        return Batch(image, target, index, views=single_view(image))

    def _parts(self, numbered: Numbered, number: int, is_evaluation: bool) -> list[Tensor]:
        """The checked image and target, and the image numbers if they are known."""
        what = f"batch {number} of {self.source.name}"
        image, target = checked(numbered.batch, what, self.num_classes)
        self.first_shape = self.first_shape or tuple(image.shape[1:])
        check_same_form(image, self.first_shape, what)
        index = numbered.image_index

        # A collate_fn may drop or repeat items: then their numbers are not known.
        if numbered.num_items not in (None, len(image)):
            if is_evaluation:
                raise UserError(
                    f"{what} has {len(image)} images for {numbered.num_items} items of the data "
                    "set; for a correct accuracy, collate_fn must keep each item once"
                )
            index = None

        if index is None:
            return [image, target]
        return [image, target, index]

    def _other_length(self, more_or_fewer: str) -> UserError:
        return UserError(
            f"{self.source.name} yields {more_or_fewer} than {self.num_batches} batches, its "
            "number before; each epoch must have the same number"
        )


def external_dataset(
    train_loader: Iterable[Any],
    val_loader: Iterable[Any],
    test_loader: Iterable[Any] | None = None,
    num_classes: int | None = None,
    device: torch.device = CPU,
    seed: int = 1,
) -> DataSet:
    """Wrap loaders of (image, target) batches.

    Images are (N,...) tensors of any size and number of channels, normalised as the networks need
    them. Targets are class numbers (N,), or class probabilities (N,C).

    The batches of an epoch depend on (seed, epoch) alone. A DataLoader is rebuilt for this around
    the same data set, samplers and settings; its batches have an index. Other iterables are read
    once here, to count their batches and images.

    Args:
        val_loader: chooses the best epoch. Without a `test_loader` it is `DataSet.test`, and
            `DataSet.val` is None.
        num_classes: if None, it is the number of `classes` of the training set, else the highest of
            its `targets` plus one, else found by reading `train_loader` once.
        seed: SOLVER.SEED.

    Raises:
        UserError: a loader yields no batches, or batches of another form.

    Example:
        external_dataset(train_loader, val_loader, num_classes=10, device=torch.device("cuda"))
    """
    given = {"train_loader": train_loader, "val_loader": val_loader, "test_loader": test_loader}
    if test_loader is None:
        del given["test_loader"]

    # Sizes of all loaders.
    sources: dict[str, Source] = {}
    surveys: dict[str, Survey] = {}
    for name, loader in given.items():
        sources[name] = _source(name, loader, seed)
        surveys[name] = _survey(sources[name])

    # The classes.
    dataset = getattr(train_loader, "dataset", None)
    if num_classes is None:
        num_classes = _count_classes(sources["train_loader"], surveys["train_loader"], dataset)
    for source in sources.values():
        _check_known_targets(source, num_classes)

    # The loaders; the first batch of each is checked now rather than after an epoch.
    loaders = {
        name: ExternalLoader(source, surveys[name], num_classes, device)
        for name, source in sources.items()
    }
    for wrapped in loaders.values():
        wrapped.first_shape = _image_shape(wrapped)
    train, val, *test = loaders.values()
    for wrapped in (val, *test):
        _check_beside(wrapped, train)
    _warn_of_shared_images(sources)

    class_names = dataset_classes(dataset)
    info = DataInfo(
        num_classes=num_classes,
        num_images=_set_size(dataset, train),
        targets=dataset_targets(dataset),
        image_shape=train.first_shape,
        class_names=class_names if len(class_names) == num_classes else (),
        identity=_identity(given),
    )
    if not test:
        return DataSet(train, None, val, info)
    return DataSet(train, val, test[0], info)


def _identity(loaders: Mapping[str, Any]) -> dict[str, str]:
    """`DataInfo.identity`, of the data sets about which something is known."""
    found = {}
    for name, loader in loaders.items():
        text = dataset_hash(getattr(loader, "dataset", None))
        if text:
            found[f"images of {name}"] = text
    return found


def _source(name: str, loader: Any, seed: int) -> Source:
    is_dataset = isinstance(loader, TorchDataset) and not isinstance(loader, IterableDataset)
    if is_dataset:
        raise UserError(
            f"{name} is a data set; wrap it: torch.utils.data.DataLoader(data, batch_size=64)"
        )
    if has_keys(loader):
        return MapSource(name, loader, seed, _first_epoch(name))
    if not hasattr(loader, "__iter__"):
        raise UserError(
            f"{name} is {described(loader)}; expected a DataLoader or another iterable of "
            "batches (image, target)"
        )
    return IterableSource(name, loader, seed)


def _survey(source: Source) -> Survey:
    """The size of a loader; the classes too where they are found on the way, else 0."""
    if isinstance(source, MapSource):
        survey = Survey(source.num_batches, source.num_images, 0)
    else:
        survey = _read(source)

    if not survey.num_images:
        raise UserError(f"{source.name} yields no batches")
    return survey


def _read(source: Source) -> Survey:
    """Read and check all batches of an epoch."""
    epoch = _first_epoch(source.name)
    num_batches = 0
    num_images = 0
    num_classes = 0
    first_shape: tuple[int, ...] = ()

    for number, numbered in enumerate(with_clear_faults(source.batches(epoch), source.name), 1):
        what = f"batch {number} of {source.name}"
        image, target = checked(numbered.batch, what)
        first_shape = first_shape or tuple(image.shape[1:])
        check_same_form(image, first_shape, what)

        classes = target.shape[1] if target.dim() == 2 else int(target.max()) + 1
        num_classes = max(num_classes, classes)
        num_images += len(image)
        num_batches = number

    return Survey(num_batches, num_images, num_classes)


def _count_classes(source: Source, survey: Survey, dataset: Any) -> int:
    """The number of classes, found without reading images if possible."""
    names = dataset_classes(dataset)
    if names:
        return len(names)

    targets = dataset_targets(dataset)
    if targets is not None:
        return int(targets.max()) + 1
    return survey.num_classes or _read(source).num_classes


def _image_shape(loader: ExternalLoader) -> Any:
    """The shape of an image, from the first batch."""
    image, *_ = next(loader.inputs(_first_epoch(loader.source.name)))
    return tuple(image.shape[1:])


def _check_beside(loader: ExternalLoader, train: ExternalLoader) -> None:
    """Raise UserError if a loader has images of another form than `train_loader`."""
    ours = loader.first_shape
    theirs = train.first_shape
    if len(ours) != len(theirs) or ours[0] != theirs[0]:
        raise UserError(
            f"{loader.source.name} has images of shape {ours}, but train_loader {theirs}; both "
            "must have the same number of channels"
        )


def _warn_of_shared_images(sources: dict[str, Source]) -> None:
    """Warn where an accuracy would be measured on images that were seen before."""
    effects = {
        ("train_loader", "val_loader"): "the accuracy will be too high",
        ("train_loader", "test_loader"): "the accuracy will be too high",
        ("val_loader", "test_loader"): "the accuracy of the best epoch will be too high",
    }
    for (name, other), effect in effects.items():
        if other not in sources:
            continue
        shared = _shared_images(sources[name], sources[other])
        if shared:
            warn(f"{other} has {shared} of the images of {name}: {effect}")


def _shared_images(source: Source, other: Source) -> int | str:
    """The number of images that are in two loaders, or "all"; 0 if it is not known."""
    if source.loader is other.loader:
        return "all"
    if not (isinstance(source, MapSource) and isinstance(other, MapSource)):
        return 0

    datasets = (source.loader.dataset, other.loader.dataset)
    if not may_share(*datasets):
        return 0
    index = source.image_index(_first_epoch(source.name))
    other_index = other.image_index(_first_epoch(other.name))
    if index is None or other_index is None:
        return 0
    return count_shared(datasets[0], index, datasets[1], other_index)


def _first_epoch(name: str) -> int:
    """Epochs of training count from 1; evaluation sets are always read as epoch 0."""
    return 1 if name == "train_loader" else 0


def _set_size(dataset: Any, train: ExternalLoader) -> int:
    if train.has_index and hasattr(dataset, "__len__"):
        return len(dataset)
    return train.num_images


def _check_known_targets(source: Source, num_classes: int) -> None:
    """Check the class numbers of an epoch if they can be read without the images."""
    if not isinstance(source, MapSource):
        return
    targets = dataset_targets(source.loader.dataset)
    index = source.image_index(_first_epoch(source.name))
    if targets is not None and index is not None:
        check_range(targets[index], f"the data set of {source.name}", num_classes)
