"""Numbered views of images that are read from files, so that the teacher's outputs can be stored.

View k of image i is drawn with the seed of (DATASET.VIEWS_SEED, k, i): crop, flip and everything
else that is random. So k alone has to be known to make it again. After Z. Shen, E. Xing, "A Fast
Knowledge Distillation Framework for Visual Recognition", ECCV 2022, arXiv:2112.01528, and
F. Faghri et al., "Reinforce Data, Multiply Impact", ICCV 2023, arXiv:2303.08983.
"""

import copy
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakMethod

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from edkd.dataset._base import REPLACE, WEAK, NumberedLoader, large_batch
from edkd.dataset.augment import has_address
from edkd.dataset.sampling import seed_for
from edkd.dataset.strong import STRONG
from edkd.dataset.workers import supervise
from edkd.errors import UserError
from edkd.keys import Key
from edkd.types import Batch, View

if TYPE_CHECKING:
    from edkd.dataset.folder import FolderLoader

KEYS = {
    "DATASET.VIEWS": Key(
        0,
        "for images that are read from files: number of views of each, for which the teacher's "
        "outputs can be cached; 0: new views in each epoch, which cannot be cached",
        low=0,
        high=2**20,
    ),
    "DATASET.VIEWS_SEED": Key(
        0,
        "seed of the views of DATASET.VIEWS; separate from SOLVER.SEED, so that runs with other "
        "seeds share cached outputs",
        low=0,
        high=2**63,
    ),
}

SMALL_SIDE = 64
"""Height and width, in pixels, up to which a teacher runs on large batches."""

LARGE_IMAGES = {"cpu": 32}
"""Larger images in a batch of the teacher, by the kind of device."""
LARGE_IMAGES_ELSEWHERE = 256


class Item(NamedTuple):
    """An image to read."""

    number: int
    seed: int | None
    """Of its random transforms; None: they are not random."""


class FileViews:
    """The numbered views of an image.

    Args:
        num_views: of each image.
        seed: of the views.
        transform: makes a view, with torch's global generator.

    Raises:
        UserError: the text of the transform is not the same in every process.
    """

    def __init__(self, num_views: int, seed: int, transform: Any) -> None:
        self.num_views = num_views
        self.seed = seed
        self.text = repr(transform)
        if has_address(self.text):
            raise UserError(
                f"DATASET.VIEWS needs training transforms that describe themselves, but one is "
                f"{' '.join(self.text.split())[:200]}; give its class a __repr__ with all of its "
                "parameters, or set DATASET.VIEWS 0"
            )

    def identity(self) -> str:
        """Everything that decides a view besides the image, as text."""
        return f"{type(self).__name__}(seed={self.seed}, {self.text})"

    def seeds(self, index: Tensor, number: Tensor) -> list[int]:
        """The seed of each view.

        Args:
            index: (N,), image numbers.
            number: (N,), their view numbers.
        """
        pairs = zip(number.tolist(), index.tolist(), strict=True)
        return [seed_for(self.seed, *pair) for pair in pairs]

    def of_epoch(self, num_images: int, seed: int, epoch: int) -> Tensor:
        """The number of the view that each image shows in an epoch, (num_images,).

        In epochs 1 to K, an image shows each of its K views once, in an order of its own; in the
        next K epochs in another order.

        Args:
            num_images: in the whole set.
            seed: SOLVER.SEED.
            epoch: from 1.
        """
        turn, step = divmod(epoch - 1, self.num_views)
        # No other draw has a negative epoch.
        generator = torch.Generator().manual_seed(seed_for(seed, -1, turn))

        # Steps of a length that is coprime to K visit all K numbers.
        coprime = [n for n in range(1, self.num_views + 1) if math.gcd(n, self.num_views) == 1]
        lengths = torch.tensor(coprime)
        length = lengths[torch.randint(len(lengths), (num_images,), generator=generator)]
        first = torch.randint(self.num_views, (num_images,), generator=generator)
        return (first + step * length) % self.num_views


def file_views(cfg: Any, transform: Any) -> FileViews | None:
    """The views that DATASET.VIEWS asks for; None where it is 0.

    Args:
        cfg: DATASET.VIEWS and VIEWS_SEED are read.
        transform: of the training images.
    """
    data = cfg.DATASET
    if not data.VIEWS:
        return None
    if data.ON_BAD_IMAGE == REPLACE:
        raise UserError(
            f"DATASET.VIEWS {data.VIEWS} stores the teacher's outputs for each image, but "
            "DATASET.ON_BAD_IMAGE replace shows another one in its place; set that to skip"
        )
    return FileViews(data.VIEWS, data.VIEWS_SEED, transform)


def check_views(cfg: Any) -> None:
    """Raise UserError where DATASET.VIEWS is set for images that stay on the device."""
    if cfg.DATASET.VIEWS:
        raise UserError(
            f"DATASET.VIEWS {cfg.DATASET.VIEWS} is for images that are read from files in each "
            f"epoch; those of DATASET.TYPE {cfg.DATASET.TYPE} stay on the device, and their views "
            "are numbered; set it to 0 (or, for DATASET.TYPE folder, DATASET.RESIDENT off)"
        )


