"""Architectures, one file for each family. A new file in this folder is found automatically.

A plain name is looked up in the family of the data set. `<family>/<name>` names a model of another
family of this package, and `<library>/<name>` one of another library: "torchvision/resnet50",
"timm/convnext_tiny.fb_in1k". Both can be used with any data set. `<name>+simkd-<projection>` is a
network with a reused classifier, see `edkd.reused_classifier`.

A file registers its models with `MODELS.register(name, family="cifar")`. The family is the one of
the data sets that the model is made for. A constructor takes `num_classes`, and the model's
`defaults` as keyword arguments in lower case. It returns a module under the contract of
`_base.Network`, or any module that returns logits. State-dict keys are the published ones.
"""

import inspect
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from edkd.errors import UserError
from edkd.hints import closest, unknown
from edkd.keys import Key
from edkd.models import _timm, _torchvision  # noqa: F401  they add their libraries
from edkd.models._fixed_size import Resize
from edkd.models._hooked import as_network
from edkd.models._libraries import (
    LIBRARIES,
    SEPARATOR,
    Library,
    LibraryFacts,
    library_facts,
    library_of,
    library_weights,
)
from edkd.models._own_input import OwnInput, preparation, prepared_alike, size_of
from edkd.models._wrapping import unwrapped
from edkd.registry import MODELS, Entry, PublishedDict, import_files, place
from edkd.reused_classifier import ReusedClassifier, parts_of

import_files(__name__, __path__, MODELS)

DOWNLOADS = {"cifar": "teachers", "imagenet": "imagenet_teachers"}
"""Family -> name of its published weights for `edkd download`, where they can be downloaded."""


def model_names(family: str) -> list[str]:
    """The models of a family, or of a library.

    Args:
        family: "cifar", "tiny_imagenet", "imagenet" or one of your own; "torchvision" or "timm".

    Raises:
        UserError: no model has that family, or the library is not installed.
    """
    if family in LIBRARIES:
        return LIBRARIES[family].names()
    known = [scope for scope in MODELS.scopes() if scope]
    if family not in known:
        raise UserError(unknown("model family", family, known))
    return MODELS.names(family)


def check_model(family: str, name: str) -> None:
    """Raise UserError where a name is not that of a model; the message has the nearest one.

    Args:
        family: in which a plain name is looked up.
        name: as a configuration has it.
    """
    name, _ = parts_of(name)
    library, own = library_of(name)
    if library is not None:
        library.check(own)
    else:
        _find(family, name)


def is_qualified(name: str) -> bool:
    """Whether a name is more than that of a model in a family.

    "torchvision/resnet50" and "cifar/resnet20" say where the model is; "resnet8+simkd-..." is a
    model with a reused classifier.
    """
    _, projection = parts_of(name)
    return (SEPARATOR in name or projection is not None) and name not in MODELS


def registered_name(name: str) -> str:
    """The name under which a model of this package or of a plugin is registered; else ""."""
    name, _ = parts_of(name)
    library, own = library_of(name)
    if library is not None:
        return ""
    return own.rpartition(SEPARATOR)[2] if is_qualified(own) else own


