"""Image folders `{train,val}/<class>/*`, read by a DataLoader and normalised on the device."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from edkd import world
from edkd.dataset._base import (
    REPLACE,
    SKIP,
    STOP,
    WEAK,
    DataSet,
    Loader,
    known_views,
    single_view,
)
from edkd.dataset.augment import Normalize
from edkd.dataset.cores import Workers, workers_for, workers_note
from edkd.dataset.folder_checks import (
    Probed,
    check_classes,
    check_files,
    identity_of,
    probe_parts,
)
from edkd.dataset.folder_views import FileViews, Item, NumberedFolder, file_views
from edkd.dataset.host_augment import check_randaugment
from edkd.dataset.images import read_image
from edkd.dataset.listing import Listing, combined, list_images
from edkd.dataset.parts import Parts
from edkd.dataset.readability import (
    BadImage,
    bad_image,
    contents,
    not_transformed,
    refusal,
    unreadable,
)
from edkd.dataset.sampling import epoch_order, hold_out, num_batches, seed_for, split_batches
from edkd.dataset.scaled import ScaledTransform, scaled
from edkd.dataset.skipping import leave_out_bad
from edkd.dataset.stored_image import StoredImage, Undecodable
from edkd.dataset.strong import STRONG, strengthened
from edkd.dataset.transfer import DeviceCopy
from edkd.dataset.workers import supervise
from edkd.errors import UserError, warn
from edkd.paths import DATA_ROOT
from edkd.types import Batch, DataInfo, View

Transform = Callable[[Any], Tensor]
"""PIL image -> uint8 (3,H,W); draws from torch's global generator on the CPU."""

EVAL_BATCH_SIZE = 64


@dataclass(frozen=True)
class Preprocessing:
    """How the images of a folder become tensors of one size."""

    train: Transform
    test: Transform
    size: int
    """Height and width of the results, in pixels."""
    mean: tuple[float, ...]
    """One number for each channel, of pixels in [0, 1]."""
    std: tuple[float, ...]
    resize: int = 0
    """As `InputSpec.resize`."""
    interpolation: str = "bilinear"
    """As `InputSpec.interpolation`."""


class ReadImage(NamedTuple):
    """An image that was read."""

    image: Tensor
    """(3,H,W), uint8; (V,3,H,W) of V views."""
    target: int
    number: int
    replaced: BadImage | None
    """The file that could not be read; then `image` is another one of its class."""


class FolderImages(TorchDataset):
    """The images of a folder, by Item.

    A file that cannot be read gives a BadImage: an exception in a worker would lose its text.

    Args:
        samples: (path, class number) of each image.
        on_bad: DATASET.ON_BAD_IMAGE; with "replace", another image of the same class takes the
            place of an unreadable one.
    """

    def __init__(
        self, samples: list[tuple[str, int]], transform: Transform, on_bad: str = STOP
    ) -> None:
        self.samples = samples
        self.transform = transform
        self.on_bad = on_bad
        self.open = StoredImage if isinstance(transform, ScaledTransform) else read_image
        self.strong_form = ""
        """Of a second, strong view, see `randaugment.draw`; "": there is none."""

    def __getitem__(self, item: Item) -> ReadImage | BadImage:
        image = self._read(item.number, item.seed)
        if isinstance(image, BadImage):
            return self._instead_of(item, image) if self.on_bad == REPLACE else image
        return ReadImage(image, self.samples[item.number][1], item.number, None)

    def fault(self, item: Item) -> BadImage | None:
        """The image if it cannot be read and transformed, else None."""
        image = self._read(item.number, item.seed)
        return image if isinstance(image, BadImage) else None

    def _read(self, number: int, seed: int | None) -> Tensor | BadImage:
        path, _ = self.samples[number]
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                # The CPU's generator alone: fork_rng restores no other one here.
                torch.default_generator.manual_seed(seed)
            try:
                image = self.open(path)
            except Exception as error:  # PIL raises almost any exception for damaged files
                return bad_image(path, error)

            try:
                return self._views(image, seed)
            except Undecodable as error:
                return bad_image(path, error.cause)
            except Exception as error:  # as for an image that is smaller than the crop
                return not_transformed(path, image.size, error)

    def _views(self, image: Any, seed: int | None) -> Tensor:
        """The weak view, or both: the strong one has a crop of its own."""
        weak = self.transform(image)
        if not self.strong_form or seed is None:
            return weak
        return torch.stack([weak, strengthened(self.transform(image), seed, self.strong_form)])

    def _instead_of(self, item: Item, bad: BadImage) -> ReadImage | BadImage:
        """The next readable image of the same class, after the last one the first."""
        _, target = self.samples[item.number]
        same = [number for number, (_, other) in enumerate(self.samples) if other == target]
        place = same.index(item.number)

        for number in same[place + 1 :] + same[:place]:
            image = self._read(number, item.seed)
            if not isinstance(image, BadImage):
                return ReadImage(image, target, item.number, bad)
        return bad


