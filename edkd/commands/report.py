"""The command report."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edkd.commands._command_line import ArgumentParser, given_path
from edkd.commands._options import add_device, add_runs
from edkd.errors import warn
from edkd.invocation import command
from edkd.results.finding import search_runs
from edkd.results.runs import read_run
from edkd.results.table import table
from edkd.signals import hold

if TYPE_CHECKING:
    from edkd.report.blocks import Section
    from edkd.report.subject import Subject
    from edkd.results.runs import Run

DESCRIPTION = """Compare finished runs: a table, and a report as one HTML page.

The page has curves, the table, differences of configuration and environment, and times. From the
weights and the test images, it has confusion matrices, the images with the most confident errors,
calibration, and the agreement with the teacher; --no-analysis leaves these out. Runs that differ
only in their seed share a row, with mean and standard deviation over the seeds.

examples:
  {report} output/demo
  {report} output/demo/* --picture curves.png
  {report} output/demo --output demo.html --no-analysis
  {report} output/cifar100_baselines/kd,res56,res20 output/cifar100_baselines/edkd,res56,res20
"""

_DEFAULT = Path("report.html")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, print the table, write the page."""
    parser = ArgumentParser(
        prog=command("report"), description=DESCRIPTION.format(report=command("report"))
    )
    add_runs(parser)
    parser.add_argument(
        "--output",
        type=given_path,
        metavar="FILE",
        help=f"the page (default: {_DEFAULT}); an earlier report is replaced",
    )
    parser.add_argument(
        "--picture",
        type=given_path,
        metavar="FILE",
        help="draw the curves to it (.png, .svg, .pdf); without --output, no page is written",
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
    for line in left_out:
        warn(line)
    runs = [read_run(folder) for folder in found]
    print(table(runs))

    # What cannot work is refused before anything is written or evaluated.
    target = _target(args)
    if target:
        _check_page(target)

    if args.picture:
        from edkd.results.figures import draw_curves

        draw_curves(runs, args.picture)
        print(f"curves: {args.picture}")

    if target:
        _write_page(target, runs, left_out, None if args.no_analysis else args.device)
        print(f"report: {target}")


def _target(args: argparse.Namespace) -> Path | None:
    """The page to write; None: a picture alone is wanted."""
    if args.picture and not args.output:
        return None
    return args.output or _DEFAULT


def _check_page(target: Path) -> None:
    """Raise UserError where a page cannot be written."""
    from edkd.report.page import check_packages
    from edkd.report.target import check_target

    check_packages()
    check_target(target)


def _write_page(
    target: Path, runs: "Sequence[Run]", left_out: Sequence[str], device: str | None
) -> None:
    """Write the page.

    Args:
        device: evaluates the runs; None: they are not evaluated.
    """
    from edkd.report.page import page
    from edkd.results.files import write_text

    analysis = _analysis(device) if device else None
    write_text(page(runs, left_out, analysis), target)


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
