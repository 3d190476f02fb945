"""Images of the user, in class folders or listed in a table, prepared by keys.

`{train,val}/<class>/*`, `<class>/*`, or DATASET.LIST. Small images stay on the device, so that the
teacher's outputs can be cached; others are read for each batch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from edkd.dataset._base import DataSet, register
from edkd.dataset.augment import CropFlip
from edkd.dataset.decoded import decoded_dataset
from edkd.dataset.file_images import Transform
from edkd.dataset.folder import Preprocessing, streamed_dataset
from edkd.dataset.host_augment import with_randaugment
from edkd.dataset.image_lists import read_list
from edkd.dataset.listing import in_threads
from edkd.dataset.parts import Parts, find_parts
from edkd.dataset.readability import LIMIT
from edkd.errors import UserError, warn
from edkd.keys import Key
from edkd.types import INTERPOLATIONS

SMALL = 96
"""Height and width, in pixels, up to which images are small."""

USUAL_SIZE = 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet."""

CHANNELS = 3

_CROP_SHARE = 0.875
"""SIZE / RESIZE, as 224 / 256."""

_SAMPLE = 64
"""Files whose sizes are read before those of all."""

KEYS = {
    "DATASET.LIST": Key(
        "",
        "folder: a CSV or parquet file with the columns path, label and optionally split (train, "
        "val, test); paths are relative to DATASET.ROOT, or to the file's folder if that is empty",
        free_on_resume=True,
        names_run=False,
        is_path=True,
    ),
    "DATASET.TEST_SPLIT": Key(
        0.2,
        "folder: share of each class that becomes the test set, if there is no val/ or test/",
        low=1e-4,
        high=1,
    ),
    "DATASET.SPLIT_SEED": Key(
        0,
        "folder: seed of the TEST_SPLIT, separate from SOLVER.SEED: teacher, student and all seeds "
        "share one test set",
        low=0,
    ),
    "DATASET.RESIDENT": Key(
        "auto",
        "folder: decode images once and keep them on the device, with numbered views; "
        f"auto: if FOLDER.SIZE is at most {SMALL}, FOLDER.CROP is not resized, and they fit into "
        "RESIDENT_GB",
        choices=("auto", "on", "off"),
    ),
    "DATASET.RESIDENT_GB": Key(
        4.0, "folder: largest total size of images kept on the device", unit="GB", low=0
    ),
}

DEFAULTS = {
    "SIZE": Key(
        0,
        "height and width of the images in a batch; 0: the images' own, if all are squares of one "
        f"size up to {SMALL}, else the pretrained network's, else {USUAL_SIZE}",
        unit="pixels",
        low=0,
        high=2**14,
    ),
    "RESIZE": Key(
        0,
        "evaluation: length of the shorter side before the centre is cropped to SIZE; 0: the "
        "pretrained network's if SIZE is 0, else SIZE / 0.875, or SIZE with CROP pad",
        unit="pixels",
        low=0,
        high=2**14,
    ),
    "CROP": Key(
        "auto",
        "training: resized: a random part, scaled to SIZE; pad: the evaluation crop, shifted by up "
        "to SIZE / 8; none: the whole image, scaled to SIZE x SIZE, in evaluation too; "
        f"auto: pad if SIZE is at most {SMALL} or DATASET.RESIDENT is on, else resized",
        choices=("auto", "resized", "pad", "none"),
    ),
    "FLIP": Key(True, "training: flip half of the images horizontally"),
    "MEAN": Key(
        [],
        "mean of each channel, for pixels in [0, 1]; []: the pretrained network's, else ImageNet's",
        low=0,
    ),
    "STD": Key([], "standard deviation of each channel; []: as for MEAN", low=1e-6),
    "INTERPOLATION": Key(
        "",
        "used to resize images; empty: the pretrained network's, else bilinear",
        choices=INTERPOLATIONS,
    ),
}


