"""The operations of RandAugment for a batch on the device, each image with its own.

The results equal those of torchvision.transforms.v2.functional for uint8 images on a CPU. On an
accelerator, the kernels do not depend on the operations in a batch, so no step waits for the device
and a CUDA graph can contain them: all images pass through a geometric map, a table of pixel values
and a blend, which leave images with another operation unchanged.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from edkd.dataset.randaugment import GREY, OPERATIONS, Draws

Change = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images, operations, amounts) -> images."""

NUM_VALUES = 256
"""Of a pixel."""

MIDDLE = 4
"""How much more the middle of 3x3 pixels counts than each of the others, in the blur."""

_LUMA = torch.tensor([0.2989, 0.587, 0.114]).tolist()
"""Weights of red, green and blue in a grey value, as in torchvision, rounded to float32."""

SHEAR_X = OPERATIONS.index("ShearX")
SHEAR_Y = OPERATIONS.index("ShearY")
TRANSLATE_X = OPERATIONS.index("TranslateX")
TRANSLATE_Y = OPERATIONS.index("TranslateY")
ROTATE = OPERATIONS.index("Rotate")
BRIGHTNESS = OPERATIONS.index("Brightness")
COLOR = OPERATIONS.index("Color")
CONTRAST = OPERATIONS.index("Contrast")
SHARPNESS = OPERATIONS.index("Sharpness")
POSTERIZE = OPERATIONS.index("Posterize")
SOLARIZE = OPERATIONS.index("Solarize")
AUTO_CONTRAST = OPERATIONS.index("AutoContrast")
EQUALIZE = OPERATIONS.index("Equalize")


def augmented(image: Tensor, draws: Draws) -> Tensor:
    """Images after the drawn operations.

    Args:
        image: (N,3,H,W), uint8.
        draws: for these images.

    Returns:
        (N,3,H,W), uint8.
    """
    steps = zip(draws.operation.unbind(1), draws.amount.unbind(1), strict=True)
    for operation, amount in steps:
        for change, places in CHANGES.items():
            image = _applied(change, places, image, operation, amount)
    return boxed(image, draws.box)


def _applied(
    change: Change,
    places: tuple[int, ...],
    image: Tensor,
    operation: Tensor,
    amount: Tensor,
) -> Tensor:
    """Images after one kind of operations.

    On a CPU, images that it would leave unchanged are skipped.
    """
    if image.device.type != "cpu":
        return change(image, operation, amount)

    is_changed = torch.isin(operation, torch.tensor(places))
    rows = is_changed.nonzero().flatten()
    if not len(rows):
        return image
    result = change(image[rows], operation[rows], amount[rows])
    return image.index_copy(0, rows, result)


# Shear, translation, rotation.


def moved(image: Tensor, operation: Tensor, amount: Tensor) -> Tensor:
    """Sheared, translated or rotated images: nearest pixels, black from outside the image.

    Args:
        image: (N,3,H,W), uint8.
        operation: (N,), places in OPERATIONS.
        amount: (N,), see `Draws`.

    Returns:
        (N,3,H,W), uint8.
    """
    height, width = image.shape[2:]
    row, column = _sources(operation, amount, height, width)

    in_height = (row >= 0) & (row < height)
    in_width = (column >= 0) & (column < width)
    is_inside = in_height & in_width
    place = torch.where(is_inside, row * width + column, 0)

    places = place.flatten(2).expand(-1, image.shape[1], -1)
    found = image.flatten(2).gather(2, places)
    return found.view_as(image) * is_inside


