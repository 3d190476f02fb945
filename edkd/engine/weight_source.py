"""Where the weights of a network come from: a file, the published ones, or those of a library."""

import os
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from yacs.config import CfgNode

from edkd.dataset import dataset_dict
from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.file_facts import Facts, as_content, facts_of
from edkd.errors import UserError
from edkd.invocation import command
from edkd.models import (
    DOWNLOADS,
    library_facts,
    library_of,
    library_weights,
    published_weights,
)
from edkd.paths import CONFIGS
from edkd.types import InputSpec

PRETRAINED = "pretrained"
"""In the place of a file: the published weights, or those of the library."""


class Weights(NamedTuple):
    """The weights of a network, and what is known about them."""

    path: Path | str
    """The file; for the weights of a library, what they are, for messages."""
    content: dict[str, Any]
    """Of that file."""

    @property
    def facts(self) -> Facts:
        """What the file says about its network."""
        return facts_of(self.content)


def read_weights(cfg: CfgNode, name: str, given: str, model_key: str, path_key: str) -> Weights:
    """The weights of a model: those of a file, else the published ones, or those of its library.

    For the arguments see `find_weights`.

    Raises:
        UserError: they are absent or damaged, or cannot be downloaded.
    """
    if is_of_library(name) and not given:
        content = {"model": library_weights(name, path_key)}
        return Weights(label_of(name), content | as_content(facts_of_library(name)))

    path = find_weights(cfg, name, given, model_key, path_key)
    return Weights(path, load_checkpoint(path))


def is_of_library(name: str) -> bool:
    """Whether a model is one of another library."""
    return library_of(name)[0] is not None


def input_of(name: str, facts: Facts | None = None) -> InputSpec | None:
    """How the images of a network were prepared, as its file or its library says; else None."""
    if facts is not None and facts.input is not None:
        return facts.input
    return facts_of_library(name).input


def label_of(name: str) -> str:
    """The pretrained weights of a library's model, for messages."""
    return f"the pretrained {name}"


def facts_of_library(name: str) -> Facts:
    """What a library says about its pretrained weights; nothing is downloaded.

    The names of the classes are left out, as those of a folder are written in another way. Empty
    where the model has no pretrained weights.
    """
    known = library_facts(name)
    if known is None:
        return Facts()
    return Facts(name, "", known.num_classes, (), known.accuracy, known.input)


def find_weights(cfg: CfgNode, name: str, given: str, model_key: str, path_key: str) -> Path:
    """The file of a model's weights: the given one, else the published one.

    Args:
        cfg: DATASET.TYPE is read.
        name: of the model, as a configuration has it.
        given: a file, or "".
        model_key: how the user names the model, for messages.
        path_key: how the user names the file, for messages.

    Raises:
        UserError: it is absent; the message says how to download or train it.
    """
    config = training_config(cfg.DATASET.TYPE, name)
    train_it = (
        f"train it with '{command('train')} --cfg {config}{_own_images(cfg)}' and give {path_key} "
        "the student_best of that run"
    )

    given = os.path.expanduser(given)
    if given:
        if os.path.isdir(given):
            raise UserError(
                f"{path_key}: {given} is a folder; give a file of weights in it, such as "
                "student_best"
            )
        if not os.path.isfile(given):  # for a name that is too long, Path would raise
            raise UserError(
                f"{path_key}: no weights of {name} at {given}; correct the path, or {train_it}"
            )
        return Path(given)

    published = _published(cfg, name)
    if not published:
        raise UserError(
            f"{model_key} {name} has no published weights for {cfg.DATASET.TYPE}; {train_it}"
        )
    if not Path(published).is_file():
        download = DOWNLOADS.get(dataset_dict[cfg.DATASET.TYPE].family)
        fetch = f"'{command('download')} {download}'"
        fetch_it = f"download the published ones with {fetch}, or " if download else ""
        raise UserError(f"{model_key}: no weights of {name} at {published}; {fetch_it}{train_it}")
    return Path(published)


def _published(cfg: CfgNode, name: str) -> str | None:
    """The file of a model's published weights, where they are for this data set."""
    spec = dataset_dict[cfg.DATASET.TYPE]
    return published_weights(spec.family, name) if spec.has_published_weights else None


def _own_images(cfg: CfgNode) -> str:
    """The keys that name the user's images, for a command."""
    images = {f"DATASET.{key}": cfg.DATASET.get(key, "") for key in ("ROOT", "LIST")}
    return "".join(f" {key} {shlex.quote(value)}" for key, value in images.items() if value)


def training_config(dataset: str, model: str) -> str:
    """Arguments of --cfg that train a model alone: its own YAML file, or another's with one key."""
    files = sorted(CONFIGS.glob(f"{dataset}/vanilla/*.yaml"), key=lambda file: file.stem != model)
    files += CONFIGS.glob(f"{dataset}/vanilla.yaml")
    if not files:
        return f"<your YAML> DISTILLER.STUDENT {model}"
    override = "" if files[0].stem == model else f" DISTILLER.STUDENT {model}"
    return f"configs/{files[0].relative_to(CONFIGS).as_posix()}{override}"
