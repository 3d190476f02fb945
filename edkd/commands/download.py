"""The command download."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from edkd import download
from edkd.commands._command_line import ArgumentParser
from edkd.invocation import command
from edkd.paths import DATA_ROOT
from edkd.signals import Stopped

DESCRIPTION = """Download data sets and published teachers, and put the files in place.

Interrupted downloads are resumed, files are verified, and complete files are kept.

examples:
  {download} cifar100 teachers
  {download} imagenet_teachers --into /mnt/data
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and download each name in turn."""
    parser = ArgumentParser(
        prog=command("download"), description=DESCRIPTION.format(download=command("download"))
    )

    parser.add_argument(
        "names",
        nargs="+",
        choices=download.CATALOGUE,
        metavar="NAME",
        help=", ".join(download.CATALOGUE),
    )
    parser.add_argument(
        "--into", type=Path, default=DATA_ROOT, metavar="DIR", help=f"(default: {DATA_ROOT})"
    )
    args = parser.parse_args(argv)

    try:
        for name in args.names:
            download.fetch(name, args.into, say=partial(print, flush=True))
    except Stopped as stopped:
        stopped.hint = "the same command resumes the download"
        raise
