"""What passes between data sets, networks, methods and the engine."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class View(NamedTuple):
    """One augmented version of the images of a batch."""

    image: Tensor
    """(N,3,H,W), float32, normalised."""
    number: Tensor | None
    """(N,), which of the augmentation's numbered views each image shows; None: not numbered."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch on the device."""

    image: Tensor
    """(N,3,H,W), float32, normalised: the first of the views."""
    target: Tensor
    """(N,), class numbers; (N,C), class probabilities."""
    index: Tensor | None = None
    """(N,), numbers of the images in their set; None where the data loader has none."""
    epoch: int | Tensor = 1
    """From 1; in a captured step a tensor without dimensions."""
    views: Mapping[str, View] = field(default_factory=dict)
    """By name, as "weak" and "strong"."""
    counts: tuple[int, ...] = ()
    """Images of each process in the whole batch, of which this is a share; empty: one process has
    all. A process whose number is 0 has an image that does not count."""


def class_numbers(target: Tensor) -> Tensor:
    """Class numbers (N,); of class probabilities (N,C), the most probable class."""
    return target if target.dim() == 1 else target.argmax(1)


class Output(NamedTuple):
    """What a network returns for a batch."""

    logits: Tensor
    """(N,C)."""
    features: Mapping[str, Any]
    """`feats` and `preact_feats`, lists of (N,D,H,W), stem first; `pooled_feat`, (N,D). Of
    transformers also `tokens`, the list `feats` as (N,T,D) with class tokens first; of a network
    with a distillation token, in training, its `logits_dist` (N,C)."""


class LazyFeatures(Mapping[str, Any]):
    """Features that are computed when they are first looked at, once.

    Args:
        compute: returns the features.
    """

    def __init__(self, compute: Callable[[], Mapping[str, Any]]) -> None:
        self._compute = compute
        self._features: Mapping[str, Any] | None = None

    def _all(self) -> Mapping[str, Any]:
        if self._features is None:
            self._features = self._compute()
        return self._features

    def __getitem__(self, name: str) -> Any:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __contains__(self, name: object) -> bool:
        return name in self._all()


class ChangedFeatures(Mapping[str, Any]):
    """Features of which each is changed when it is first looked at.

    Args:
        features: as they are.
        change: from a feature, or a list of such, to what stands in its place.
    """

    def __init__(self, features: Mapping[str, Any], change: Callable[[Any], Any]) -> None:
        self.features = features
        self._change = change
        self._found: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._found:
            # The first look may be within no_grad, a later use outside it.
            with torch.enable_grad():
                self._found[name] = self._change(self.features[name])
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)

    def __contains__(self, name: object) -> bool:
        return name in self.features


@dataclass(frozen=True)
class InputSpec:
    """How images are prepared for a network, as its weights were trained."""

    image_shape: tuple[int, int, int]
    """(channels, height, width) of an image of a batch."""
    mean: tuple[float, ...]
    """Subtracted from pixels in [0, 1], one number a channel."""
    std: tuple[float, ...]
    """Divided by after that."""
    resize: int = 0
    """In evaluation the shorter side becomes so many pixels, then the centre is cropped; 0: the
    whole image is resized to height and width."""
    interpolation: str = "bilinear"
    """Of that resize, one of INTERPOLATIONS."""
    padded_from: tuple[int, int] | None = field(default=None, repr=False)
    """(height, width) to which the image is brought, before black pixels on all sides make it as
    large as `image_shape`; None: there are none. Not in the text, by which caches are found."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) without the black pixels."""
        return self.padded_from or self.image_shape[1:]

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Black pixels on the left, above, on the right and below; odd ones on the last two."""
        height, width = self.image_shape[1:]
        below = height - self.size[0]
        right = width - self.size[1]
        return right // 2, below // 2, right - right // 2, below - below // 2


INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


@dataclass(frozen=True)
class DataInfo:
    """Facts about a data set that methods and saved students need."""

    num_classes: int
    num_images: int
    """Images of the training set: each `index` of a batch is below it."""
    targets: Tensor | None
    """(num_images,), class numbers; None where they are not known before training."""
    image_shape: tuple[int, int, int]
    """(channels, height, width) of an image of a batch."""
    mean: tuple[float, ...] = ()
    """Subtracted from pixels in [0, 1], one number a channel; empty where it is not known."""
    std: tuple[float, ...] = ()
    """Divided by after that."""
    resize: int = 0
    """As `InputSpec.resize`."""
    interpolation: str = "bilinear"
    """As `InputSpec.interpolation`."""
    padded_from: tuple[int, int] | None = None
    """As `InputSpec.padded_from`."""
    class_names: tuple[str, ...] = ()
    """By class number; empty where they are not known."""
    identity: Mapping[str, str] = field(default_factory=dict)
    """Hashes of what the data set consists of, by a name for messages; --resume compares them."""

    @property
    def input(self) -> InputSpec | None:
        """How the images of the batches were prepared; None where the normalisation is unknown."""
        if not self.mean or not self.std:
            return None
        return self.preparation

    @property
    def preparation(self) -> InputSpec:
        """How they were prepared; mean and std are empty where they are not known."""
        return InputSpec(
            self.image_shape,
            self.mean,
            self.std,
            self.resize,
            self.interpolation,
            self.padded_from,
        )
