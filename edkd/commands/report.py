"""The command report."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edkd.commands._command_line import ArgumentParser
from edkd.commands._options import add_device
from edkd.errors import warn
from edkd.invocation import command
from edkd.results.finding import search_runs
from edkd.results.runs import read_run
from edkd.results.table import table
from edkd.signals import hold

if TYPE_CHECKING:
    from edkd.report.blocks import Section
    from edkd.report.subject import Subject

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
    parser.add_argument(
        "--no-analysis",
        action="store_true",
        help="load no weights and no images; leave out what needs them",
    )
    add_device(parser, "for the analysis: ")
    args = parser.parse_args(argv)

    # The table needs only small files, so it comes first.
    found, left_out = search_runs(args.runs)
    runs = [read_run(folder) for folder in found]
    for line in left_out:
        warn(line)
    print(table(runs))

    from edkd.report.page import page
    from edkd.report.target import check_target

    check_target(args.output)
    analyse = None if args.no_analysis else _analysis(args.device)
    text = page(runs, left_out, analyse)

    with hold():
        from edkd.engine.checkpoint import save_text  # imports torch

    save_text(text, args.output)
    print(f"report: {args.output}")


def _analysis(device: str) -> "Callable[[Subject], list[Section]]":
    """A function that evaluates the runs on a data set."""
    with hold():  # a signal must not interrupt the import of torch, which takes seconds
        from edkd.report.analysis import Analyst
        from edkd.report.predictions import prediction_sections

    analyst = Analyst(device, _tell)
    return lambda subject: prediction_sections(analyst.findings(subject))


def _tell(line: str) -> None:
    """Print how far it is, where someone watches."""
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(f"{line}\n")
