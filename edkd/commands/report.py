"""The command report."""

from collections.abc import Sequence
from pathlib import Path

from edkd.commands._command_line import ArgumentParser
from edkd.invocation import command
from edkd.results.runs import find_runs, read_run
from edkd.results.table import table

DESCRIPTION = """Write a report about finished runs: one HTML page, and a table on standard output.

The page has curves, the table, differences of configuration and environment, and times. From the
weights and the test images, it has confusion matrices, the images with the most confident errors,
calibration, and the agreement with the teacher; --no-analysis leaves these out. Runs that differ
only in their seed share a row, with mean and standard deviation over the seeds.

examples:
  {report} output/demo
  {report} output/demo/* --output demo.html --no-analysis
  {report} output/cifar100_baselines/kd,res56,res20 output/cifar100_baselines/edkd,res56,res20
"""

_DEFAULT = Path("report.html")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, print the table, write the page."""
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
        "--output",
        type=Path,
        default=_DEFAULT,
        metavar="FILE",
        help=f"the page (default: {_DEFAULT}); an earlier report is replaced",
    )
    args = parser.parse_args(argv)

    runs = [read_run(folder) for folder in find_runs(args.runs)]
    print(table(runs))

    from edkd.report.page import page
    from edkd.report.target import check_target

    check_target(args.output)
    text = page(runs)

    from edkd.engine.checkpoint import save_text  # imports torch

    save_text(text, args.output)
    print(f"report: {args.output}")
