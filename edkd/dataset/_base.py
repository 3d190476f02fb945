"""The contract of a data set, its configuration keys, and how it is found by name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from weakref import WeakMethod

import torch
from torch import Tensor

from edkd.dataset.augment import NumberedViews
from edkd.errors import UserError
from edkd.hints import hint
from edkd.keys import Key
from edkd.registry import DATASETS, Entry, PublishedDict, place
from edkd.types import Batch, DataInfo, View
from edkd.world import Counts

STOP = "stop"
SKIP = "skip"
REPLACE = "replace"

KEYS = {
    "DATASET.TYPE": Key("cifar100", "name of the data set"),
    "DATASET.ROOT": Key(
        "",
        "folder that contains cifar-*/ or the like; for image folders the one that contains train/ "
        "and val/, or the class folders; empty: data/",
        free_on_resume=True,
        names_run=False,
        is_path=True,
    ),
    "DATASET.NUM_WORKERS": Key(
        16,
        "processes that read image folders, at most one for each available core; 0: the main "
        "process reads",
        low=0,
        free_on_resume=True,
    ),
    "DATASET.WORKER_TIMEOUT": Key(
        300.0,
        "a process that reads image folders counts as hanging after this time",
        unit="seconds",
        low=1e-3,
        free_on_resume=True,
    ),
    "DATASET.PREFETCH": Key(
        2,
        "batches that each data worker reads ahead, for image folders",
        low=1,
        high=2**10,
        free_on_resume=True,
    ),
    "DATASET.SCALED_DECODING": Key(
        True,
        "training images of folders: decode JPEG files at the smallest scale that the crop allows, "
        "and resize crops as tensors; False: decode in full, with torchvision's transforms on PIL "
        "images",
    ),
    "DATASET.ON_BAD_IMAGE": Key(
        STOP,
        "for images of a folder that cannot be read: stop the run; skip: read all images before "
        "training and leave the bad ones out; replace: read another image of the same class",
        choices=(STOP, SKIP, REPLACE),
        free_on_resume=True,
        names_run=False,
    ),
    "DATASET.VAL_SPLIT": Key(
        0.0,
        "share of the training images held out to choose the best epoch; 0: the test set does",
        low=0,
        high=1,
    ),
    "DATASET.TEST.EVALUATE": Key(
        True,
        "evaluate the last and the best weights on the test set at the end; False leaves the test "
        "set out, and held-out images (DATASET.VAL_SPLIT) give all figures",
        free_on_resume=True,
    ),
    "DATASET.RANDAUGMENT": Key(
        [],
        "[operations per image, magnitude] of torchvision's RandAugment, for image folders; "
        "[]: off",
        low=0.0,
        high=31.0,
    ),
    "DATASET.TEST.BATCH_SIZE": Key(
        0,
        "images in a batch of evaluation; 0: chosen for the device, 64 for image folders",
        low=0,
        high=2**31,
        free_on_resume=True,
    ),
}

WEAK = "weak"
"""Name of the usual training view of an image, which every loader has."""


class Loader(ABC):
    """Batches of a set of images, each made in two steps.

    `inputs` yields tensors that the host prepared and copied to the device. `batch` turns them into
    a Batch on the device, without waiting for it, so that it can be part of a CUDA graph.

    The epoch (from 1) decides the order and the views of a training set. Other sets ignore it.
    """

    num_images: int
    """Images in an epoch."""
    num_left_out: int = 0
    """Images that take no part, as they cannot be read."""
    views: tuple[str, ...] = (WEAK,)
    """Names of the views in a batch; the first one is `Batch.image`."""
    counts: Counts = ()
    """Images of each process in the batch that `inputs` yielded last, of which it yields a share;
    empty where one process has all."""
    is_shared: bool = False
    """Whether several processes can each have a share of each batch."""
    has_index: bool = True
    """Whether batches have the `index` of their images."""
    not_numbered: str = "the augmented views of these images are not numbered"
    """Why the teacher cache cannot serve a loader that is no NumberedLoader."""

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch; the last one may be smaller."""

    @abstractmethod
    def inputs(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """The arguments of `batch` for each batch of an epoch, on the device.

        Args:
            first: number of the first batch to yield, from 0.
        """

    @abstractmethod
    def batch(self, *inputs: Tensor) -> Batch:
        """A batch from what `inputs` yielded."""

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch."""
        for inputs in self.inputs(epoch):
            yield self.batch(*inputs)

    def use_views(self, names: Sequence[str]) -> None:
        """Choose the views that batches contain, in this order.

        Raises:
            UserError: the images have no view of such a name.
        """
        self.views = known_views(names, [WEAK])


class NumberedLoader(Loader):
    """A loader whose views have numbers, so that a view of an image can be made again."""

    set_size: int
    """Images in the whole set; each `index` is below it, even if only some images take part."""
    batch_size: int
    augmentations: Mapping[str, NumberedViews]
    """How each view is made, by its name; always has "weak"."""
    listeners: list[WeakMethod[Callable[[int, int], None]]] | None = None
    """Called with the epoch and the number of a batch, from 0, before `inputs` yields it; None:
    this loader calls none."""

    @abstractmethod
    def order(self, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The image numbers of an epoch, and the number of each image's view, by name of the view.

        All are (num_images,), int64, on the CPU.
        """

    @abstractmethod
    def show(self, index: Tensor, number: Tensor, view: str = WEAK) -> Tensor:
        """Images as in a batch.

        Args:
            index: (N,), image numbers, on the device.
            number: (N,), their view numbers, on the device.
            view: name of the view.

        Returns:
            (N,3,H,W), float32, normalised.
        """

    def shown(self, index: Tensor, number: Tensor, view: str, size: int) -> Iterator[Tensor]:
        """The same in batches of a size; the last one may be smaller."""
        for part in zip(index.split(size), number.split(size), strict=True):
            yield self.show(*part, view)

    def show_size(self, device: torch.device) -> int:
        """The images of a batch in which a teacher runs."""
        return large_batch(device)

    def first_images(self, count: int) -> Tensor:
        """The numbers of the first images that can be shown, (count,) or fewer, on the CPU."""
        return torch.arange(min(count, self.set_size))

    @abstractmethod
    def fingerprint(self, view: str = WEAK) -> str:
        """A hash of everything that decides the result of `show`."""

    def parts(self, view: str = WEAK) -> dict[str, str]:
        """Hashes of what decides the result of `show`, by names for messages."""
        return {"the images or their views": self.fingerprint(view)}

    def use_views(self, names: Sequence[str]) -> None:
        """Choose the views that batches contain, in this order.

        Raises:
            UserError: the data set has no view of such a name.
        """
        self.views = known_views(names, list(self.augmentations))


def nothing_to_check(only_test: bool) -> None:
    """For data that were read when they were loaded."""


@dataclass(frozen=True)
class DataSet:
    """Images for training, for choosing the best epoch, and for reporting."""

    train: Loader
    val: Loader | None
    """Images held out to choose the best epoch; None: `test` does."""
    test: Loader
    info: DataInfo
    check: Callable[[bool], None] = nothing_to_check
    """Called before images are used, with whether only those of `test` are. Raises UserError if
    some of them cannot be read, or leaves these out."""
    notes: list[str] = field(default_factory=list)
    """Lines for the beginning of a run's log."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.info.num_classes


class DataSetSpec(NamedTuple):
    """A value of `dataset_dict`."""

    family: str
    """The models for images of this size: "cifar", "tiny_imagenet" or "imagenet"."""
    has_published_weights: bool
    """Whether that family's published weights were trained on this data set."""
    load: Callable[[Any, torch.device], DataSet]
    """(cfg, device) -> DataSet. Raises UserError if the data are missing or damaged."""


def known_views(names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple; UserError if one is not known."""
    for name in names:
        if name not in known:
            raise UserError(
                f"the training images have no view {name!r}{hint(name, known)} (known: "
                f"{', '.join(known)}); use another DATASET.TYPE or another DISTILLER.TYPE"
            )
    return tuple(names)


def single_view(image: Tensor) -> dict[str, View]:
    """`Batch.views` of images whose view has no number."""
    return {WEAK: View(image, None)}


def with_images(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with the images of each view changed; a changed view has no number."""
    if not batch.views:
        return replace(batch, image=change(batch.image))

    views = {name: View(change(view.image), None) for name, view in batch.views.items()}
    first = next(iter(views.values()))
    return replace(batch, image=first.image, views=views)


def large_batch(device: torch.device) -> int:
    """The fastest batch size for forward passes on small images; a CPU's caches hold about 128."""
    return 128 if device.type == "cpu" else 2048


def get_dataset(cfg: Any, device: torch.device) -> DataSet:
    """Load DATASET.TYPE.

    Raises:
        UserError: the name is unknown, or the data are missing or damaged.
    """
    entry = DATASETS.find(cfg.DATASET.TYPE)
    if cfg.DATASET.get("LIST") and not entry.info.get("reads_lists"):
        raise UserError(
            f"DATASET.LIST has no effect with DATASET.TYPE {entry.name}; set that to folder"
        )

    data = entry.value(cfg, device)
    if not isinstance(data, DataSet):
        raise UserError(
            f"data set {entry.name!r} of {entry.place} must return an edkd.dataset.DataSet, "
            f"not {type(data).__name__}"
        )
    return data


def _check_function(name: str, load: Any) -> None:
    if not callable(load):
        raise UserError(f"data set {name!r} of {place(load)} must be a function (cfg, device)")


def _read(entry: Entry) -> DataSetSpec:
    family = entry.info.get("family", "cifar")
    return DataSetSpec(family, entry.info.get("has_published_weights", False), entry.value)


def _write(spec: DataSetSpec) -> tuple[Any, dict[str, Any]]:
    family, has_published_weights, load = spec
    return load, {"family": family, "has_published_weights": has_published_weights}


DATASETS.check = _check_function
register = DATASETS.register
"""`register(name, family="cifar", image_shape=(3, 32, 32), num_classes=10)`; the last two are for
commands that do not read the images, and may be left out."""

dataset_dict = PublishedDict(DATASETS, read=_read, write=_write)
"""DATASET.TYPE -> DataSetSpec."""
