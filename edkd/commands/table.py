"""The command table."""

import argparse
from collections.abc import Callable, Sequence

from edkd.commands._command_line import ArgumentParser, given_path
from edkd.commands._options import add_runs
from edkd.invocation import command

DESCRIPTION = """Compare methods over seeds: a table for a paper, from finished runs.

For each pair of teacher and student and each method: mean and standard deviation over the seeds,
last and best epoch, Welch's t-test against a baseline with a verdict (BEATS, INCONCLUSIVE, WORSE),
the seeds that a difference of that size needs, and the published figure with its protocol.

Runs with different protocols (epochs, batch size, learning rate, ...) are not mixed in the column
of a pair. Outliers are listed, and count. docs/tables.md explains how to read a table.

examples:
  {table} output/digits
  {table} output/cifar100_baselines --baseline KD
  {table} output/cifar100_baselines --by best --format latex --output table.tex
  {table} output/digits --format csv --output table.csv
"""

FORMATS = ("text", "markdown", "latex", "csv")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, and print or write the table."""
    args = _parser().parse_args(argv)
    if args.layout and args.format == "csv":
        _parser().error("--layout is for text, markdown and latex; csv has a line for each method")

    text = _table(args)
    if not args.output:
        print(text)
        return

    from edkd.results.files import write_text

    write_text(f"{text}\n", args.output)
    if args.output.parts[:2] != ("/", "dev"):  # /dev/stdout has the table alone
        print(f"table: {args.output}")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog=command("table"), description=DESCRIPTION.format(table=command("table"))
    )
    add_runs(parser)
    parser.add_argument(
        "--baseline",
        default="",
        metavar="METHOD",
        help="the row that all others are tested against, such as KD or 'EDKD (reference)'; "
        "default: the student alone (NONE)",
    )
    parser.add_argument(
        "--by",
        choices=("last", "best"),
        default="last",
        help="the epoch whose accuracy is tested (default: last)",
    )
    parser.add_argument(
        "--alpha",
        type=_share,
        default=0.05,
        metavar="SHARE",
        help="significance level, between 0 and 1 (default: 0.05)",
    )
    parser.add_argument(
        "--mix-protocols",
        action="store_true",
        help="allow runs with different protocols in a column; each row then has its protocol, and "
        "rows with another one than the baseline get no verdict",
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    parser.add_argument(
        "--layout",
        choices=("long", "wide"),
        default="",
        help="long: a table for each pair, with all figures; wide: one table with a column for "
        "each pair (default: long, but wide for LaTeX with several pairs)",
    )
    parser.add_argument("--output", type=given_path, metavar="FILE", help="write to it instead")
    return parser


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, not {text}")
    return value


def _table(args: argparse.Namespace) -> str:
    """The table as text."""
    from edkd.results.comparison import columns_of
    from edkd.results.grid import Choice, long_grid, wide_grid
    from edkd.results.notes import notes_of
    from edkd.results.runs import find_runs, read_run
    from edkd.results.verdicts import judged

    runs = [read_run(folder) for folder in find_runs(args.runs)]
    columns = columns_of(runs, args.mix_protocols)
    tables = judged(columns, args.baseline, args.by, args.alpha)
    choice = Choice(args.by, args.alpha, is_full=args.format != "text")

    if args.format == "csv":
        from edkd.results.records import as_csv

        return as_csv(tables, choice)

    is_wide = args.layout == "wide"
    if not args.layout:
        is_wide = args.format == "latex" and len(tables) > 1

    grids = [wide_grid(tables, choice)]
    if not is_wide:
        grids = [long_grid(one, choice) for one in tables]
    return _writer(args.format)(grids, notes_of(tables, choice, is_wide))


def _writer(name: str) -> Callable[..., str]:
    from edkd.results import formats

    writers = {
        "text": formats.as_text,
        "markdown": formats.as_markdown,
        "latex": formats.as_latex,
    }
    return writers[name]
