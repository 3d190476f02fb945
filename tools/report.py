"""Compare finished runs: python tools/report.py RUN_FOLDER [RUN_FOLDER ...] [--picture FILE]."""

from collections.abc import Sequence
from pathlib import Path

from edkd.errors import ArgumentParser, run_command
from edkd.stop import hold


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, print the table, draw the picture."""
    parser = ArgumentParser(
        description="A table of what runs reached; runs that differ in their seed alone share a row."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="folders below output/")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the curves into it (.png, .svg, .pdf)")
    args = parser.parse_args(argv)

    with hold():  # torch takes seconds to load, and must not be cut short by a signal
        from edkd.engine.report import draw_curves, read_run, table

    runs = [read_run(folder) for folder in dict.fromkeys(folder.resolve() for folder in args.runs)]
    print(table(runs))
    if args.picture:
        draw_curves(runs, args.picture)
        print(f"curves: {args.picture}")


if __name__ == "__main__":
    run_command(main)
