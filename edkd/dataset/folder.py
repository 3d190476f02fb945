"""Image folders `{train,val}/<class>/*`, read by a DataLoader and normalised on the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

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
from edkd.dataset.file_batches import Batches
from edkd.dataset.file_images import FolderImages, Transform, collate
from edkd.dataset.folder_checks import (
    Probed,
    check_classes,
    check_files,
    identity_of,
    probe_parts,
)
from edkd.dataset.folder_views import NumberedFolder, file_views
from edkd.dataset.host_augment import check_randaugment
from edkd.dataset.listing import Listing, combined, list_images
from edkd.dataset.parts import Parts
from edkd.dataset.readability import (
    BadImage,
    contents,
    refusal,
    unreadable,
)
from edkd.dataset.sampling import hold_out
from edkd.dataset.scaled import scaled
from edkd.dataset.skipping import leave_out_bad
from edkd.dataset.strong import STRONG
from edkd.dataset.transfer import DeviceCopy
from edkd.dataset.workers import supervise
from edkd.errors import UserError, warn
from edkd.paths import DATA_ROOT
from edkd.types import Batch, DataInfo, View

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