class Plan(NamedTuple):
    """The keys of DATASET.FOLDER, with a value for each."""

    size: int
    resize: int
    """0 with the crop "none"."""
    crop: str
    flip: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str

    @property
    def augmentation(self) -> CropFlip:
        """The numbered training views of resident images."""
        padding = self.size // 8 if self.crop == "pad" else 0
        return CropFlip(padding, self.flip)


def own_input(cfg: Any) -> dict[str, Any]:
    """Values for empty keys of DATASET.FOLDER that a pretrained network must not decide.

    Small images keep their own size: a teacher of another one resizes them. A given SIZE has its
    own RESIZE.

    Raises:
        UserError: see `folder`.
    """
    _found.clear()  # images may have changed since another run of this process
    options = cfg.DATASET.FOLDER
    size = options.SIZE
    if not size:
        parts = _parts(cfg)
        size = own_size(parts)
        _found[_source(cfg)] = parts
    if not size:
        return {}

    crop = _crop(cfg, size)
    values = {"SIZE": size, "RESIZE": options.RESIZE or _resize(size, crop)}
    return {name: value for name, value in values.items() if value and not options[name]}


@register(
    "folder",
    DEFAULTS,
    family="imagenet",
    input_keys=True,
    own_input=own_input,
    reads_lists=True,
)
def folder(cfg: Any, device: torch.device) -> DataSet:
    """The images of DATASET.ROOT or DATASET.LIST; DATASET.FOLDER says how they are prepared.

    Raises:
        UserError: they are missing or stored in another form, or keys contradict one another.
    """
    parts = _found.pop(_source(cfg), None) or _parts(cfg)
    plan = _plan(cfg, parts)
    preprocessing = _preprocessing(cfg, plan)

    if _is_resident(cfg, parts, plan):
        return decoded_dataset(cfg, device, parts, preprocessing, plan.augmentation)
    return streamed_dataset(cfg, device, parts, preprocessing)


# The images.


_found: dict[tuple[Any, ...], Parts] = {}
"""What `own_input` found, until `folder` needs it: files are listed, and warned of, once."""


def _source(cfg: Any) -> tuple[Any, ...]:
    data = cfg.DATASET
    return data.ROOT, data.LIST, data.TEST_SPLIT, data.SPLIT_SEED


def _parts(cfg: Any) -> Parts:
    root, images, fraction, seed = _source(cfg)
    if images:
        parts = read_list(Path(images).expanduser(), root, fraction, seed)
    elif root:
        parts = find_parts(Path(root).expanduser(), fraction, seed)
    else:
        raise UserError(
            "DATASET.TYPE folder needs DATASET.ROOT, a folder with <class>/* or with "
            "{train,val}/<class>/*; or DATASET.LIST, a CSV or parquet file"
        )

    if parts.val and cfg.DATASET.VAL_SPLIT:
        raise UserError(
            f"DATASET.VAL_SPLIT {cfg.DATASET.VAL_SPLIT} is not needed: {parts.val.folder} has "
            "images that choose the best epoch; set it to 0, or remove that folder"
        )
    if not parts.is_split and fraction != KEYS["DATASET.TEST_SPLIT"].default:
        warn(
            f"DATASET.TEST_SPLIT {fraction} has no effect: {parts.test.folder} has the test images"
        )
    return parts


