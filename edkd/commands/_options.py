"""Options that several commands have."""

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edkd.commands._command_line import ArgumentParser, Once
from edkd.errors import UserError, reason_of

if TYPE_CHECKING:
    from edkd.types import InputSpec


def add_training(parser: ArgumentParser, config: str, default: str) -> None:
    """Add the options of commands that train.

    Args:
        config: path of the default configuration; "" for none.
        default: how the help text names it, as " (default: my.yaml)".
    """
    parser.add_argument(
        "--cfg", action=Once, default=config, metavar="FILE", help=f"a YAML file{default}"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in the output folder"
    )
    add_plugin(parser, "a Python file that registers methods, models, data sets or update rules")
    add_device(parser)


def add_plugin(parser: ArgumentParser, text: str = "") -> None:
    """Add --plugin.

    Args:
        text: of the help; empty: for commands that read a run, which knows its plugins.
    """
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE",
        help=text or "as in the command train (default: those of the run)",
    )


def add_device(parser: ArgumentParser, text: str = "") -> None:
    """Add --device.

    Args:
        text: what the help says before the values, as "for checkpoints: ".
    """
    parser.add_argument(
        "--device", default="auto", help=f"{text}auto, cuda, cuda:N, mps or cpu (default: auto)"
    )


def add_which(parser: ArgumentParser, of: str = "a run") -> None:
    """Add --which.

    Args:
        of: whose weights, for the help.
    """
    parser.add_argument(
        "--which",
        action=Once,
        default="",
        help=f"weights of {of}: best, latest, an epoch's number, or a file such as student1_best "
        "(default: best)",
    )


def add_runs(parser: ArgumentParser) -> None:
    """Add the folders of finished runs."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN_FOLDER",
        help="a run, or a folder that holds runs, at any depth",
    )


def add_network(parser: ArgumentParser) -> None:
    """Add the options that name a network, for files that do not."""
    parser.add_argument(
        "-m", "--model", default="", help="architecture, such as resnet8x4 (default: the file's)"
    )
    parser.add_argument("-d", "--dataset", default="", help="data set (default: the file's)")
    add_which(parser)
    add_plugin(parser)


def add_input(parser: ArgumentParser) -> None:
    """Add the options for the preparation of images, for files that do not describe it."""
    parser.add_argument(
        "--size", type=_size, metavar="N|HxW", help="image size in pixels (default: the file's)"
    )
    parser.add_argument(
        "--mean",
        type=_numbers,
        metavar="R,G,B",
        help="subtracted from pixels in [0, 1] (default: the file's)",
    )
    parser.add_argument(
        "--std",
        type=_positive_numbers,
        metavar="R,G,B",
        help="then divides them (default: the file's)",
    )


def completion(args: argparse.Namespace) -> "Callable[[InputSpec | None], InputSpec | None]":
    """A function that replaces the values of a file by those of the options.

    With a size of its own, the whole image is resized to it.
    """
    from edkd.types import InputSpec

    def complete(known: InputSpec | None) -> InputSpec | None:
        """The values of a file, or None, and those of the options; None where some are missing."""
        shape = (3, *args.size) if args.size else known and known.image_shape
        mean = args.mean or (known and known.mean)
        std = args.std or (known and known.std)
        if not shape or not mean or not std:
            return None
        if known and not args.size:
            return replace(known, mean=mean, std=std)
        return InputSpec(shape, mean, std, 0, known.interpolation if known else "bilinear")

    return complete


def class_names(path: str) -> tuple[str, ...]:
    """The lines of a text file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--names {path} cannot be read: {reason_of(error)}") from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def positive(text: str) -> int:
    """A whole number of at least 1, for `type` of an option."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no size in pixels, such as 224 or 224x160")
    return sides[0], sides[-1]


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise argparse.ArgumentTypeError(
            f"{text} must be three numbers with commas, such as 0.485,0.456,0.406"
        )
    return numbers


def _positive_numbers(text: str) -> tuple[float, ...]:
    numbers = _numbers(text)
    if min(numbers) <= 0:
        raise argparse.ArgumentTypeError(f"{text} must be three numbers above 0")
    return numbers
