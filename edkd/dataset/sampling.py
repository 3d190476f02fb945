"""The order of an epoch, as a pure function of (seed, epoch): nothing else may change what is trained on."""

import hashlib
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edkd.errors import UserError


def seed_for(*numbers: int) -> int:
    """A 32-bit seed that depends on all the numbers (a CPU generator uses 32 bits of what it is given)."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest(), "little")


def seed_everything(seed: int) -> None:
    """Seed the generators that code of others may draw from: torch's, NumPy's and Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def random_state() -> dict[str, Any]:
    """The state of these generators, in tensors and plain values."""
    name, key, *rest = np.random.get_state()
    state = {"torch": torch.get_rng_state(), "numpy": [name, torch.from_numpy(np.asarray(key, np.int64)), *rest]}
    if _has_accelerator():
        state["accelerator"] = torch.get_device_module().get_rng_state()
    return state | {"python": random.getstate()}


def _has_accelerator() -> bool:
    """Whether one is in use: asking for its state would begin to use it, and take memory there."""
    return torch.accelerator.is_available() and getattr(torch.get_device_module(), "is_initialized", lambda: True)()


def set_random_state(state: dict[str, Any]) -> None:
    """Take over what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    name, key, *rest = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
    if "accelerator" in state and _has_accelerator():
        torch.get_device_module().set_rng_state(state["accelerator"])


def epoch_order(members: Tensor, num_images: int, num_views: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Draw an epoch.

    Args:
        members: (M,), the images that take part, by number.
        num_images: images in the whole set; each gets a view, so that a held-out split does not move the others'.
        num_views: views an image has.

    Returns:
        The members in the order of the epoch (M,), and the view of each (M,), on the CPU.
    """
    generator = torch.Generator().manual_seed(seed_for(seed, epoch))
    views = torch.randint(num_views, (num_images,), generator=generator)
    index = members[torch.randperm(len(members), generator=generator)]
    return index, views[index]


def hold_out(target: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """`stratified_split` for DATASET.VAL_SPLIT: raises UserError where a part that is asked for would be empty."""
    rest, held = stratified_split(target, fraction)
    if not len(rest) or (fraction and not len(held)):
        raise UserError(
            f"DATASET.VAL_SPLIT {fraction} leaves {len(rest)} images to train on and holds out {len(held)}; "
            "change it so that each class keeps some of both"
        )
    return rest, held


def stratified_split(target: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Split image numbers into (the rest, the held-out fraction) with the same share of each class; always the same.

    Args:
        target: (N,), class numbers.
        fraction: held out, in [0, 1); each class gives its share, rounded.

    Returns:
        Two sorted tensors of image numbers.
    """
    generator = torch.Generator().manual_seed(seed_for(0))
    held = torch.zeros(len(target), dtype=torch.bool)
    for number in target.unique():
        members = (target == number).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        held[shuffled[: round(fraction * len(members))]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()
