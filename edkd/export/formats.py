"""The file formats: from a network to the bytes of a file, and from those to a function."""

import copy
import io
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

import edkd
from edkd.engine.facts_text import to_text
from edkd.errors import UserError, reason_of
from edkd.export.sessions import Classify, no_grad, onnx_packages, open_onnx, open_program
from edkd.export.source import Source

OPSET = 18
INPUT = "image"
OUTPUT = "logits"

_LARGEST_GRAPH = 2**31
"""Bytes; protobuf, in which ONNX is written, has no larger messages."""


class Format(NamedTuple):
    """A value of --to."""

    suffix: str
    write: Callable[[Source], bytes]
    read: Callable[[bytes, Source], Classify]
    """The network in such bytes; the source gives the architecture where they hold only weights."""


def metadata(source: Source) -> dict[str, str]:
    """The facts about a network, and the version that wrote them."""
    return {"edkd": edkd.__version__} | to_text(source.content)


# ONNX.


def _write_onnx(source: Source) -> bytes:
    onnx_packages()
    image = torch.zeros(2, *source.input.image_shape)
    with _one_line(source, "an ONNX graph"):
        exported = torch.onnx.export(
            source.network,
            (image,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=_any_batch(),
            opset_version=OPSET,
            verbose=False,
        )
    assert exported is not None

    graph: Any = exported.model_proto
    return graph_bytes(graph, metadata(source))


def graph_bytes(graph: Any, texts: dict[str, str]) -> bytes:
    """A graph with metadata as the content of one file.

    Raises:
        UserError: it is too large for one.
    """
    if graph.ByteSize() >= _LARGEST_GRAPH:
        raise UserError(
            "the network takes 2 GB or more, which one ONNX file cannot hold; use --to safetensors"
        )

    del graph.metadata_props[:]
    for key, text in texts.items():
        graph.metadata_props.add(key=key, value=text)
    content: bytes = graph.SerializeToString()
    return content


def _read_onnx(content: bytes, source: Source) -> Classify:
    return open_onnx(content).classify


# torch.export.


def _write_program(source: Source) -> bytes:
    image = torch.zeros(2, *source.input.image_shape)
    with _one_line(source, "a program of torch.export"):
        program = torch.export.export(source.network, (image,), dynamic_shapes=_any_batch())

    buffer = io.BytesIO()
    facts = json.dumps(metadata(source))
    torch.export.save(program, buffer, extra_files={"edkd.json": facts})
    return buffer.getvalue()


def _read_program(content: bytes, source: Source) -> Classify:
    return open_program(content)


def _any_batch() -> dict[str, Any]:
    """The dimension of the input that may have any size."""
    return {INPUT: {0: torch.export.Dim("batch")}}


@contextmanager
def _one_line(source: Source, what: str) -> Iterator[None]:
    """Raise UserError for a network that cannot be traced; torch raises almost any exception."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        name = source.facts.architecture
        raise UserError(
            f"{name} cannot be exported as {what}: {reason_of(error)[:300]}; use --to safetensors, "
            "or write its forward without branches that depend on tensor values"
        ) from error


# safetensors.


def _write_safetensors(source: Source) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError:
        raise UserError(
            "--to safetensors needs the package safetensors: pip install 'edkd[models]'"
        ) from None

    # Tensors that share memory, as tied weights, are written twice: plain loading needs all keys.
    state = source.network.network.state_dict()
    tensors = {
        key: value.detach().clone().contiguous()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    content: bytes = save(tensors, {"format": "pt"} | metadata(source))
    return content


def _read_safetensors(content: bytes, source: Source) -> Classify:
    """A copy of the network with the weights of the file."""
    from safetensors.torch import load

    copied = copy.deepcopy(source.network)
    copied.network.load_state_dict(load(content))
    return no_grad(copied)


FORMATS = {
    "onnx": Format(".onnx", _write_onnx, _read_onnx),
    "torch-export": Format(".pt2", _write_program, _read_program),
    "safetensors": Format(".safetensors", _write_safetensors, _read_safetensors),
}
"""By the value of --to."""
