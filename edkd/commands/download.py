"""The command download."""

from argparse import ArgumentTypeError
from collections.abc import Sequence
from functools import partial

from edkd import download
from edkd.commands._command_line import ArgumentParser, given_path
from edkd.hints import hint
from edkd.invocation import command
from edkd.paths import DATA_ROOT
from edkd.signals import Stopped

DESCRIPTION = """Download data sets and published teachers, and put the files in place.

Interrupted downloads are resumed, files are verified, and complete files are kept.

examples:
  {download} cifar100 teachers
  {download} mnist fashion_mnist svhn
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
        type=_name,
        metavar="NAME",
        help=", ".join(download.CATALOGUE),
    )
    parser.add_argument(
        "--into", type=given_path, default=DATA_ROOT, metavar="DIR", help=f"(default: {DATA_ROOT})"
    )
    args = parser.parse_args(argv)

    try:
        for name in args.names:
            download.fetch(name, args.into, say=partial(print, flush=True))
    except Stopped as stopped:
        stopped.hint = "the same command resumes the download"
        raise


def _name(name: str) -> str:
    if name in download.CATALOGUE:
        return name
    about = hint(name, download.CATALOGUE)
    if name.lower() == "imagenet":
        about = "; its licence forbids redistribution, and data/README.md has the layout of a copy"
    known = ", ".join(download.CATALOGUE)
    raise ArgumentTypeError(f"{name!r} cannot be downloaded{about} (known: {known})")
