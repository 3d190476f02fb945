"""Models of other libraries, by the name of the library: "torchvision/resnet50"."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from edkd.errors import UserError
from edkd.hints import hint
from edkd.reused_classifier import parts_of
from edkd.types import InputSpec

SEPARATOR = "/"
"""Between a library, or a family of this package, and the name of a model in it."""


class LibraryFacts(NamedTuple):
    """What a library says about the pretrained weights of a model."""

    num_classes: int
    input: InputSpec
    """How the images were prepared."""
    accuracy: float | None
    """Top-1 in percent on ImageNet-1K, as the library states it; None where it does not."""
    licence: str
    """As the library states it; "" where it does not."""
    class_names: tuple[str, ...]
    """By class number; empty where they are not known."""
    source: str
    """The address of the file, or its name on the Hugging Face hub."""


class Unreachable(Exception):
    """Weights could not be downloaded; the text is the reason."""


class Library(ABC):
    """A library with models that are found by name and may have pretrained weights."""

    name: str
    """In front of its models' names."""
    is_slow: bool = False
    """Whether it takes seconds to import."""

    @abstractmethod
    def names(self) -> list[str]:
        """Its classification models, without its own name."""

    @abstractmethod
    def build(self, name: str, num_classes: int) -> nn.Module:
        """A model with new weights. Nothing is downloaded."""

    @abstractmethod
    def facts(self, name: str) -> LibraryFacts | None:
        """About the pretrained weights of a model; None where it has none."""

    @abstractmethod
    def download(self, name: str) -> dict[str, Tensor]:
        """The state dict of a model with its pretrained weights, from the library's own cache.

        Raises:
            Unreachable: it is not in the cache and cannot be downloaded.
        """

    def check(self, name: str) -> None:
        """Raise UserError where the library has no model of a name; it has the nearest one."""
        names = self.names()
        if name not in names:
            about = hint(name, names) or f" ({len(names)} models, as {', '.join(names[:3])})"
            raise UserError(f"unknown {self.name} model {name!r}{about}")


LIBRARIES: dict[str, Library] = {}
"""By name. A file of this folder adds its library with `add_library`."""


def add_library(kind: Callable[[], Library]) -> Callable[[], Library]:
    """Decorator: enter a library under its name."""
    library = kind()
    LIBRARIES[library.name] = library
    return kind


def library_of(name: str) -> tuple[Library | None, str]:
    """The library of a model and the model's name in it; (None, the name) where there is none.

    A library's network with a reused classifier is not the library's.
    """
    _, projection = parts_of(name)
    first, separator, rest = name.partition(SEPARATOR)
    if separator and first in LIBRARIES and projection is None:
        return LIBRARIES[first], rest
    return None, name


def library_facts(name: str) -> LibraryFacts | None:
    """What a library says about the pretrained weights of a model, as "timm/resnet50.a1_in1k".

    Returns:
        None where the model is not a library's, or has no pretrained weights.

    Raises:
        UserError: the library is not installed, or has no such model.
    """
    library, own = library_of(name)
    if library is None:
        return None
    library.check(own)
    return library.facts(own)


def library_weights(name: str, path_key: str) -> dict[str, Any]:
    """The state dict of a library's model with its pretrained weights.

    Args:
        name: as "torchvision/resnet50".
        path_key: how the user names a file of weights, for messages.

    Raises:
        UserError: the model has no pretrained weights, or they cannot be downloaded.
    """
    library, own = library_of(name)
    facts = library_facts(name)
    if library is None or facts is None:
        raise UserError(f"{name} has no pretrained weights; give a file with {path_key} FILE")

    try:
        return library.download(own)
    except Unreachable as error:
        raise UserError(
            f"could not download the pretrained weights of {name} from {facts.source} ({error}); "
            f"download them on a machine with a network, and give the file with {path_key} FILE"
        ) from error
