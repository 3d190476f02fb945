"""INT8 by onnxruntime: weights per channel, activations by the ranges of calibration images."""

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from edkd.export.formats import INPUT, graph_bytes
from edkd.export.sessions import onnx_packages

_MEASURED = ("accuracy", "split")
"""Metadata that hold for the network in float32 alone."""


def quantized(content: bytes, images: Iterable[Tensor]) -> bytes:
    """A graph whose convolutions and products compute in INT8 (QDQ format).

    Args:
        content: an ONNX graph in float32.
        images: batches (N,3,H,W), normalised, which decide the ranges of activations.

    Raises:
        UserError: onnxruntime is not installed.
    """
    onnx_packages()
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        plain = Path(folder) / "plain.onnx"
        prepared = Path(folder) / "prepared.onnx"
        result = Path(folder) / "int8.onnx"
        plain.write_bytes(content)

        # Fold constants and infer shapes: without them, fewer operations are quantized.
        quant_pre_process(str(plain), str(prepared))
        quantize_static(
            str(prepared),
            str(result),
            _reader(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
        graph = onnx.load(str(result))

    before = onnx.load_model_from_string(content)
    texts = {each.key: each.value for each in before.metadata_props if each.key not in _MEASURED}
    return graph_bytes(graph, texts | {"precision": "int8"})


def _reader(images: Iterable[Tensor]) -> Any:
    """Batches as onnxruntime's calibration takes them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """Yields each batch once."""

        def __init__(self) -> None:
            self.batches = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            """The next batch; None at the end."""
            image = next(self.batches, None)
            return None if image is None else {INPUT: image.float().contiguous().numpy()}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no log lines of onnxruntime's tools, which go to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
