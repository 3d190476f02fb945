"""Fetch data sets and published teachers into place: `python tools/download.py cifar100 teachers`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from edkd.download import CATALOGUE, fetch
from edkd.errors import ArgumentParser, run_command
from edkd.paths import DATA_ROOT


def main(argv: Sequence[str] | None = None) -> None:
    """Parse `argv` (default: the command line) and fetch each name in turn."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=CATALOGUE, metavar="NAME", help=", ".join(CATALOGUE))
    parser.add_argument("--into", type=Path, default=DATA_ROOT, metavar="DIR", help=f"default: {DATA_ROOT}")
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        fetch(name, arguments.into, say=partial(print, flush=True))


if __name__ == "__main__":
    run_command(main, stopped="stopped; running this again goes on from here")
