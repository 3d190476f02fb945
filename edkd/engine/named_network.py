"""A network given on the command line: a model's name, the folder of a run, or a file.

Only its architecture is built: the weights are new.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn
from yacs.config import CfgNode

from edkd.dataset import dataset_dict
from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.config.load import load_config
from edkd.engine.config.plugins import import_plugins
from edkd.engine.file_facts import facts_of
from edkd.engine.saved_run import DEFAULT_DATASET, Request, find_trained
from edkd.errors import UserError
from edkd.models import get_model, library_facts
from edkd.paths import expanded
from edkd.registry import DATASETS, MODELS

Shape = tuple[int, int, int]

_WEIGHTS = (".pt", ".pth", ".safetensors")


class Wanted(NamedTuple):
    """What the options give for all networks; empty or 0 if the word or the data set decides."""

    model: str = ""
    """Of a file that does not name it."""
    dataset: str = ""
    size: int = 0
    """Height and width of the images, in pixels."""
    num_classes: int = 0
    plugins: Sequence[str] = ()
    opts: Sequence[str] = ()
    """KEY VALUE pairs."""


class NamedNetwork(NamedTuple):
    """A network and its images."""

    name: str
    """As the user gave it."""
    model: str
    network: nn.Module
    image_shape: Shape
    num_classes: int


class _Facts(NamedTuple):
    """What is known of a network; None or 0 where it is not."""

    image_shape: Shape | None = None
    num_classes: int = 0


def build_named(word: str, wanted: Wanted) -> NamedNetwork:
    """Build a network.

    Its images and classes are those that the user gives, else those of a file of weights, else
    those of a data set that the user gives, else those of a library's pretrained weights, else
    those of a data set for which the model is made.

    Args:
        word: a name, such as "resnet8x4" or "torchvision/resnet50", or an existing path.
        wanted: what the options give.

    Raises:
        UserError: the word names nothing, or its images or classes are not known.
    """
    cfg, of_file = _read(word, wanted)
    dataset = cfg.DATASET.TYPE
    model = cfg.DISTILLER.STUDENT
    of_data = _facts_of_dataset(dataset)
    of_library = _Facts() if wanted.dataset else _facts_of_library(model)
    known = [of_file, of_library, of_data]

    num_classes = wanted.num_classes or _first([facts.num_classes for facts in known])
    if not num_classes:
        raise UserError(f"the number of classes of {dataset} is not known; give --num-classes")
    shape = _first([facts.image_shape for facts in known])
    if wanted.size:
        channels = shape[0] if shape else 3
        shape = (channels, wanted.size, wanted.size)
    if not shape:
        raise UserError(f"the size of the images of {dataset} is not known; give --size")

    family = dataset_dict[dataset].family
    network = get_model(family, model, num_classes, cfg)
    return NamedNetwork(word, model, network, shape, num_classes)


def _read(word: str, wanted: Wanted) -> tuple[CfgNode, _Facts]:
    """The configuration with the model and the data set, and the facts in a file of weights."""
    if os.path.exists(os.path.expanduser(word)):
        found = find_trained(
            Request(word, "", wanted.model, wanted.dataset, wanted.plugins, wanted.opts)
        )
        assert found.file is not None, "a request without a path is one for published weights"
        facts = facts_of(found.content or load_checkpoint(found.file))
        shape = facts.input.image_shape if facts.input else None
        return found.cfg, _Facts(shape, facts.num_classes)
    if _is_path(word):
        raise UserError(f"no file of weights and no folder of a run at {word}")

    import_plugins([expanded(plugin, "--plugin") for plugin in wanted.plugins])
    words = ["DATASET.TYPE", wanted.dataset or _dataset_for(word)]
    words += ["DISTILLER.TYPE", "NONE", "DISTILLER.STUDENT", word]
    try:
        cfg = load_config(opts=[*words, *wanted.opts])
    except UserError as error:  # the word is not given by a key
        message = str(error).replace("DISTILLER.STUDENT is", "there is no such path, and MODEL is")
        raise UserError(message) from None
    return cfg, _Facts()


def _is_path(word: str) -> bool:
    """Whether a word cannot be a model's name, such as "torchvision/resnet50"."""
    return word.startswith((".", "~", "/")) or word.count("/") > 1 or word.endswith(_WEIGHTS)


def _dataset_for(word: str) -> str:
    """The default data set, else the first one whose family has a model.

    Args:
        word: as "resnet20" or "imagenet/ResNet34".
    """
    prefix, _, name = word.rpartition("/")
    families = MODELS.scopes()
    of_same_name = [family for family in families if family in dataset_dict]
    for dataset in [DEFAULT_DATASET, *of_same_name, *dataset_dict]:
        family = dataset_dict[dataset].family
        if prefix in ("", family) and name in MODELS.names(family):
            return dataset
    return DEFAULT_DATASET


def _facts_of_dataset(name: str) -> _Facts:
    """What a data set says where it is registered; its images need not be here."""
    info = DATASETS.find(name).info
    return _Facts(info.get("image_shape"), info.get("num_classes", 0))


def _facts_of_library(model: str) -> _Facts:
    """What the pretrained weights of a library's model say."""
    if "/" not in model:
        return _Facts()

    facts = library_facts(model)
    return _Facts(facts.input.image_shape, facts.num_classes) if facts else _Facts()


def _first(values: Sequence[Any]) -> Any:
    """The first value that is known."""
    return next((value for value in values if value), None)
