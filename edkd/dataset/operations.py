"""The operations of RandAugment for a batch on the device, each image with its own.

The results equal those of torchvision.transforms.v2.functional for uint8 images on a CPU. On an
accelerator nothing depends on which operations a batch has, so that no step waits for the device
and a CUDA graph can contain them: all images pass through a geometric map, a table of pixel values
and a blend, which change nothing in the images with another operation.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from edkd.dataset.randaugment import GREY, OPERATIONS, Draws

_PLACE = {name: place for place, name in enumerate(OPERATIONS)}
Change = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images, operations, amounts) -> images."""

_LUMA = torch.tensor([0.2989, 0.587, 0.114]).tolist()
"""Weights of red, green and blue in a grey value, as in torchvision, rounded to float32."""


def augmented(image: Tensor, draws: Draws) -> Tensor:
    """Images (N,3,H,W), uint8, after the drawn operations."""
    steps = zip(draws.operation.unbind(1), draws.amount.unbind(1), strict=True)
    for operation, amount in steps:
        for change, names in CHANGES.items():
            image = _applied(change, names, image, operation, amount)
    return boxed(image, draws.box)


def _applied(
    change: Change, names: tuple[str, ...], image: Tensor, operation: Tensor, amount: Tensor
) -> Tensor:
    """Images after one kind of operations. On a CPU the other images are not computed."""
    if image.device.type != "cpu":
        return change(image, operation, amount)

    places = torch.tensor([_PLACE[name] for name in names])
    rows = torch.isin(operation, places).nonzero().flatten()
    if not len(rows):
        return image
    return image.index_copy(0, rows, change(image[rows], operation[rows], amount[rows]))


def moved(image: Tensor, operation: Tensor, amount: Tensor) -> Tensor:
    """Shear, translation and rotation with the nearest pixel; black from outside the image.

    Args:
        image: (N,3,H,W), uint8.
        operation: (N,), places in OPERATIONS.
        amount: (N,), see `Draws`.
    """
    height, width = image.shape[2:]
    amount = amount.double()

    def of(name: str) -> Tensor:
        """The amount of this operation, 0 for the images with others; (N,1,1)."""
        return torch.where(operation == _PLACE[name], amount, 0.0)[:, None, None]

    # Shears have their fixed point at the upper left corner, rotations in the centre.
    rows = torch.arange(height, device=image.device, dtype=torch.float64)[:, None]
    columns = torch.arange(width, device=image.device, dtype=torch.float64)
    angle = of("Rotate") * (math.pi / 180)
    y = rows - (height - 1) / 2
    x = columns - (width - 1) / 2
    column = x * angle.cos() - y * angle.sin() + (width - 1) / 2
    row = x * angle.sin() + y * angle.cos() + (height - 1) / 2
    column = column + of("ShearX") * (rows + 0.5) - of("TranslateX")
    row = row + of("ShearY") * (columns + 0.5) - of("TranslateY")

    column = column.round().long()
    row = row.round().long()
    is_inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    source = (row * width + column).where(is_inside, 0)
    places = source.flatten(1)[:, None].expand(-1, image.shape[1], -1)
    found = image.flatten(2).gather(2, places).view_as(image)
    return found * is_inside[:, None]


def recoloured(image: Tensor, operation: Tensor, amount: Tensor) -> Tensor:
    """Posterize, Solarize, AutoContrast, Equalize: a table of 256 values for each channel."""
    values = torch.arange(256, device=image.device)
    pixels = image.flatten(2).long()
    is_now = {name: (operation == _PLACE[name])[:, None, None] for name in CHANGES[recoloured]}
    amount = amount[:, None, None]

    lost_bits = 8 - torch.where(is_now["Posterize"], amount, 8.0).long()
    table = (values >> lost_bits) << lost_bits
    is_bright = is_now["Solarize"] & (values >= amount)
    table = torch.where(is_bright, 255 - values, table)

    lowest = pixels.amin(2, keepdim=True)
    highest = pixels.amax(2, keepdim=True)
    table = torch.where(is_now["AutoContrast"], _stretched(values, lowest, highest), table)
    table = torch.where(is_now["Equalize"], _equalized(pixels, highest, values), table)
    return table.to(torch.uint8).gather(2, pixels).view_as(image)