class Batches:
    """The Items of each batch of an epoch. Set `epoch` and `first` before each pass.

    Args:
        members: (M,), numbers of the images that take part.
        num_images: images in the whole set.
        seed: of the order and the random transforms; None: in order, without randomness.
        views: numbered views of the images; None: new ones in each epoch.
    """

    def __init__(
        self,
        members: Tensor,
        num_images: int,
        batch_size: int,
        seed: int | None,
        views: FileViews | None = None,
    ) -> None:
        self.members = members
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.views = views
        self.epoch = 0
        self.first = 0
        """Number of the first batch of the pass."""
        self.left_out = torch.empty(0, dtype=torch.long)
        """Members that are removed from each pass. The others keep their order."""
        self._numbers: dict[int, Tensor] = {}
        """Those of the views, of the epoch that was needed last: each batch needs them."""

    def __len__(self) -> int:
        return num_batches(self._count(), self.batch_size)

    def __iter__(self) -> Iterator[list[Item]]:
        for numbers in split_batches(self._index(), self.batch_size)[self.first :]:
            yield self._items(self._share(numbers))

    def totals(self) -> list[int]:
        """Images of each batch of an epoch: of all processes in training, else of this one."""
        places = torch.arange(self._count())
        return [len(part) for part in split_batches(places, self.batch_size)]

    def _count(self) -> int:
        """Images of a pass: of all processes in training, else of this one."""
        count = len(self.members) - len(self.left_out)
        if self.seed is not None:
            return count
        rows = _own_rows(count)
        return rows.stop - rows.start

    def _index(self) -> Tensor:
        """The image numbers of an epoch; without randomness, those of this process."""
        index = self.order(self.epoch)
        return index if self.seed is not None else index[_own_rows(len(index))]

    def _share(self, numbers: Tensor) -> Tensor:
        """The images of a training batch that this process has."""
        return numbers if self.seed is None else numbers[_own_rows(len(numbers))]

    def order(self, epoch: int) -> Tensor:
        """The numbers of the images of an epoch, in order."""
        index = self.members_left()
        if self.seed is None:
            return index
        index, _ = epoch_order(self.members, self.num_images, (1,), self.seed, epoch)
        return index[~torch.isin(index, self.left_out)]

    def members_left(self) -> Tensor:
        """The members without those that are left out, in their own order."""
        return self.members[~torch.isin(self.members, self.left_out)]

    def view_numbers(self, epoch: int) -> Tensor:
        """The number of each image's view in an epoch, (num_images,), where views have numbers."""
        assert self.views is not None
        assert self.seed is not None
        if epoch not in self._numbers:
            self._numbers = {epoch: self.views.of_epoch(self.num_images, self.seed, epoch)}
        return self._numbers[epoch]

    def all_items(self, epoch: int) -> list[Item]:
        """The Items of all members in an epoch, in the order of `members`."""
        self.epoch = epoch
        return self._items(self.members)

    def _items(self, numbers: Tensor) -> list[Item]:
        seeds = self._seeds(numbers)
        return [Item(*pair) for pair in zip(numbers.tolist(), seeds, strict=True)]

    def _seeds(self, numbers: Tensor) -> Sequence[int | None]:
        """The seed of each image's random transforms in this epoch."""
        if self.seed is None:
            return [None] * len(numbers)
        if self.views is not None:
            return self.views.seeds(numbers, self.view_numbers(self.epoch)[numbers])
        return [seed_for(self.seed, self.epoch, number) for number in numbers.tolist()]


def _own_rows(total: int) -> slice:
    return world.own_rows(world.counts_of(total), total)


