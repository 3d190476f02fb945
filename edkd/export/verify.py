"""Compares an exported file with the checkpoint that it was made from."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from edkd.errors import UserError
from edkd.export.sessions import Classify

TOLERANCE = 1e-4
"""Largest difference of two logits, relative to the largest logit."""

_TIE = 1e-5
"""Two logits of an image that are closer than this, relative to the largest, are a tie."""


class Agreement(NamedTuple):
    """How far two networks agree on images."""

    images: int
    difference: float
    """The largest difference of two logits, relative to the largest logit."""
    differing: int
    """Images whose top-1 class differs, ties aside."""

    @property
    def is_good(self) -> bool:
        """Whether the file may be used in place of the checkpoint."""
        return self.images > 0 and self.difference <= TOLERANCE and not self.differing

    def __str__(self) -> str:
        same = self.images - self.differing
        return (
            f"largest relative difference of logits {self.difference:.1e}, "
            f"same top-1 class for {same} of {self.images}"
        )


def compare(exported: Classify, reference: Classify, batches: Iterable[Tensor]) -> Agreement:
    """Run both networks on the same images.

    Args:
        batches: (N,3,H,W), normalised.
    """
    pairs = [(exported(image), reference(image)) for image in batches]
    if not pairs:
        return Agreement(0, 0.0, 0)

    given = torch.cat([logits for logits, _ in pairs]).double()
    wanted = torch.cat([logits for _, logits in pairs]).double()
    if given.shape != wanted.shape or not given.isfinite().all():
        return Agreement(len(wanted), float("inf"), len(wanted))

    scale = wanted.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    choice = given.argmax(1, keepdim=True)
    margin = wanted.max(1).values - wanted.gather(1, choice)[:, 0]
    return Agreement(
        images=len(wanted),
        difference=float((given - wanted).abs().max() / scale),
        differing=int((margin > _TIE * scale).sum()),
    )


def refuse_disagreement(agreement: Agreement, what: str) -> None:
    """Raise UserError where a file must not be used.

    Args:
        what: the images, for the message.
    """
    if not agreement.is_good:
        raise UserError(
            f"the exported network differs from the checkpoint on {agreement.images} {what} "
            f"({agreement}; allowed is {TOLERANCE:.0e}), so no file is written; try another --to"
        )