def _stretched(values: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """The table (N,3,256) that maps the lowest pixel to 0 and the highest to 255.

    Args:
        values: (256,), 0 to 255.
        lowest: (N,3,1).
        highest: (N,3,1).
    """
    scale = (highest - lowest).float() * (1 / 255)
    stretched = ((values - lowest).float() / scale).clamp(0, 255).long()
    return torch.where(highest == lowest, values, stretched)


def _equalized(pixels: Tensor, highest: Tensor, values: Tensor) -> Tensor:
    """The table (N,3,256) that makes the histogram flat, as in Pillow.

    Args:
        pixels: (N,3,HW), int64.
        highest: (N,3,1), the largest of them.
        values: (256,), 0 to 255.
    """
    histogram = pixels.new_zeros(*pixels.shape[:2], 256)
    histogram.scatter_add_(2, pixels, pixels.new_ones(()).expand_as(pixels))
    below = histogram.cumsum(2) - histogram

    step = (pixels.shape[2] - histogram.gather(2, highest)) // 255
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step == 0, values, table)


def blended(image: Tensor, operation: Tensor, amount: Tensor) -> Tensor:
    """Brightness, Color, Contrast, Sharpness: f * image + (1 - f) * another image.

    torchvision computes this in float32 with fused multiplications, and drops the fraction of the
    result. The sums of exact products in float64 below round alike.
    """
    names = CHANGES[blended]
    is_now = {name: (operation == _PLACE[name])[:, None, None, None] for name in names}
    factor = amount[:, None, None, None]
    is_blend = torch.stack(list(is_now.values())).any(0)
    factor = torch.where(is_blend, factor, 1.0)
    pixels = image.float()

    grey = _grey(pixels)
    other = torch.where(is_now["Color"], grey, 0.0)
    other = torch.where(is_now["Contrast"], grey.mean((2, 3), keepdim=True), other)
    other = torch.where(is_now["Sharpness"], _blurred(pixels) - pixels, other)

    own = torch.where(is_now["Sharpness"], pixels, pixels * factor)
    result = own.double() + (1 - factor).double() * other.double()
    return result.float().clamp_(0, 255).to(torch.uint8)


def _grey(pixels: Tensor) -> Tensor:
    """Grey values (N,1,H,W), whole numbers, of float32 pixels (N,3,H,W)."""
    red, green, blue = pixels.split(1, 1)
    grey = red * _LUMA[0]
    for part, weight in ((green, _LUMA[1]), (blue, _LUMA[2])):
        grey = (grey.double() + part.double() * weight).float()
    return grey.floor()


def _blurred(pixels: Tensor) -> Tensor:
    """The mean of 3x3 pixels, the middle one five times, rounded; pixels at the edge stay."""
    blurred = pixels.clone()
    if min(pixels.shape[2:]) <= 2:
        return blurred
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    middle = pixels[:, :, 1:-1, 1:-1]
    blurred[:, :, 1:-1, 1:-1] = ((total + 4 * middle) / 13).round()
    return blurred


def boxed(image: Tensor, box: Tensor) -> Tensor:
    """Images (N,3,H,W) with grey boxes (N,4), see `Draws`."""
    height, width = image.shape[2:]
    left, top, right, bottom = box[:, :, None].unbind(1)
    columns = torch.arange(width, device=image.device)
    rows = torch.arange(height, device=image.device)
    in_columns = (columns >= left) & (columns <= right)
    in_rows = (rows >= top) & (rows <= bottom)

    is_boxed = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return torch.where(is_boxed, _grey_of_box(image.device), image)


@functools.cache  # a CUDA graph cannot contain a copy from the host
def _grey_of_box(device: torch.device) -> Tensor:
    return torch.tensor(GREY, dtype=torch.uint8, device=device)[:, None, None]


CHANGES: dict[Change, tuple[str, ...]] = {
    moved: ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    recoloured: ("Posterize", "Solarize", "AutoContrast", "Equalize"),
    blended: ("Brightness", "Color", "Contrast", "Sharpness"),
}
"""Each kind of operations, and what it serves."""
