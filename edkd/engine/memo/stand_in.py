"""The module in the teacher's place: cached outputs for the images of the batch."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edkd.engine.memo.rows import LOGITS, Values
from edkd.types import Batch, LazyFeatures, Output


class Snapshot(NamedTuple):
    """An image tensor as it was when its batch was made."""

    image: Tensor
    """(N,3,H,W)."""
    version: int
    """Counts changes in place."""

    def matches(self, image: Tensor) -> bool:
        """Whether an image is this one, unchanged, and no gradient of it is wanted."""
        if image is not self.image or image.requires_grad:
            return False

        # A compiler cannot trace versions. For a published-style method the trial step checked it.
        return torch.compiler.is_compiling() or image._version == self.version


def snapshot(image: Tensor) -> Snapshot:
    """An image as it is now."""
    version = 0 if torch.compiler.is_compiling() else image._version
    return Snapshot(image, version)


class Lookup(NamedTuple):
    """An image tensor and its cached outputs."""

    image: Snapshot
    rows: Tensor
    """(N,), rows of the tables."""
    tables: Values
    """(set_size,width) each, by the name of what is stored."""


class CachedFeatures(Mapping[str, Any]):
    """Features of which some are cached; the others are computed when one is looked at.

    Args:
        cached: by name.
        compute: returns all features.
    """

    def __init__(self, cached: Values, compute: Callable[[], Mapping[str, Any]]) -> None:
        self.cached = cached
        self.others = LazyFeatures(compute)

    def __getitem__(self, name: str) -> Any:
        return self.cached[name] if name in self.cached else self.others[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.others)

    def __len__(self) -> int:
        return len(self.others)

    def __contains__(self, name: object) -> bool:
        return name in self.cached or name in self.others


class PassThrough(nn.Module):
    """A module in the teacher's place; the teacher's other attributes are reached through it."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return self.teacher_attribute(name)

    def teacher_attribute(self, name: str) -> Any:
        """An attribute of the teacher."""
        return getattr(super().__getattr__("teacher"), name)


class StandIn(PassThrough):
    """Returns cached outputs for the images of the expected batch, and runs the teacher for others.

    A lookup happens on the device alone, so that a CUDA graph can contain it.

    Args:
        teacher: frozen, in eval mode.
        tables: by the name of the view, at least one: what is stored, (set_size,width) by name,
            filled for the epoch.
        outputs: makes the outputs of rows of these tables, the logits among them; None: they are
            the outputs.
        places: (set_size,), the row of each image; None: its number.
    """

    def __init__(
        self,
        teacher: nn.Module,
        tables: dict[str, Values],
        outputs: Callable[[Values], Values] | None = None,
        places: Tensor | None = None,
    ) -> None:
        super().__init__(teacher)
        self.tables = tables
        self.places = places
        self.outputs = outputs
        self.lookups: list[Lookup] = []

    def expect(self, batch: Batch) -> None:
        """Announce the next batch.

        With one table, `batch.image` is served; with several, the image of each view.

        Args:
            batch: of a NumberedLoader, which numbers its images.
        """
        assert batch.index is not None
        if len(self.tables) == 1:
            images = [batch.image]
        else:
            images = [batch.views[name].image for name in self.tables]

        rows = batch.index if self.places is None else self.places[batch.index]
        tables = self.tables.values()
        self.lookups = [
            Lookup(snapshot(image), rows, own) for image, own in zip(images, tables, strict=True)
        ]

    def forward(self, *images: Any, **options: Any) -> Any:
        """Logits (N,C) without gradients, and features.

        The teacher runs at most once for features that are not cached, when one is read.
        """
        if len(images) != 1 or options:
            return self.teacher(*images, **options)

        image = images[0]
        for lookup in self.lookups:
            if lookup.image.matches(image):
                cached = {name: table[lookup.rows] for name, table in lookup.tables.items()}
                if self.outputs is not None:
                    cached = self.outputs(cached)
                logits = cached.pop(LOGITS)
                return Output(logits, CachedFeatures(cached, lambda: self.features(image)))
        return self.teacher(image)

    @torch.no_grad()
    def features(self, image: Tensor) -> Any:
        """Run the teacher for its features."""
        _, features = self.teacher(image)
        return features