def own_size(parts: Parts) -> int | None:
    """Height and width of all images, in pixels, if they are small squares of one size."""
    paths = parts.learned.paths + parts.test.paths
    step = -(-len(paths) // _SAMPLE)
    for some in (paths[::step], paths[:LIMIT]):
        sizes = set(in_threads(_size_in_header, some)) - {None}
        size = sizes.pop() if len(sizes) == 1 else None
        if size is None or size[0] != size[1] or size[0] > SMALL:
            return None
    return size[0] if size else None


def _size_in_header(path: str) -> tuple[int, int] | None:
    """Width and height; None for a file that cannot be read, which is found later."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # PIL raises almost any exception for damaged files
        return None


# The keys.


def _plan(cfg: Any, parts: Parts) -> Plan:
    options = cfg.DATASET.FOLDER
    size = options.SIZE or own_size(parts) or USUAL_SIZE
    crop = _crop(cfg, size)
    resize = 0 if crop == "none" else options.RESIZE or _resize(size, crop)
    if 0 < resize < size:
        raise UserError(
            f"DATASET.FOLDER.RESIZE {resize} is below SIZE {size}, the size of the crop; give "
            f"{size} or more, or 0 for the default"
        )

    mean = _channels("MEAN", options.MEAN, MEAN)
    std = _channels("STD", options.STD, STD)
    if bool(options.MEAN) != bool(options.STD):
        raise UserError("DATASET.FOLDER.MEAN and STD belong together; give both, or neither")
    return Plan(size, resize, crop, options.FLIP, mean, std, options.INTERPOLATION or "bilinear")


def _crop(cfg: Any, size: int) -> str:
    crop = cfg.DATASET.FOLDER.CROP
    if crop != "auto":
        return crop
    return "pad" if size <= SMALL or cfg.DATASET.RESIDENT == "on" else "resized"


def _resize(size: int, crop: str) -> int:
    if crop == "none":
        return 0
    return size if crop == "pad" else round(size / _CROP_SHARE)


def _channels(name: str, given: Sequence[float], usual: tuple[float, ...]) -> tuple[float, ...]:
    if given and len(given) != CHANNELS:
        raise UserError(
            f"DATASET.FOLDER.{name} has {len(given)} numbers; give {CHANNELS}, as images are "
            "read as RGB"
        )
    if given and max(given) > 1:
        raise UserError(
            f"DATASET.FOLDER.{name} {list(given)} is not of pixels in [0, 1]; divide it by 255"
        )
    return tuple(given) or usual


def _is_resident(cfg: Any, parts: Parts, plan: Plan) -> bool:
    """Whether the images are kept on the device; UserError where they must be and cannot."""
    if cfg.DATASET.RESIDENT == "off":
        return False

    reason = _why_streamed(cfg, parts, plan)
    if cfg.DATASET.RESIDENT == "on":
        if reason:
            raise UserError(f"DATASET.RESIDENT on: {reason}, or set RESIDENT to auto")
        return True
    return not reason and plan.size <= SMALL


def _why_streamed(cfg: Any, parts: Parts, plan: Plan) -> str:
    """Why images cannot be kept on the device, and what to do about it; "" if they can."""
    if cfg.DATASET.RANDAUGMENT:
        return "DATASET.RANDAUGMENT needs images that are read in each epoch; set it to []"
    if plan.crop == "resized":
        return "DATASET.FOLDER.CROP resized needs the original images; set it to pad"

    count = len(parts.learned.samples) + len(parts.test.samples)
    size = count * CHANNELS * plan.size**2 / 1e9
    if size > cfg.DATASET.RESIDENT_GB:
        return (
            f"{count} images of {plan.size}x{plan.size} take {size:.2g} GB, and "
            f"DATASET.RESIDENT_GB is {cfg.DATASET.RESIDENT_GB:g}; increase it"
        )
    return ""


def _preprocessing(cfg: Any, plan: Plan) -> Preprocessing:
    from torchvision.transforms import InterpolationMode, v2

    size = plan.size
    mode = InterpolationMode(plan.interpolation)
    fixed: list[Any] = [v2.Resize((size, size), mode)]
    if plan.crop != "none":
        fixed = [v2.Resize(plan.resize, mode), v2.CenterCrop(size)]

    steps = list(fixed)
    if plan.crop == "resized":
        steps = [v2.RandomResizedCrop(size, interpolation=mode)]
    elif plan.crop == "pad":
        steps.append(v2.RandomCrop(size, padding=size // 8))
    if plan.flip:
        steps.append(v2.RandomHorizontalFlip())

    train: Transform = v2.Compose(with_randaugment([*steps, v2.PILToTensor()], cfg))
    test: Transform = v2.Compose([*fixed, v2.PILToTensor()])
    return Preprocessing(train, test, size, plan.mean, plan.std, plan.resize, plan.interpolation)
