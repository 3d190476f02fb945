"""The order of an epoch, a pure function of (seed, epoch), and the state of random generators."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edkd.errors import UserError

# Seeds and states.


def seed_for(*numbers: int) -> int:
    """A seed that depends on all the numbers; 32 bits, as a CPU generator uses no more."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch (on all devices), NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def random_state() -> dict[str, Any]:
    """The state of these generators, in tensors and plain values."""
    state = _host_state()
    if _has_accelerator():
        state["accelerator"] = torch.get_device_module().get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])

    name, key, *rest = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), *rest))

    if "accelerator" in state and _has_accelerator():
        torch.get_device_module().set_rng_state(state["accelerator"])


def _host_state() -> dict[str, Any]:
    name, key, *rest = np.random.get_state()
    words = torch.from_numpy(np.asarray(key, np.int64))
    return {
        "torch": torch.get_rng_state(),
        "numpy": [name, words, *rest],
        "python": random.getstate(),
    }


def _has_accelerator() -> bool:
    """Whether one is in use. To read the state of an unused one would allocate memory there."""
    if not torch.accelerator.is_available():
        return False
    module = torch.get_device_module()
    return module.is_initialized() if hasattr(module, "is_initialized") else True


class RandomStream:
    """Random numbers for code that draws from the host's global generators, apart from all others.

    The numbers drawn within `active` blocks continue one sequence, which the seed alone decides.
    The generators of an accelerator are left alone.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._state: dict[str, Any] | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the block the generators yield this stream; afterwards they are as before."""
        outside = _host_state()
        if self._state is None:
            torch.default_generator.manual_seed(self.seed)
            np.random.seed(self.seed)
            random.seed(self.seed)
        else:
            set_random_state(self._state)

        try:
            yield
        finally:
            self._state = _host_state()
            set_random_state(outside)


# Orders and splits.


def epoch_order(
    members: Tensor, num_images: int, num_views: Sequence[int], seed: int, epoch: int
) -> tuple[Tensor, list[Tensor]]:
    """Draw the order of an epoch, and a view number for each of its images.

    Args:
        members: (M,), numbers of the images that take part.
        num_images: images in the whole set. A view is drawn for each of them, so that a held-out
            split does not change the views of the others.
        num_views: how many numbered views an image has, for each kind of view; at least one kind.

    Returns:
        The members in the order of the epoch (M,), and for each kind of view the number of each
        image's view (M,), on the CPU. The kinds after the first do not change the rest.
    """
    generator = torch.Generator().manual_seed(seed_for(seed, epoch))

    def draw(count: int) -> Tensor:
        return torch.randint(count, (num_images,), generator=generator)

    first = draw(num_views[0])
    index = members[torch.randperm(len(members), generator=generator)]
    further = [draw(count) for count in num_views[1:]]
    return index, [numbers[index] for numbers in (first, *further)]


def split_batches(index: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """The batches of an epoch, (batch_size,) each but the last.

    A single image that is left joins the batch before it: batch normalisation cannot train on one
    value per channel. Where `batch_size` is 1, or there is one image, a batch has one image.
    """
    parts = index.split(batch_size)
    if num_batches(len(index), batch_size) == len(parts):
        return parts
    return (*parts[:-2], torch.cat(parts[-2:]))


def num_batches(num_images: int, batch_size: int) -> int:
    """The number of batches that `split_batches` makes."""
    has_single = num_images > batch_size > 1 and num_images % batch_size == 1
    return -(-num_images // batch_size) - has_single


def hold_out(target: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """`stratified_split` for DATASET.VAL_SPLIT; UserError if a part would be empty."""
    rest, held_out = stratified_split(target, fraction)
    is_missing = fraction > 0 and not len(held_out)
    if is_missing or not len(rest):
        raise UserError(
            f"DATASET.VAL_SPLIT {fraction} leaves {len(rest)} images for training and holds out "
            f"{len(held_out)}; change it so that both parts have images of each class"
        )
    return rest, held_out


def stratified_split(
    target: Tensor, fraction: float, seed: int = 0, keeps_one: bool = False
) -> tuple[Tensor, Tensor]:
    """Split image numbers into the rest and a held-out fraction; always the same for a seed.

    Args:
        target: (N,), class numbers.
        fraction: in [0, 1); each class gives this share of its images, rounded.
        keeps_one: whether each class of two images or more has at least one in both parts.

    Returns:
        Two sorted tensors of image numbers.
    """
    generator = torch.Generator().manual_seed(seed_for(seed))
    is_held_out = torch.zeros(len(target), dtype=torch.bool)

    for number in target.unique():
        members = (target == number).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        count = round(fraction * len(members))
        if keeps_one:
            count = max(1, min(count, len(members) - 1))
        is_held_out[shuffled[:count]] = True

    rest = (~is_held_out).nonzero().flatten()
    return rest, is_held_out.nonzero().flatten()
