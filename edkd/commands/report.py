"""The command report."""

from collections.abc import Sequence
from pathlib import Path

from edkd.commands._command_line import ArgumentParser
from edkd.invocation import command
from edkd.results.runs import find_runs, read_run
from edkd.results.table import table

DESCRIPTION = """Compare finished runs: a table of accuracies, and a picture of the curves.

Runs that differ only in their seed share a row, with mean and standard deviation over the seeds.

examples:
  {report} output/demo
  {report} output/demo/* --picture curves.png
  {report} output/cifar100_baselines/kd,res56,res20 output/cifar100_baselines/edkd,res56,res20
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, print the table, draw the picture."""
    parser = ArgumentParser(
        prog=command("report"), description=DESCRIPTION.format(report=command("report"))
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN_FOLDER",
        help="a run, or a folder that holds runs, at any depth",
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw the curves to it (.png, .svg, .pdf)"
    )
    args = parser.parse_args(argv)

    runs = [read_run(folder) for folder in find_runs(args.runs)]
    print(table(runs))

    if args.picture:
        from edkd.results.figures import draw_curves

        draw_curves(runs, args.picture)
        print(f"curves: {args.picture}")
