"""The classes of image files, by a checkpoint or an exported file: what `edkd predict` calls."""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from edkd.dataset.listing import printable
from edkd.dataset.readability import BadImage
from edkd.engine.device import pick_device
from edkd.engine.facts_text import from_text
from edkd.engine.file_facts import facts_of
from edkd.engine.saved_run import Request
from edkd.errors import NonFiniteError, UserError
from edkd.export.images import prepared
from edkd.export.sessions import Classify, open_onnx
from edkd.export.source import Completed, open_source
from edkd.types import InputSpec


class Predictor(NamedTuple):
    """A network, and what is needed to run it on image files."""

    classify: Classify
    input: InputSpec
    class_names: tuple[str, ...]
    """By class number; empty where they are not known."""


class Prediction(NamedTuple):
    """The most probable classes of an image, the first one first."""

    path: str
    classes: list[str]
    """Their names; their numbers where no names are known."""
    probabilities: list[float]


def open_predictor(
    request: Request, complete: Completed, names: Sequence[str], device: str
) -> Predictor:
    """Load a checkpoint, a run's student, or a file that `edkd export` wrote.

    Args:
        request: its path ends in .onnx for a graph.
        complete: adds what the user gives about the preparation of images.
        names: of the classes, in place of the file's own.
        device: auto, cuda, cuda:N, mps or cpu.

    Raises:
        UserError: there is no such network, or the file does not say how images are prepared.
    """
    path = Path(os.path.expanduser(request.path))
    if path.suffix.lower() == ".onnx" and path.is_file():
        _check_request(request)
        return _open_graph(path, complete, names, device)

    where = pick_device(device)
    source = open_source(request, complete, needs_data=False)
    network = source.network.to(where)

    @torch.inference_mode()
    def classify(image: Tensor) -> Tensor:
        logits: Tensor = network(image.to(where))
        return logits.float().cpu()

    return Predictor(classify, source.input, tuple(names) or source.facts.class_names)


def _check_request(request: Request) -> None:
    """Raise UserError for options that have no effect on a graph."""
    given = {
        "-m": request.model,
        "-d": request.dataset,
        "--which": request.which,
        "--plugin": request.plugins,
    }
    names = [name for name, value in given.items() if value]
    if names:
        raise UserError(
            f"{', '.join(names)} cannot be used with {request.path}: an ONNX graph is complete; "
            "leave out what names a network"
        )


def _open_graph(path: Path, complete: Completed, names: Sequence[str], device: str) -> Predictor:
    if device not in ("auto", "cpu"):
        raise UserError(f"--device {device}: ONNX files run on the CPU here; leave it out")

    model = open_onnx(path)
    facts = facts_of(from_text(model.metadata))
    spec = complete(facts.input)
    if spec is None:
        raise UserError(
            f"{path} does not say how images are prepared for it; give --size, --mean and --std, "
            "and --names with a file of class names"
        )
    if model.size not in (None, spec.image_shape[1:]):
        size = "x".join(map(str, model.size))
        raise UserError(f"{path} takes images of {size} pixels; set --size {size}, or leave it out")
    return Predictor(model.classify, spec, tuple(names) or facts.class_names)


def predict(
    predictor: Predictor, files: Sequence[str], top: int, batch_size: int
) -> Iterator[Prediction | BadImage]:
    """The most probable classes of each image, in the order of the files of a batch.

    Bad images come after the others of their batch.

    Args:
        top: number of classes.

    Raises:
        UserError: the number of class names is not that of the logits.
        NonFiniteError: a logit is not finite.
    """
    names = predictor.class_names
    for batch in prepared(files, predictor.input, batch_size):
        if batch.paths:
            logits = predictor.classify(batch.image)
            _check(batch.paths, logits, names)
            yield from _predictions(batch.paths, logits, names, top)
        yield from batch.bad


def _check(paths: Sequence[str], logits: Tensor, names: Sequence[str]) -> None:
    """Raise where logits are none for these names, or are not finite."""
    number = logits.shape[1]
    if names and len(names) != number:
        raise UserError(
            f"there are {len(names)} class names, but the network has {number} classes; give a "
            "file of names with --names, one for each class"
        )

    bad = (~logits.isfinite()).any(1)
    if bad.any():
        path = paths[int(bad.int().argmax())]
        raise NonFiniteError(
            f"the logits for {printable(path)} are not finite: the weights are those of a run that "
            "diverged, or --mean and --std do not fit"
        )


def _predictions(
    paths: Sequence[str], logits: Tensor, names: Sequence[str], top: int
) -> Iterator[Prediction]:
    best = logits.double().softmax(1).topk(min(top, logits.shape[1]), 1)
    rows = zip(paths, best.indices.tolist(), best.values.tolist(), strict=True)
    for path, numbers, probabilities in rows:
        classes = [names[number] if names else str(number) for number in numbers]
        yield Prediction(path, classes, probabilities)


def folders_of(images: Sequence[str]) -> set[Path]:
    """The folders that a user gives, and those around single images; absolute."""
    whole = [Path(os.path.abspath(path)) for path in images]
    return {path if path.is_dir() else path.parent for path in whole}


def label_of(path: str, class_names: Collection[str], folders: Collection[Path]) -> str:
    """The class whose name a folder around an image has, the nearest one; "" for none.

    Args:
        folders: see `folders_of`; those around all of them label no image.
    """
    label = ""
    for folder in Path(os.path.abspath(path)).parents:
        if not label and folder.name in class_names:
            label = folder.name
        if label and folder in folders:
            return label
    return ""
