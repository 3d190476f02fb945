"""The facts about a student as texts, for the metadata of ONNX and safetensors files."""

import json
from collections.abc import Mapping
from typing import Any

_WORDS = (
    "architecture",
    "dataset",
    "interpolation",
    "split",
)
"""Facts that are texts."""

_VALUES = (
    "num_classes",
    "model_keys",
    "class_names",
    "image_shape",
    "mean",
    "std",
    "resize",
    "padded_from",
    "accuracy",
)
"""Facts that are written as JSON."""


def to_text(content: Mapping[str, Any]) -> dict[str, str]:
    """The facts in the content of a student's file; other entries are left out."""
    texts = {}
    for key in _WORDS:
        if content.get(key):
            texts[key] = str(content[key])

    for key in _VALUES:
        value = content.get(key)
        if value is not None:
            texts[key] = json.dumps(value)
    return texts


def from_text(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The facts in metadata, as in the content of a student's file; malformed ones are left out."""
    found: dict[str, Any] = {}
    for key in _WORDS:
        if key in metadata:
            found[key] = metadata[key]

    for key in _VALUES:
        try:
            found[key] = json.loads(metadata[key])
        except (KeyError, ValueError, RecursionError):
            continue
    return found
