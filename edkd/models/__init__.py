"""Architectures, one file for each family. A new file in this folder is found automatically.

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
from edkd.hints import hint
from edkd.keys import Key
from edkd.models._hooked import as_network
from edkd.registry import MODELS, Entry, PublishedDict, import_files, place

import_files(__name__, __path__, MODELS)

DOWNLOADS = {"cifar": "teachers", "imagenet": "imagenet_teachers"}
"""Family -> name of its published weights for `edkd download`, where they can be downloaded."""


def model_names(family: str) -> list[str]:
    """The registered models of a family: "cifar", "tiny_imagenet", "imagenet" or one of your own.

    Raises:
        UserError: no model has that family.
    """
    known = [scope for scope in MODELS.scopes() if scope]
    if family not in known:
        raise UserError(
            f"unknown model family {family!r}{hint(family, known)} (known: {', '.join(known)})"
        )
    return MODELS.names(family)


def get_model(family: str, name: str, num_classes: int, cfg: Any = None) -> nn.Module:
    """Build a network with new weights.

    Args:
        family: as in `model_names`.
        name: of the model.
        num_classes: number of logits.
        cfg: the configuration; the model's own keys are read from `MODEL.<name>`. None: they have
            their defaults.

    Returns:
        A module under the contract of `Network`.

    Raises:
        UserError: the family or the name is unknown, or the model breaks the contract.
    """
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

    Raises:
        UserError: the family or the name is unknown.
    """
    return _weights(_find(family, name))


def _find(family: str, name: str) -> Entry:
    known = model_names(family)
    if name not in known and name in MODELS.names():
        entry = MODELS.find(name)
        raise UserError(
            f"model {name!r} of {entry.place} has no family; register it with family={family!r}"
        )
    return MODELS.find(name, family)


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
    "as_network",
    "cifar_model_dict",
    "get_model",
    "imagenet_model_dict",
    "model_names",
    "published_weights",
    "tiny_imagenet_model_dict",
]
