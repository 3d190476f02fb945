"""Mixup and CutMix, and the loader that changes whole batches on the device.

H. Zhang, M. Cisse, Y. N. Dauphin, D. Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR
2018, arXiv:1710.09412. S. Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers
with Localizable Features", ICCV 2019, arXiv:1905.04899.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from numpy.random import RandomState
from torch import Tensor

from edkd import world
from edkd.dataset._base import DataSet, Loader, with_images
from edkd.dataset.boxes import WHOLE, inside, size_of
from edkd.dataset.erasing import RandomErasing
from edkd.dataset.sampling import seed_for
from edkd.keys import INF, Key
from edkd.types import Batch

KEYS = {
    "SOLVER.MIXUP": Key(
        0.0,
        "alpha of mixup: the share of an image is drawn from Beta(alpha, alpha); 0: off",
        low=0,
        high=INF,
    ),
    "SOLVER.CUTMIX": Key(
        0.0,
        "alpha of CutMix: the area of the box is drawn from Beta(alpha, alpha); 0: off",
        low=0,
        high=INF,
    ),
    "SOLVER.MIX_PROB": Key(
        1.0,
        "probability that a batch is mixed, by mixup or CutMix",
        low=0,
        high=1.0,
        includes_high=True,
    ),
    "SOLVER.MIX_SWITCH_PROB": Key(
        0.5,
        "probability of CutMix instead of mixup, if both are on",
        low=0,
        high=1.0,
        includes_high=True,
    ),
}


class BatchAugmentation(Protocol):
    """A random change of a whole batch, made on the device from numbers that the host draws."""

    per_image: tuple[bool, ...]
    """Of each tensor that `draw` returns: whether its rows are those of the images."""
    not_numbered: str
    """Why its images have no view number, for the log."""

    def draw(self, random: RandomState, number: int) -> tuple[Tensor, ...]:
        """The numbers for a whole batch of `number` images, on the CPU."""

    def apply(self, batch: Batch, numbers: Sequence[Tensor]) -> Batch:
        """The batch changed by these numbers, without waiting for the device."""


class Mixing:
    """Each image is mixed with another one of its batch, and so are the targets.

    x = w * x_own + (1 - w) * x_other for each pixel. In mixup w is the share lambda; in CutMix w
    is 0 in a box with the area 1 - lambda, cut at the image's edges, and 1 outside of it. The mean
    of w is the share of the own target. A batch has one lambda, one box and one permutation, as in
    timm; all views of an image are mixed alike. `batch.index` stays the number of the own image.

    Args:
        mixup: alpha; 0: off.
        cutmix: alpha; 0: off.
        probability: that a batch is mixed.
        switch_probability: of CutMix, where both are on.
        num_classes: C of the targets.
        size: height and width of the images, in pixels; not needed without CutMix.
    """

    per_image: tuple[bool, ...] = (True, False)

    def __init__(
        self,
        mixup: float,
        cutmix: float,
        probability: float,
        switch_probability: float,
        num_classes: int,
        size: tuple[int, int] = (1, 1),
    ) -> None:
        self.mixup = mixup
        self.cutmix = cutmix
        self.probability = probability
        self.switch_probability = switch_probability
        self.num_classes = num_classes
        self.size = size
        key = "SOLVER.MIXUP" if mixup else "SOLVER.CUTMIX"
        self.not_numbered = f"{key} makes new images in each epoch"

    def draw(self, random: RandomState, number: int) -> tuple[Tensor, ...]:
        """The partner of each image (N,); the box and the weight w within it (5,)."""
        is_mixed = random.uniform() < self.probability
        is_cutmix = self.cutmix > 0
        if self.cutmix and self.mixup:
            is_cutmix = random.uniform() < self.switch_probability
        alpha = self.cutmix if is_cutmix else self.mixup
        own_share = random.beta(alpha, alpha)
        partner = torch.from_numpy(random.permutation(number))

        box = WHOLE
        weight = own_share
        if is_cutmix:
            box = self._box(random, own_share)
            weight = 0.0
        if not is_mixed:
            weight = 1.0
        return partner, torch.tensor([*box, weight], dtype=torch.float32)

    def _box(self, random: RandomState, own_share: float) -> tuple[float, float, float, float]:
        """A box around a random pixel, as shares of the height and the width."""
        edges = []
        for length in self.size:
            cut = int(length * math.sqrt(1 - own_share))
            centre = random.randint(length)
            first = max(centre - cut // 2, 0)
            last = min(centre + (cut + 1) // 2, length)
            edges += [first / length, last / length]
        top, bottom, left, right = edges
        return top, bottom, left, right

    def apply(self, batch: Batch, numbers: Sequence[Tensor]) -> Batch:
        """The batch with mixed images in each view and class probabilities (N,C) as targets."""
        partner, mix = numbers
        target = batch.target
        if not target.is_floating_point():
            target = F.one_hot(target, self.num_classes).to(batch.image.dtype)
        share = own_weight(batch.image, mix).mean()

        def others(own: Tensor) -> Tensor:  # a partner may be in another process
            return world.gather_rows(own, batch.counts)[partner]

        target = torch.lerp(others(target), target, share)
        mixed_batch = with_images(batch, lambda image: mixed(image, others(image), mix))
        return dataclasses.replace(mixed_batch, target=target)


def mixed(image: Tensor, other: Tensor, mix: Tensor) -> Tensor:
    """Images (N,...), each mixed with another one."""
    return torch.lerp(other, image, own_weight(image, mix))


def own_weight(image: Tensor, mix: Tensor) -> Tensor:
    """The weight w of the own image: (H,W) for images, else without dimensions.

    Args:
        image: (N,C,H,W), or (N,...) where the box is the whole.
        mix: (5,): the box, and w within it; w is 1 outside.
    """
    box, within = mix.split([4, 1])
    within = within[0].to(image.dtype)
    if image.dim() != 4:
        return within
    return torch.where(inside(box, *image.shape[2:]), within, 1.0)


class AugmentedLoader(Loader):
    """Batches of another loader, changed on the device.

    The numbers of a batch depend on (seed, epoch, number of the batch) alone, so that workers,
    stopping and resuming change nothing. Its images have no view numbers, so that logits of the
    teacher cannot be cached.

    Args:
        inner: of training images.
        augmentations: in their order.
        seed: SOLVER.SEED.
    """

    def __init__(
        self, inner: Loader, augmentations: Sequence[BatchAugmentation], seed: int
    ) -> None:
        self.inner = inner
        self.augmentations = list(augmentations)
        self.seed = seed
        self.num_images = inner.num_images
        self.num_left_out = inner.num_left_out
        self.has_index = inner.has_index
        self.views = inner.views
        self.not_numbered = self.augmentations[-1].not_numbered
        self.is_shared = inner.is_shared

    def __len__(self) -> int:
        return len(self.inner)

    def use_views(self, names: Sequence[str]) -> None:
        """See `Loader.use_views`."""
        self.inner.use_views(names)
        self.views = self.inner.views

    def inputs(self, epoch: int = 0, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Those of the inner loader, then the numbers of each augmentation."""
        for number, inputs in enumerate(self.inner.inputs(epoch, first), first):
            self.counts = self.inner.counts
            total = sum(self.counts) or len(inputs[0])
            rows = world.own_rows(self.counts, total)

            numbers: list[Tensor] = []
            for place, augmentation in enumerate(self.augmentations):
                random = RandomState(seed_for(self.seed, epoch, number, place))
                drawn = zip(augmentation.draw(random, total), augmentation.per_image, strict=True)
                numbers += [each[rows] if is_per_image else each for each, is_per_image in drawn]

            device = inputs[0].device
            yield (*inputs, *(each.to(device, non_blocking=True) for each in numbers))

    def batch(self, *inputs: Tensor) -> Batch:
        """The inner loader's batch, changed by each augmentation in turn."""
        total = sum(len(augmentation.per_image) for augmentation in self.augmentations)
        rest = list(inputs[len(inputs) - total :])
        batch = self.inner.batch(*inputs[: len(inputs) - total])

        for augmentation in self.augmentations:
            count = len(augmentation.per_image)
            batch = augmentation.apply(batch, rest[:count])
            rest = rest[count:]
        return batch


def with_batch_augmentations(data: DataSet, cfg: Any) -> DataSet:
    """The data set with the training batches erased and mixed, in this order, as cfg says.

    Args:
        cfg: DATASET.RANDOM_ERASING, SOLVER.MIXUP, CUTMIX, MIX_PROB, MIX_SWITCH_PROB and SEED are
            read.

    Raises:
        UserError: the data are not images.
    """
    shape = data.info.image_shape
    solver = cfg.SOLVER
    augmentations: list[BatchAugmentation] = []

    if cfg.DATASET.RANDOM_ERASING:
        size = size_of(shape, "DATASET.RANDOM_ERASING")
        augmentations.append(RandomErasing(cfg.DATASET.RANDOM_ERASING, *size))
    if solver.MIXUP or solver.CUTMIX:
        size = size_of(shape, "SOLVER.CUTMIX") if solver.CUTMIX else (1, 1)
        augmentations.append(
            Mixing(
                solver.MIXUP,
                solver.CUTMIX,
                solver.MIX_PROB,
                solver.MIX_SWITCH_PROB,
                data.num_classes,
                size,
            )
        )

    if not augmentations:
        return data
    train = AugmentedLoader(data.train, augmentations, solver.SEED)
    return dataclasses.replace(data, train=train)