def own_keys(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A model's own keys among those of a configuration, as {"MODEL.SmallNet.WIDTH": 8}."""
    own = registered_name(name)
    group = f"{MODELS.node}.{own}."
    return {key: value for key, value in values.items() if own and key.startswith(group)}


def is_of_plugin(family: str, name: str) -> bool:
    """Whether a model is neither of this package nor of a library.

    Args:
        family: in which a plain name is looked up.
        name: of a registered model.
    """
    own, _ = parts_of(name)
    if not registered_name(own):
        return False

    here = (f"{__name__}.", os.path.dirname(__file__))
    return not _find(family, own).place.startswith(here)


def elsewhere(family: str, name: str) -> str:
    """What to write for a plain name that is not in a family but elsewhere, as a hint, or ""."""
    if is_qualified(name):
        return ""
    homes = [scope for scope in MODELS.scopes() if scope and scope != family]
    found = [home for home in homes if name in MODELS.names(home)]

    # A library that takes seconds to import is not searched for a word that seems misspelt.
    is_typo = bool(closest(name, MODELS.names(family)))
    for library in LIBRARIES.values():
        if not found and not (is_typo and library.is_slow) and _has(library, name):
            found.append(library.name)
    written = " or ".join(f"{home}{SEPARATOR}{name}" for home in found)
    return f"; write {written}" if written else ""


def get_model(family: str, name: str, num_classes: int, cfg: Any = None) -> nn.Module:
    """Build a network with new weights.

    Args:
        family: in which a plain name is looked up, as in `model_names`.
        name: of the model; see the module for names in other families and libraries.
        num_classes: number of logits.
        cfg: the configuration; the model's own keys are read from `MODEL.<name>`. None: they have
            their defaults.

    Returns:
        A module under the contract of `Network`.

    Raises:
        UserError: the family or the name is unknown, its library is not installed, or the model
            breaks the contract.
    """
    student, projection = parts_of(name)
    if projection is not None:
        return ReusedClassifier(
            get_model(family, student, num_classes, cfg), projection, num_classes
        )

    library, own = library_of(name)
    if library is not None:
        library.check(own)
        return as_network(library.build(own, num_classes))

    entry = _find(family, name)
    node = entry.defaults if cfg is None or not entry.defaults else cfg.MODEL[entry.name]
    settings = {key.lower(): _plain(value) for key, value in node.items()}

    arguments = settings | {"num_classes": num_classes}
    _check_arguments(entry, arguments)
    model = entry.value(**arguments)

    if not isinstance(model, nn.Module):
        raise UserError(
            f"model {entry.name!r} of {entry.place} must be a torch.nn.Module, "
            f"not {type(model).__name__}"
        )
    return as_network(model)


def published_weights(family: str, name: str) -> str | None:
    """Path of a model's published weights; the file need not exist. None if there are none.

    A file holds {"model": state_dict}. Those of torchvision, for "imagenet", hold the state dict.
    For the model of a library there is no such file; see `library_weights`.

    Raises:
        UserError: the family or the name is unknown.
    """
    library, _ = library_of(name)
    _, projection = parts_of(name)
    if library is not None or projection is not None:
        return None
    return _weights(_find(family, name))


def _find(family: str, name: str) -> Entry:
    if is_qualified(name):
        family, _, name = name.partition(SEPARATOR)
        _check_home(family)

    known = model_names(family)
    if name not in known and name in MODELS.names():
        entry = MODELS.find(name)
        raise UserError(
            f"model {name!r} of {entry.place} has no family; register it with family={family!r}"
        )

    is_here = name.lower() in (each.lower() for each in known)
    other = "" if is_here else elsewhere(family, name)
    if other:
        raise UserError(f"unknown {family} model {name!r}{other}")
    return MODELS.find(name, family)


def _check_home(word: str) -> None:
    """Raise UserError where what stands before a "/" is neither a family nor a library."""
    homes = [scope for scope in MODELS.scopes() if scope]
    known = [*homes, *LIBRARIES]
    if word not in homes:
        raise UserError(unknown("library or family of models", word, known))


def _has(library: Library, name: str) -> bool:
    """Whether a library is installed and has a model."""
    try:
        return name in library.names()
    except UserError:
        return False


def _weights(entry: Entry) -> str | None:
    weights = entry.info.get("weights")
    return os.fspath(weights) if weights else None


def _plain(value: Any) -> Any:
    """The value of a key; a default may be a `Key`, or a dictionary of them."""
    if isinstance(value, Key):
        return value.default
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return value


def _check_arguments(entry: Entry, arguments: dict[str, Any]) -> None:
    try:
        inspect.signature(entry.value, follow_wrapped=False).bind(**arguments)
    except TypeError as error:
        names = ", ".join(arguments)
        raise UserError(
            f"model {entry.name!r} of {entry.place} must take the arguments {names} ({error})"
        ) from None


def _check_constructor(name: str, constructor: Any) -> None:
    if not callable(constructor):
        raise UserError(f"model {name!r} of {place(constructor)} must be a class or a function")


def _read(entry: Entry) -> tuple[Any, str | None]:
    return entry.value, _weights(entry)


def _write(value: tuple[Any, str | None]) -> tuple[Any, dict[str, Any]]:
    constructor, weights = value
    return constructor, {"weights": weights}


MODELS.check = _check_constructor

cifar_model_dict = PublishedDict(MODELS, "cifar", _read, _write)
"""Name -> (constructor, path of the published weights or None)."""
tiny_imagenet_model_dict = PublishedDict(MODELS, "tiny_imagenet", _read, _write)
"""Name -> (constructor, path of the published weights or None)."""
imagenet_model_dict = PublishedDict(MODELS, "imagenet")
"""Name -> constructor."""

__all__ = [
    "DOWNLOADS",
    "LibraryFacts",
    "OwnInput",
    "Resize",
    "as_network",
    "check_model",
    "cifar_model_dict",
    "elsewhere",
    "get_model",
    "imagenet_model_dict",
    "is_of_plugin",
    "is_qualified",
    "library_facts",
    "library_of",
    "library_weights",
    "model_names",
    "own_keys",
    "preparation",
    "prepared_alike",
    "published_weights",
    "registered_name",
    "size_of",
    "tiny_imagenet_model_dict",
    "unwrapped",
]
