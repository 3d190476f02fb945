"""Which images of a set of files are in each batch of an epoch."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edkd import world
from edkd.dataset.folder_views import FileViews, Item
from edkd.dataset.sampling import epoch_order, num_batches, seed_for, split_batches


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