class FolderLoader(Loader):
    """Batches of a folder's images, the same for any number of workers.

    Args:
        batches: which images, and their order.
        workers: they read.
        paths: of all images of the data set, which are checked when one cannot be read.
        strong_form: of the strong views, if they are needed; "": there are none.
    """

    not_numbered = "images get new views in each epoch; set DATASET.VIEWS to a number, such as 50"
    is_shared = True

    def __init__(
        self,
        images: FolderImages,
        batches: Batches,
        normalize: Normalize,
        workers: Workers,
        paths: Sequence[str],
        strong_form: str = "",
    ) -> None:
        self.images = images
        self.strong_form = strong_form
        self.paths = paths
        self.replaced: set[BadImage] = set()
        self.num_images = len(batches.members)
        self.normalize = normalize
        self.device = normalize.device
        self.copy = DeviceCopy(self.device)
        self.batches = batches
        self.loader = DataLoader(
            images,
            batch_sampler=batches,
            pin_memory=self.device.type == "cuda",
            collate_fn=collate,
            generator=torch.Generator(),  # without one, each pass draws from the global generator
            **workers.settings(),
        )

    def __len__(self) -> int:
        return len(self.batches)

    def inputs(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Images as uint8, targets and image numbers of each batch.

        Raises:
            UserError: an image cannot be read.
            WorkerError: a worker died or hung.
        """
        self.batches.epoch = epoch
        self.batches.first = first
        totals = self.batches.totals()[first:]
        for total, batch in zip(totals, supervise(self.loader), strict=True):
            self.counts = world.counts_of(total) if self.batches.seed is not None else ()
            yield self.received(batch)

    def received(self, batch: Any) -> tuple[Tensor, ...]:
        """The tensors of a batch as a worker sent it, on the device.

        Raises:
            UserError: it is an image that cannot be read.
        """
        if isinstance(batch, BadImage):
            raise self._refusal(batch)
        *parts, replaced = batch
        self._warn_once(replaced)
        return self.copy(parts)

    def batch(  # type: ignore[override]
        self, image: Tensor, target: Tensor, index: Tensor
    ) -> Batch:
        """Normalise the images, (N,3,H,W); (N,V,3,H,W) of V views."""
        if image.dim() == 4:
            image = self.normalize(image)
            return Batch(image, target, index, views=single_view(image), counts=self.counts)

        images = [self.normalize(view) for view in image.unbind(1)]
        by_name = dict(zip((WEAK, STRONG), images, strict=True))
        views = {name: View(by_name[name], None) for name in self.views}
        first = views[self.views[0]].image
        return Batch(first, target, index, views=views, counts=self.counts)

    def use_views(self, names: Sequence[str]) -> None:
        """See `Loader.use_views`."""
        self.views = known_views(names, [WEAK, STRONG] if self.strong_form else [WEAK])
        self.images.strong_form = self.strong_form if STRONG in self.views else ""

    def leave_out(self, numbers: Tensor) -> None:
        """Let images take no part, by their numbers (K,)."""
        self.batches.left_out = numbers
        self.num_left_out = len(numbers)
        self.num_images = len(self.batches.members) - len(numbers)

    def _refusal(self, bad: BadImage) -> UserError:
        policy = self.images.on_bad
        if policy == REPLACE:
            return UserError(f"cannot read {bad}, nor another image of its class; repair them")
        if policy == SKIP:
            return UserError(
                f"cannot read {bad}, though it could be read before; repair it, or leave the file "
                "in place: --resume leaves it out"
            )
        return refusal([bad, *unreadable(self.paths)], len(self.paths))

    def _warn_once(self, replaced: Sequence[BadImage]) -> None:
        for image in replaced:
            if image not in self.replaced:
                self.replaced.add(image)
                warn(f"cannot read the image {image}; another image of its class replaces it")


def collate(
    items: list[ReadImage | BadImage],
) -> tuple[Tensor, Tensor, Tensor, list[BadImage]] | BadImage:
    """Stack the images of a batch; the first bad image stands for the whole batch.

    Returns:
        Images, targets, image numbers, and the files that others replace.
    """
    images: list[Tensor] = []
    targets: list[int] = []
    numbers: list[int] = []
    replaced: list[BadImage] = []

    for item in items:
        if isinstance(item, BadImage):
            return item
        images.append(item.image)
        targets.append(item.target)
        numbers.append(item.number)
        if item.replaced is not None:
            replaced.append(item.replaced)

    # Channels last in memory, as they were decoded and as they are normalised.
    # In a worker, `default_collate` stacks into shared memory.
    image = default_collate([each.movedim(-3, -1) for each in images]).movedim(-1, -3)
    return image, torch.tensor(targets), torch.tensor(numbers), replaced


def folder_dataset(
    cfg: Any, device: torch.device, folder: str, preprocessing: Preprocessing
) -> DataSet:
    """The images of `{train,val}/<class>/*`; `val` becomes the test set.

    Args:
        cfg: DATASET.* but TYPE, SOLVER.BATCH_SIZE and SOLVER.SEED are read.
        folder: below data/, where DATASET.ROOT names none.

    Raises:
        UserError: a folder is missing or empty, or the two have different classes; see also
            `streamed_dataset`.
    """
    root = Path(cfg.DATASET.ROOT or DATA_ROOT / "data" / folder).expanduser()
    train = _list_part(root, "train")
    test = _list_part(root, "val")
    check_classes(root, train, test)
    return streamed_dataset(cfg, device, Parts(train, None, test), preprocessing)


def streamed_dataset(
    cfg: Any, device: torch.device, parts: Parts, preprocessing: Preprocessing
) -> DataSet:
    """The images of a listing, read for each batch.

    Up to `readability.LIMIT` images are probed here; the check of the result refuses truncated
    files, so that no run begins with them.

    Args:
        cfg: as for `folder_dataset`, without DATASET.ROOT.

    Raises:
        UserError: DATASET.VAL_SPLIT leaves a part empty, or DATASET.RANDAUGMENT is set, and the
            training transform does not have it.
    """
    check_randaugment(preprocessing.train, cfg)
    if cfg.DATASET.SCALED_DECODING:
        preprocessing = replace(preprocessing, train=scaled(preprocessing.train))

    train, test = parts.train, parts.test
    on_bad = cfg.DATASET.ON_BAD_IMAGE
    files = probe_parts(parts.learned, test)

    targets = torch.tensor(train.targets)
    members, held_out = hold_out(targets, cfg.DATASET.VAL_SPLIT)
    normalize = Normalize(preprocessing.mean, preprocessing.std, device)
    paths = parts.learned.paths + test.paths
    workers = Workers(
        workers_for(cfg.DATASET.NUM_WORKERS), cfg.DATASET.WORKER_TIMEOUT, cfg.DATASET.PREFETCH
    )

    def make(
        part: Listing, transform: Transform, index: Tensor, size: int, seed: int | None
    ) -> FolderLoader:
        """The batches of some images of a part; `seed` as for `Batches`."""
        images = FolderImages(part.samples, transform, on_bad)
        batches = Batches(
            index, len(part.samples), size, seed, file_views(cfg, preprocessing.train)
        )
        strong_form = "" if seed is None else cfg.DATASET.STRONG_FORM
        return FolderLoader(images, batches, normalize, workers, paths, strong_form)

    def evaluated(part: Listing, index: Tensor) -> FolderLoader:
        size = cfg.DATASET.TEST.BATCH_SIZE or EVAL_BATCH_SIZE
        return make(part, preprocessing.test, index, size, None)

    of_train = make(train, preprocessing.train, members, cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.SEED)
    of_val = evaluated(train, held_out) if len(held_out) else None
    if parts.val:
        of_val = evaluated(parts.val, torch.arange(len(parts.val.samples)))
    of_test = evaluated(test, torch.arange(len(test.samples)))
    loaders = [loader for loader in (of_train, of_val, of_test) if loader is not None]
    notes = workers_note(cfg.DATASET.NUM_WORKERS)

    def check(only_test: bool) -> None:
        if on_bad == SKIP:
            leave_out_bad(loaders, train.classes, notes, only_test)
        check_files(files, on_bad != STOP, only_test)

    return DataSet(
        train=_numbered(of_train, parts.learned, files, preprocessing.size),
        val=of_val,
        test=of_test,
        info=DataInfo(
            num_classes=len(train.classes),
            num_images=len(targets),
            targets=targets,
            image_shape=(len(preprocessing.mean), preprocessing.size, preprocessing.size),
            mean=preprocessing.mean,
            std=preprocessing.std,
            resize=preprocessing.resize,
            interpolation=preprocessing.interpolation,
            class_names=tuple(train.classes),
            identity=identity_of(parts.learned, test, files),
        ),
        check=check,
        notes=notes,
    )


def _numbered(loader: FolderLoader, learned: Listing, files: Probed, size: int) -> Loader:
    """The loader with numbered views, where there are any.

    Args:
        learned: the images that decide the result of a run.
        files: as far as they were read.
        size: height and width of a view, in pixels.
    """
    if loader.batches.views is None:
        return loader
    known = combined(learned.names, learned.sizes, contents(files.train_probes))
    return NumberedFolder(loader, {"the training images": known}, size)


def _list_part(root: Path, part: str) -> Listing:
    """The images of train/ or val/; UserError if it is missing or empty."""
    folder = root / part
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}; store the images as {root}/{{train,val}}/<class>/*, or set "
            "DATASET.ROOT"
        )
    return list_images(folder)
