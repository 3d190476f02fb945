"""Runs the exported files: images (N,3,H,W) -> logits (N,C)."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edkd.errors import UserError, reason_of

INSTALL = "pip install 'edkd[export]'"

Classify = Callable[[Tensor], Tensor]
"""Images (N,3,H,W), float32, normalised -> logits (N,C), on the CPU."""


class OnnxModel(NamedTuple):
    """An ONNX graph, ready to run."""

    classify: Classify
    metadata: dict[str, str]
    size: tuple[int, int] | None
    """Height and width of its images; None where the graph takes several."""


def onnx_packages() -> Any:
    """The package onnxruntime, where onnx and onnxscript are there too.

    Raises:
        UserError: one of them is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX files need the package {error.name}: {INSTALL}") from None
    return onnxruntime


def open_onnx(content: bytes | Path) -> OnnxModel:
    """Load a graph onto the CPU.

    Args:
        content: the bytes of a file, or its path.

    Raises:
        UserError: onnxruntime is not installed, or the graph cannot be loaded, or it is no
            classifier of images.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"ONNX files need the package {error.name}: {INSTALL}") from None

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    source = content if isinstance(content, bytes) else str(content)
    name = "the exported graph" if isinstance(content, bytes) else str(content)
    try:
        session = onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common class for them
        raise UserError(
            f"{name} is damaged, or onnxruntime cannot run it ({_short(error)}); export it again"
        ) from None

    inputs = session.get_inputs()
    shape = inputs[0].shape
    if len(inputs) != 1 or len(shape) != 4:
        raise UserError(
            f"{name} does not take one batch of images (N,3,H,W); give an image classifier"
        )
    fixed = shape[0] if isinstance(shape[0], int) else None
    numbers = [side for side in shape[2:] if isinstance(side, int)]

    return OnnxModel(
        classify=_Session(name, session, fixed),
        metadata=dict(session.get_modelmeta().custom_metadata_map),
        size=(numbers[0], numbers[1]) if len(numbers) == 2 else None,
    )


class _Session:
    """Runs a session, in batches of the size that its graph has fixed; the last is filled up."""

    def __init__(self, name: str, session: Any, fixed: int | None) -> None:
        self.name = name
        self.session = session
        self.fixed = fixed
        self.input = session.get_inputs()[0].name

    def __call__(self, image: Tensor) -> Tensor:
        size = self.fixed or len(image)
        missing = -len(image) % size
        padded = torch.cat([image, image.new_zeros(missing, *image.shape[1:])])
        logits = [self._run(part) for part in padded.split(size)]
        return torch.cat(logits)[: len(image)]

    def _run(self, image: Tensor) -> Tensor:
        given = image.float().cpu().contiguous().numpy()
        try:
            logits = self.session.run(None, {self.input: given})[0]
        except Exception as error:  # onnxruntime has no common class for them
            raise UserError(
                f"{self.name} cannot run on images of shape {tuple(image.shape)}: {_short(error)}"
            ) from None

        shape = tuple(getattr(logits, "shape", ()))
        if len(shape) != 2 or len(logits) != len(image):
            raise UserError(
                f"{self.name} is no classifier of images: for {len(image)} of them its output has "
                f"the shape {shape}, not ({len(image)}, classes)"
            )
        return torch.from_numpy(logits)


def open_program(content: bytes) -> Classify:
    """Load a program of torch.export."""
    program = torch.export.load(io.BytesIO(content))
    return no_grad(program.module())


def no_grad(network: nn.Module) -> Classify:
    """A network as a function without gradients."""

    def classify(image: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = network(image)
        return logits

    return classify


def _short(error: Exception) -> str:
    """The reason of an error of onnxruntime, without its codes."""
    return reason_of(error).removeprefix("[ONNXRuntimeError] : ")[:200]
