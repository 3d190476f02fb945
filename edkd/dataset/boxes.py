"""Boxes in images, as shares of their height and width, so that one box fits each view."""

import torch
from torch import Tensor

from edkd.errors import UserError

WHOLE = (0.0, 1.0, 0.0, 1.0)
"""The box (top, bottom, left, right) of a whole image."""


def inside(box: Tensor, height: int, width: int) -> Tensor:
    """Whether the centre of each pixel is in a box.

    Args:
        box: (...,4): top, bottom, left and right, as shares of height and width.
        height: of the images, in pixels.
        width: the same.

    Returns:
        (...,H,W), bool, on the device of the boxes.
    """
    rows = torch.arange(height, device=box.device) + 0.5
    columns = torch.arange(width, device=box.device) + 0.5
    top, bottom, left, right = box[..., None].unbind(-2)

    in_rows = (rows >= top * height) & (rows < bottom * height)
    in_columns = (columns >= left * width) & (columns < right * width)
    return in_rows[..., :, None] & in_columns[..., None, :]


def size_of(image_shape: tuple[int, ...], key: str) -> tuple[int, int]:
    """Height and width of an image; UserError, naming the key, for data that are no images."""
    if len(image_shape) != 3:
        raise UserError(
            f"{key} needs images (channels, height, width), but the data have the shape "
            f"{tuple(image_shape)}; set it to 0"
        )
    return image_shape[1], image_shape[2]
