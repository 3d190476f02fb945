"""How an image becomes the input of a network in evaluation, by its `InputSpec`."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from edkd.types import InputSpec


def evaluation_transform(spec: InputSpec) -> Callable[[Any], Tensor]:
    """A function that maps a PIL image in mode RGB to uint8 (3,H,W).

    With `spec.resize`, the shorter side is resized to that many pixels and the centre is
    cropped. Without it, the whole image is resized to height and width. Resizing is
    antialiased, as PIL does it. With `spec.padded_from`, the result of these has that size, and
    black pixels are added on all sides.
    """
    from torchvision.transforms import v2

    height, width = spec.size
    mode = v2.InterpolationMode(spec.interpolation)

    if spec.resize:
        steps = [v2.Resize(spec.resize, mode), v2.CenterCrop((height, width))]
    else:
        steps = [v2.Resize((height, width), mode)]
    if spec.padded_from:
        steps.append(v2.Pad(spec.padding))
    return v2.Compose([*steps, v2.PILToTensor()])
