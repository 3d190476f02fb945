"""The command profile."""

import json
import os
from collections.abc import Sequence
from typing import Any

from edkd.columns import aligned
from edkd.commands._command_line import ArgumentParser
from edkd.commands._options import add_device, add_plugin, positive
from edkd.errors import UserError
from edkd.invocation import command
from edkd.signals import hold

DESCRIPTION = """Parameters, multiply-accumulates (MACs), size and latency of models.

A MODEL is a name, the folder of a run, or a file of weights that names its model.

examples:
  {profile} resnet56 resnet20
  {profile} ResNet34 MobileNetV1 -d imagenet --batch-size 32
  {profile} torchvision/resnet50 torchvision/mobilenet_v3_small --size 224
  {profile} output/digits/vanilla,resnet20 output/digits/kd,res20,res8 --json

MACs are those of convolutions and matrix products for one image. Times are medians of several
forward passes in float32; other work on the machine makes them longer.
"""

HEADER = ("model", "input", "classes", "parameters", "MACs", "weights")

BATCH_SIZE = 64


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, measure each model, print a table."""
    args = _parser().parse_intermixed_args(argv)

    with hold():  # a signal must not interrupt the import of torch, which takes seconds
        from edkd.engine.named_network import Wanted, build_named
        from edkd.engine.profile import profile_named

    # All names are read before the first measurement.
    wanted = Wanted(args.model, args.dataset, args.size, args.num_classes, args.plugin)
    networks = [build_named(word, wanted) for word in args.models]
    has_file = any(os.path.exists(os.path.expanduser(word)) for word in args.models)
    if args.model and not has_file:
        raise UserError(
            f"-m {args.model} is for a file that does not name its model; give one, or write "
            f"{args.model} among the models"
        )

    batch_sizes = sorted({1, args.batch_size})
    records = [profile_named(named, args.device, batch_sizes) for named in networks]

    print(json.dumps(records, indent=2) if args.json else _table(records))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog=command("profile"), description=DESCRIPTION.format(profile=command("profile"))
    )

    # What is measured.
    parser.add_argument("models", nargs="+", metavar="MODEL", help="name, run folder or file")
    parser.add_argument(
        "-m", "--model", default="", help="architecture of a file that does not name its own"
    )
    parser.add_argument(
        "-d",
        "--dataset",
        default="",
        help="data set that decides the image size, the number of classes and which model a plain "
        "name means; its images are not read (default: that of the run or file, else one for which "
        "the model is made)",
    )
    parser.add_argument(
        "--size",
        type=positive,
        default=0,
        metavar="PIXELS",
        help="height and width of the images (default: as trained, or of the data set)",
    )
    parser.add_argument(
        "--num-classes",
        type=positive,
        default=0,
        metavar="N",
        help="number of classes (default: as trained, or of the data set)",
    )
    add_plugin(parser)

    # How.
    parser.add_argument(
        "-bs",
        "--batch-size",
        type=positive,
        default=BATCH_SIZE,
        metavar="N",
        help=f"images of a second timed forward pass; the first has one (default: {BATCH_SIZE})",
    )
    add_device(parser)

    # How it is printed.
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


# The table.


def _table(records: Sequence[dict[str, Any]]) -> str:
    """A line for each model, and one for where the times were measured."""
    first = records[0]
    timed = [timing["batch_size"] for timing in first["latency"]]
    header = [*HEADER, *(f"batch {size}" for size in timed), "images/s"]
    rows = [header, *(_cells(record) for record in records)]

    lines = aligned(rows, right=range(1, len(header)))
    lines.append(f"\nfloat32 on {_device(first)}; images/s with batch {timed[-1]}")
    return "\n".join(lines)


def _device(record: dict[str, Any]) -> str:
    """As "cpu, 2 threads"."""
    device = str(record["device"])
    if device != "cpu":
        return device
    threads = record["threads"]
    plural = "s" if threads > 1 else ""
    return f"cpu, {threads} thread{plural}"


def _cells(record: dict[str, Any]) -> list[str]:
    latency = record["latency"]
    return [
        record["model"],
        "x".join(map(str, record["image_shape"])),
        str(record["num_classes"]),
        f"{record['parameters']:,}",
        _macs(record["macs"]),
        f"{record['megabytes']:.2f} MB",
        *(f"{timing['milliseconds']:.2f} ms" for timing in latency),
        _rate(latency[-1]["images_per_second"]),
    ]


def _macs(number: int) -> str:
    """In billions or millions, as papers have it."""
    return f"{number / 1e9:.2f} G" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _rate(number: float) -> str:
    """With about three digits."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
