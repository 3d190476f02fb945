"""The student that is exported: its network, the facts about it, and its data set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from edkd.dataset import DataSet, dataset_dict, get_dataset
from edkd.engine.checkpoint import load_checkpoint
from edkd.engine.config.compare import flatten
from edkd.engine.file_facts import Facts, Use, as_content, facts_of
from edkd.engine.inputs import with_input
from edkd.engine.saved_run import Request, SavedRun, find_trained
from edkd.engine.weight_source import input_of
from edkd.engine.weights import load_weights
from edkd.errors import UserError
from edkd.models import OwnInput, get_model, own_keys, prepared_alike, unwrapped
from edkd.types import InputSpec

CPU = torch.device("cpu")

Completed = Callable[[InputSpec | None], InputSpec | None]
"""Puts the options of the command in the place of what is known about a network's images."""


class Source(NamedTuple):
    """A trained network, on the CPU in eval mode, and what is known about it."""

    file: Path
    network: "Logits"
    facts: Facts
    """Complete but for the names of classes and the accuracy."""
    input: InputSpec
    split: str
    """Which images `facts.accuracy` was measured on, "val" or "test"; "" where not known."""
    cfg: CfgNode
    run: SavedRun | None
    data: DataSet | None
    """None: it cannot be read."""
    unreachable: str
    """Why not."""
    plugins: tuple[str, ...] = ()
    """Those that were imported."""

    @property
    def content(self) -> dict[str, Any]:
        """The facts, as in the file of a student."""
        return as_content(self.facts) | {"split": self.split}

    def own_images(self, image: Tensor) -> Tensor:
        """Images of the data set (N,3,H,W), prepared as for this network."""
        there = self.data.info.input if self.data else None
        if there is None or prepared_alike(self.input, there):
            return image
        converted: Tensor = OwnInput(nn.Identity(), self.input, there)(image)
        return converted


class Logits(nn.Module):
    """A network that returns logits alone, without features or hooks.

    Args:
        network: returns logits, or (logits, features); its state dict has the model's own keys.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Images (N,3,H,W) -> logits (N,C)."""
        output = self.network(image)
        return output[0] if isinstance(output, tuple) else output


def open_source(request: Request, complete: Completed, needs_data: bool) -> Source:
    """Load a trained network, and its data set where it is there.

    Args:
        request: a file, or the folder of a run.
        complete: adds what the user gives about the preparation of images.
        needs_data: whether the data set is loaded even if the file says everything.

    Raises:
        UserError: there is no such network, or too little is known about it.
    """
    found = find_trained(request)
    assert found.file is not None, "a request without a path is one for published weights"
    content = found.content or load_checkpoint(found.file)
    facts = facts_of(content)

    # Facts that are not in the file come from the data set.
    model = found.cfg.DISTILLER.STUDENT
    number = facts.num_classes or len(facts.class_names)
    own = input_of(model, facts)
    data, unreachable = None, ""
    if needs_data or not number or own is None:
        data, unreachable = _reachable(found.cfg, own)
    info = data.info if data else None
    spec = complete(own or (info.input if info else None))
    if info and not number:
        number = info.num_classes
    if spec is None or not number:
        raise UserError(_missing(found.file, spec, found.cfg, unreachable))

    # The network.
    dataset = found.cfg.DATASET.TYPE
    network = get_model(dataset_dict[dataset].family, model, number, found.cfg)
    load_weights(network, found.file, Use(info, dataset, model, "-m", "-d"), content)

    names = facts.class_names or (info.class_names if info else ())
    model_keys = own_keys(model, dict(flatten(found.cfg)))
    facts = Facts(model, dataset, number, names, facts.accuracy, spec, model_keys)
    split = content.get("split")
    return Source(
        found.file,
        Logits(unwrapped(network)).eval(),  # exporters do not follow the hooks of features
        facts,
        spec,
        split if isinstance(split, str) else "",
        found.cfg,
        found.run,
        data,
        unreachable,
        tuple(found.plugins),
    )


def _reachable(cfg: CfgNode, own: InputSpec | None) -> tuple[DataSet | None, str]:
    """The data set, prepared as for the network where the keys leave it open, or why it cannot be
    read.
    """
    try:
        data = get_dataset(with_input(cfg, own), CPU)
        data.check(True)
    except UserError as error:
        return None, str(error)
    return data, ""


def _missing(file: Path, spec: InputSpec | None, cfg: CfgNode, unreachable: str) -> str:
    """What a file does not say, and how to give it."""
    what = "how images are prepared for it" if spec is None else "its number of classes"
    flags = "--size, --mean and --std" if spec is None else "-d with its data set"
    why = f" ({unreachable})" if unreachable else ""
    return (
        f"{file} does not say {what}, nor does the data set {cfg.DATASET.TYPE}{why}; give {flags}, "
        "or --root with the folder of its data set"
    )