def _sources(operation: Tensor, amount: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where each pixel comes from: its row and column, (N,1,H,W) each.

    Shears have their fixed point at the upper left corner, rotations in the centre.
    """
    operation = _per_image(operation)
    amount = _per_image(amount).double()
    nothing = torch.zeros_like(amount)
    rows = torch.arange(height, device=amount.device)[:, None]
    columns = torch.arange(width, device=amount.device)

    angle = torch.where(operation == ROTATE, amount, nothing).deg2rad()
    middle_row = (height - 1) / 2
    middle_column = (width - 1) / 2
    y = rows - middle_row
    x = columns - middle_column
    column = x * angle.cos() - y * angle.sin() + middle_column
    row = x * angle.sin() + y * angle.cos() + middle_row

    slope = torch.where(operation == SHEAR_X, amount, nothing)
    shift = torch.where(operation == TRANSLATE_X, amount, nothing)
    column = column + slope * (rows + 0.5) - shift

    slope = torch.where(operation == SHEAR_Y, amount, nothing)
    shift = torch.where(operation == TRANSLATE_Y, amount, nothing)
    row = row + slope * (columns + 0.5) - shift
    return row.round().long(), column.round().long()


# Posterize, Solarize, AutoContrast, Equalize.


def recoloured(image: Tensor, operation: Tensor, amount: Tensor) -> Tensor:
    """Each pixel by a table of 256 values for each channel.

    Args:
        image: (N,3,H,W), uint8.
        operation: (N,), places in OPERATIONS.
        amount: (N,), see `Draws`.

    Returns:
        (N,3,H,W), uint8.
    """
    operation = operation[:, None, None]
    amount = amount[:, None, None]
    values = torch.arange(NUM_VALUES, device=image.device)
    pixels = image.flatten(2).long()
    lowest = pixels.amin(2, keepdim=True)
    highest = pixels.amax(2, keepdim=True)

    bits = torch.where(operation == POSTERIZE, amount, 8.0).long()
    table = (values >> (8 - bits)) << (8 - bits)

    is_bright = (operation == SOLARIZE) & (values >= amount)
    table = torch.where(is_bright, 255 - values, table)

    stretched = _stretched(values, lowest, highest)
    table = torch.where(operation == AUTO_CONTRAST, stretched, table)

    equalized = _equalized(values, pixels, highest)
    table = torch.where(operation == EQUALIZE, equalized, table)
    return table.to(torch.uint8).gather(2, pixels).view_as(image)


def _stretched(values: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """The table that maps the lowest pixel to 0 and the highest to 255.

    Args:
        values: (256,), 0 to 255.
        lowest: (N,3,1), int64.
        highest: (N,3,1), int64.

    Returns:
        (N,3,256), int64.
    """
    spread = highest - lowest
    scale = spread.float() * (1 / 255)
    above = (values - lowest).float()
    stretched = (above / scale).clamp(0, 255)
    return torch.where(spread == 0, values, stretched.long())


def _equalized(values: Tensor, pixels: Tensor, highest: Tensor) -> Tensor:
    """The table that makes the histogram flat, as in Pillow.

    Args:
        values: (256,), 0 to 255.
        pixels: (N,3,HW), int64.
        highest: (N,3,1), the largest of them.

    Returns:
        (N,3,256), int64.
    """
    number, channels, num_pixels = pixels.shape
    histogram = pixels.new_zeros(number, channels, NUM_VALUES)
    histogram.scatter_add_(2, pixels, torch.ones_like(pixels))
    below = histogram.cumsum(2) - histogram

    others = num_pixels - histogram.gather(2, highest)
    step = others // 255
    table = (below + step // 2) // step.clamp(min=1)
    return torch.where(step == 0, values, table.clamp(max=255))


# Brightness, Color, Contrast, Sharpness.


def blended(image: Tensor, operation: Tensor, amount: Tensor) -> Tensor:
    """f * image + (1 - f) * another image: black, grey, the mean grey, or blurred.

    torchvision computes this in float32 with fused multiplications, and drops the fraction of the
    result. The float64 sums of exact products below round to the same values.

    Args:
        image: (N,3,H,W), uint8.
        operation: (N,), places in OPERATIONS.
        amount: (N,), see `Draws`.

    Returns:
        (N,3,H,W), uint8.
    """
    pixels = image.float()
    is_blend = (operation >= BRIGHTNESS) & (operation <= SHARPNESS)
    factor = _per_image(torch.where(is_blend, amount, 1.0))
    operation = _per_image(operation)
    is_sharpness = operation == SHARPNESS

    grey = _grey(pixels)
    mean = grey.mean((2, 3), keepdim=True)
    other = torch.where(operation == COLOR, grey, 0.0)
    other = torch.where(operation == CONTRAST, mean, other)

    # For sharpness: image + (1 - f) * (blurred - image).
    other = torch.where(is_sharpness, _blurred(pixels) - pixels, other)
    own = torch.where(is_sharpness, pixels, pixels * factor)

    change = (1 - factor).double() * other
    result = (own + change).float()
    return result.clamp_(0, 255).to(torch.uint8)


def _grey(pixels: Tensor) -> Tensor:
    """Grey values, whole numbers.

    Args:
        pixels: (N,3,H,W), float32.

    Returns:
        (N,1,H,W), float32.
    """
    red, green, blue = pixels.split(1, 1)
    of_red, of_green, of_blue = _LUMA
    grey = red * of_red
    grey = (grey + green.double() * of_green).float()
    grey = (grey + blue.double() * of_blue).float()
    return grey.floor()


def _blurred(pixels: Tensor) -> Tensor:
    """The rounded mean of 3x3 pixels, the middle one five times; pixels at the edge stay.

    Args:
        pixels: (N,3,H,W), float32.

    Returns:
        (N,3,H,W), float32.
    """
    blurred = pixels.clone()
    if min(pixels.shape[2:]) <= 2:
        return blurred

    level = pixels[:, :, 1:-1]
    rows = pixels[:, :, :-2] + level + pixels[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner = level[..., 1:-1]
    mean = (total + MIDDLE * inner) / (9 + MIDDLE)
    blurred[:, :, 1:-1, 1:-1] = mean.round()
    return blurred


# The box.


def boxed(image: Tensor, box: Tensor) -> Tensor:
    """Images with grey boxes.

    Args:
        image: (N,3,H,W), uint8.
        box: (N,4), see `Draws`.

    Returns:
        (N,3,H,W), uint8.
    """
    height, width = image.shape[2:]
    left, top, right, bottom = map(_per_image, box.unbind(1))
    columns = torch.arange(width, device=image.device)
    rows = torch.arange(height, device=image.device)[:, None]

    in_columns = (columns >= left) & (columns <= right)
    in_rows = (rows >= top) & (rows <= bottom)
    return torch.where(in_columns & in_rows, _grey_of_box(image.device), image)


@functools.cache  # a CUDA graph cannot contain a copy from the host
def _grey_of_box(device: torch.device) -> Tensor:
    """(3,1,1), uint8."""
    grey = torch.tensor(GREY, dtype=torch.uint8, device=device)
    return grey[:, None, None]


def _per_image(values: Tensor) -> Tensor:
    """(N,) as (N,1,1,1)."""
    return values.view(-1, 1, 1, 1)


CHANGES: dict[Change, tuple[int, ...]] = {
    moved: (SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE),
    recoloured: (POSTERIZE, SOLARIZE, AUTO_CONTRAST, EQUALIZE),
    blended: (BRIGHTNESS, COLOR, CONTRAST, SHARPNESS),
}
"""Each kind of operations, and their places."""
