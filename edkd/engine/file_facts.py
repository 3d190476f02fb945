"""What a file of weights says about its network, compared with what it is loaded for."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

from edkd.errors import UserError
from edkd.invocation import command
from edkd.types import INTERPOLATIONS, DataInfo, InputSpec


class Use(NamedTuple):
    """What a file is loaded for."""

    data: DataInfo | None = None
    """Of the data set that the network will see; None: its classes are not compared."""
    dataset: str = ""
    """Name of that data set."""
    model: str = ""
    """Name of the network."""
    model_key: str = "DISTILLER.TEACHER"
    """How the user names the network."""
    data_key: str = ""
    """How the user names the data set; "": it stays, and another network must be given."""


class Facts(NamedTuple):
    """What a file says about its network; empty where it does not."""

    architecture: str = ""
    dataset: str = ""
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    accuracy: float | None = None
    """Top-1 in percent."""
    input: InputSpec | None = None
    """How the images were prepared that it was trained on."""
    model_keys: Mapping[str, Any] = MappingProxyType({})
    """The keys of its model, as {"MODEL.SmallNet.WIDTH": 8}."""


_of_networks: "WeakKeyDictionary[nn.Module, Facts]" = WeakKeyDictionary()
"""The facts in the file of each network's weights."""


def note_facts(model: nn.Module, facts: Facts) -> None:
    """Keep the facts in the file that a network was loaded from."""
    _of_networks[model] = facts


def noted_facts(model: nn.Module) -> Facts:
    """The facts in the file that a network, or a module in it, was loaded from."""
    for module in model.modules():
        if module in _of_networks:
            return _of_networks[module]
    return Facts()


def facts_of(content: Mapping[str, Any]) -> Facts:
    """The facts in a student's file; those of another type are left out."""
    architecture = content.get("architecture", content.get("arch"))
    dataset = content.get("dataset")
    number = content.get("num_classes")
    names = content.get("class_names")

    are_names = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return Facts(
        architecture=architecture if isinstance(architecture, str) else "",
        dataset=dataset if isinstance(dataset, str) else "",
        num_classes=number if isinstance(number, int) else 0,
        class_names=tuple(names) if names and are_names else (),
        accuracy=_percent(content),
        input=_input_of(content),
        model_keys=_model_keys(content),
    )


def as_content(facts: Facts) -> dict[str, Any]:
    """The entries of a student's file that `facts_of` reads; those not known are left out."""
    content: dict[str, Any] = {
        "architecture": facts.architecture,
        "dataset": facts.dataset,
        "num_classes": facts.num_classes,
        "class_names": list(facts.class_names),
    }
    if facts.model_keys:
        content["model_keys"] = dict(facts.model_keys)
    if facts.accuracy is not None:
        content["accuracy"] = facts.accuracy

    own = facts.input
    if own is not None:
        content["image_shape"] = list(own.image_shape)
        content["mean"] = list(own.mean)
        content["std"] = list(own.std)
        content["resize"] = own.resize
        content["interpolation"] = own.interpolation
        if own.padded_from:
            content["padded_from"] = list(own.padded_from)
    return content


def _percent(content: Mapping[str, Any]) -> float | None:
    """The accuracy in a file. Other training scripts also write a share, or a tensor."""
    value: Any = content.get("accuracy")
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return None
    if not math.isfinite(number) or not 0 <= number <= 100:
        return None

    is_own = "split" in content
    return 100.0 * number if number <= 1 and not is_own else float(number)