class NumberedFolder(NumberedLoader):
    """The training batches of an image folder, in numbered views.

    Args:
        inner: reads the images, in numbered views.
        images: hashes of the files, by a name for messages.
        size: height and width of a view, in pixels.
    """

    is_shared = True

    def __init__(self, inner: "FolderLoader", images: Mapping[str, str], size: int) -> None:
        views = inner.batches.views
        assert views is not None
        self.inner = inner
        self.file_views = views
        self.images_identity = dict(images)
        self.size = size
        self.set_size = inner.batches.num_images
        self.batch_size = inner.batches.batch_size
        self.listeners: list[WeakMethod[Callable[[int, int], None]]] = []
        self.augmentations = {WEAK: views}
        if inner.strong_form:
            self.augmentations[STRONG] = views

    def __len__(self) -> int:
        return len(self.inner)

    @property
    def num_images(self) -> int:  # type: ignore[override]
        """Images in an epoch."""
        return self.inner.num_images

    @property
    def num_left_out(self) -> int:  # type: ignore[override]
        """Images that take no part, as they cannot be read."""
        return self.inner.num_left_out

    # Batches.

    def use_views(self, names: Sequence[str]) -> None:
        """See `Loader.use_views`."""
        self.inner.use_views(names)
        self.views = self.inner.views

    def order(self, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The image numbers of an epoch, and the number of each image's view; all views share it.

        The order is that of the same images without numbered views.
        """
        index = self.inner.batches.order(epoch)
        number = self._numbers(epoch)[index]
        return index, dict.fromkeys(self.views, number)

    def inputs(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Images as uint8, targets, image numbers and view numbers of each batch."""
        numbers = self._numbers(epoch).to(self.inner.device)
        for number, inputs in enumerate(self.inner.inputs(epoch, first), first):
            self.counts = self.inner.counts
            self._announce(epoch, number)
            image, target, index = inputs
            yield image, target, index, numbers[index]

    def _announce(self, epoch: int, number: int) -> None:
        for listener in self.listeners:
            call = listener()
            if call is not None:  # it still exists
                call(epoch, number)

    def batch(  # type: ignore[override]
        self, image: Tensor, target: Tensor, index: Tensor, number: Tensor
    ) -> Batch:
        """The inner loader's batch; its views have their numbers."""
        made = self.inner.batch(image, target, index)
        views = {name: View(view.image, number) for name, view in made.views.items()}
        return dataclasses.replace(made, views=views)

    def _numbers(self, epoch: int) -> Tensor:
        return self.inner.batches.view_numbers(epoch)

    # Views by their numbers.

    def show(self, index: Tensor, number: Tensor, view: str = WEAK) -> Tensor:
        """Images (N,3,H,W) in their views, normalised. They are read here."""
        (image,) = self.shown(index, number, view, len(index))
        return image

    def shown(self, index: Tensor, number: Tensor, view: str, size: int) -> Iterator[Tensor]:
        """The same in batches of a size, which workers of their own read.

        So a pass over an epoch may be under way at the same time.

        Raises:
            UserError: an image cannot be read.
            WorkerError: a worker died or hung.
        """
        usual = self.inner.loader
        images: Any = copy.copy(usual.dataset)
        images.open = _LastImage(images.open)
        images.strong_form = self.inner.strong_form if view == STRONG else ""
        batches = _Keyed(self.file_views, index.cpu(), number.cpu(), size)
        workers = min(usual.num_workers, len(batches))
        reader = DataLoader(
            images,
            batch_sampler=batches,
            num_workers=workers,
            timeout=usual.timeout if workers else 0,
            worker_init_fn=usual.worker_init_fn,
            pin_memory=usual.pin_memory,
            collate_fn=usual.collate_fn,
            generator=torch.Generator(),
        )

        for received in supervise(reader):
            image, _, _ = self.inner.received(received)
            if view == STRONG:
                image = image[:, 1]
            yield self.inner.normalize(image)

    def show_size(self, device: torch.device) -> int:
        """The images of a batch in which a teacher runs."""
        if self.size <= SMALL_SIDE:
            return large_batch(device)
        return LARGE_IMAGES.get(device.type, LARGE_IMAGES_ELSEWHERE)

    def first_images(self, count: int) -> Tensor:
        """The numbers of the first images that take part."""
        return self.inner.batches.members_left()[:count]

    def parts(self, view: str = WEAK) -> dict[str, str]:
        """Hashes of what decides the result of `show`."""
        mean = self.inner.normalize.mean.tolist()
        std = self.inner.normalize.std.tolist()
        form = self.inner.strong_form if view == STRONG else ""
        views = f"{self.augmentations[view].identity()} {form} {self.size} {mean} {std}"
        return self.images_identity | {"the views": hashlib.sha256(views.encode()).hexdigest()}

    def fingerprint(self, view: str = WEAK) -> str:
        """A hash of the files, the transforms, the seed of the views and the normalisation.

        Not of the pixels, which would have to be read; the teacher's outputs for some of them are
        part of the key of its cache.
        """
        return hashlib.sha256(repr(sorted(self.parts(view).items())).encode()).hexdigest()


class _LastImage:
    """Opens image files, and keeps the last one: views of one image often follow one another.

    Args:
        open_: from the path to an image, which transforms do not change.
    """

    def __init__(self, open_: Callable[[str], Any]) -> None:
        self.open = open_
        self.path = ""
        self.image: Any = None

    def __call__(self, path: str) -> Any:
        """The image."""
        if path != self.path:
            self.image = self.open(path)
            self.path = path
        return self.image


class _Keyed:
    """The Items of given views, in batches of a size; a batch sampler."""

    def __init__(self, views: FileViews, index: Tensor, number: Tensor, size: int) -> None:
        self.views = views
        self.index = index
        self.number = number
        self.size = size

    def __len__(self) -> int:
        return -(-len(self.index) // self.size)

    def __iter__(self) -> Iterator[list[Item]]:
        parts = zip(self.index.split(self.size), self.number.split(self.size), strict=True)
        for index, number in parts:
            seeds = self.views.seeds(index, number)
            yield [Item(*pair) for pair in zip(index.tolist(), seeds, strict=True)]