def _model_keys(content: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a model; other entries are left out."""
    found = content.get("model_keys")
    if not isinstance(found, dict):
        return {}

    keys = {}
    for key, value in found.items():
        is_key = isinstance(key, str) and key.startswith("MODEL.")
        if is_key and isinstance(value, (str, int, float, list)):
            keys[key] = value
    return keys


def _input_of(content: Mapping[str, Any]) -> InputSpec | None:
    """How the images were prepared; None where the file does not say it, or says what cannot be."""
    shape = _numbers(content.get("image_shape"))
    mean = _numbers(content.get("mean"))
    std = _numbers(content.get("std"))
    if len(shape) != 3 or len(mean) != shape[0] or len(std) != shape[0]:
        return None
    if min(shape) < 1 or min(std) <= 0 or not all(map(math.isfinite, (*shape, *mean, *std))):
        return None

    resize = content.get("resize", 0)
    interpolation = content.get("interpolation", "bilinear")
    if not isinstance(resize, int) or resize < 0 or interpolation not in INTERPOLATIONS:
        return None

    channels, height, width = map(int, shape)
    padded_from = None
    if "padded_from" in content:
        padded_from = _size_within(content["padded_from"], height, width)
        if padded_from is None:
            return None

    return InputSpec(
        image_shape=(channels, height, width),
        mean=mean,
        std=std,
        resize=resize,
        interpolation=interpolation,
        padded_from=padded_from,
    )


def _size_within(value: Any, height: int, width: int) -> tuple[int, int] | None:
    """A height and width that are not above others; None for anything else."""
    numbers = _numbers(value)
    if len(numbers) != 2:
        return None

    own_height, own_width = numbers
    is_within = 1 <= own_height <= height and 1 <= own_width <= width
    return (int(own_height), int(own_width)) if is_within else None


def _numbers(value: Any) -> tuple[float, ...]:
    """A list of numbers; () for anything else."""
    if not isinstance(value, (list, tuple)):
        return ()
    are_numbers = all(isinstance(each, (int, float)) for each in value)
    return tuple(value) if are_numbers else ()


def check_classes(path: Path | str, facts: Facts, use: Use) -> None:
    """Raise UserError where a network was trained on other classes than those of the data."""
    if use.data is None:
        return
    trained_on = f" of {facts.dataset}" if facts.dataset else ""
    data = f"the data set {use.dataset}" if use.dataset else "the data set"

    number = facts.num_classes or len(facts.class_names)
    if number not in (0, use.data.num_classes):
        classes = f"the {number} classes{trained_on}" if trained_on else f"{number} classes"
        raise UserError(
            f"{path} was trained on {classes}, but {data} has "
            f"{use.data.num_classes}; {_remedy(path, facts, use)}"
        )

    place = _first_difference(facts.class_names, use.data.class_names)
    if place is not None:
        there = facts.class_names[place]
        here = use.data.class_names[place]
        raise UserError(
            f"{path} was trained on other classes{trained_on} or in another order: class {place} "
            f"is {there!r} there, but {here!r} in {data}; {_remedy(path, facts, use)}"
        )


def _first_difference(there: Sequence[str], here: Sequence[str]) -> int | None:
    """The first class with another name; None where there is none, or names are not known."""
    if len(there) != len(here):
        return None
    for place in range(len(there)):
        if there[place] != here[place]:
            return place
    return None


def _remedy(path: Path | str, facts: Facts, use: Use) -> str:
    """What to do about other classes."""
    if not use.data_key or facts.dataset in ("", use.dataset):
        return other_classes(path, use)
    return f"write {use.data_key} {facts.dataset}"


def other_classes(path: Path | str, use: Use) -> str:
    """What to do about a network for other classes, whose data set is not known.

    Args:
        path: of its file; text for the weights of a library.
        use: what it is loaded for.
    """
    if use.data_key:
        return f"give the data set that it was trained on with {use.data_key}"
    source = f" --from {path}" if isinstance(path, Path) else ""
    return (
        f"give a {use.model_key} that was trained on the classes of these data, or train a new "
        f"head first: {command('finetune')} {use.model}{source} ..."
    )


def suggestion(facts: Facts, use: Use) -> str:
    """What to do where a network does not fit."""
    if facts.architecture and facts.architecture != use.model:
        return (
            f"the file names the model {facts.architecture}: {use.model_key} {facts.architecture}"
        )
    if facts.dataset not in ("", use.dataset) and use.data_key:
        return f"the file names the data set {facts.dataset}: {use.data_key} {facts.dataset}"
    return "name the model and the data set that it was trained with"
