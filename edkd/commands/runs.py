"""The command runs."""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from edkd.commands._command_line import ArgumentParser, given_path
from edkd.errors import UserError
from edkd.invocation import command
from edkd.watch.folders import find_folders, is_run
from edkd.watch.follow import follow
from edkd.watch.reading import read_all
from edkd.watch.status import RUNNING, STATES, Status
from edkd.watch.table import SORTS, as_json, chosen, ordered, summary, table

DEFAULT = Path("output")

DESCRIPTION = """List runs with their states, or follow them until they end.

{states}

Accuracies are top-1 in percent, of the last and of the best epoch. "left" is the time left, "age"
the time since the last step. States are read from the folders of the runs, so the runs of other
terminals, and of other machines that share the disk, are listed, too.

examples:
  {runs}
  {runs} output/cifar100_baselines --state running,stopped
  {runs} --match resnet20 --sort best
  {runs} output/digits/kd,res20,res8 --follow
  {runs} --json

--follow shows the log of a run as it grows, or a table of the running runs of a folder. Its exit
code is that of the run. Ctrl-C ends the display, not the run.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line; list or follow."""
    args = _parser().parse_args(argv)
    if args.follow:
        _follow(args)
        return

    runs = ordered(_chosen(args), args.sort, args.reverse)
    if args.json:
        print(json.dumps([as_json(run) for run in runs], indent=1))
        return
    if runs:
        print(table(runs))
        print()
    print(summary(runs))


def _parser() -> ArgumentParser:
    states = "\n".join(f"{state:10} {text}" for state, text in STATES.items())
    parser = ArgumentParser(
        prog=command("runs"),
        description=DESCRIPTION.format(runs=command("runs"), states=states),
    )

    # Where, and how.
    parser.add_argument(
        "folders",
        nargs="*",
        type=given_path,
        metavar="FOLDER",
        help=f"a run, or a folder that holds runs at any depth (default: {DEFAULT})",
    )
    parser.add_argument(
        "-f", "--follow", action="store_true", help="show the progress until the run ends"
    )

    # Which runs, in which order.
    parser.add_argument(
        "--state",
        type=lambda text: text.split(","),
        default=[],
        metavar="STATE[,STATE]",
        help=f"runs in these states: {', '.join(STATES)}",
    )
    parser.add_argument(
        "--match",
        action="append",
        default=[],
        metavar="WORD",
        help="runs whose line has this word; may be given several times",
    )
    parser.add_argument(
        "--sort", choices=list(SORTS), default="age", help="order (default: %(default)s)"
    )
    parser.add_argument("--reverse", action="store_true", help="reverse the order")
    parser.add_argument("--json", action="store_true", help="print JSON, one object for each run")

    return parser


def _chosen(args: Namespace) -> list[Status]:
    if not args.folders and not DEFAULT.exists():
        return []
    runs = read_all(find_folders(args.folders or [DEFAULT]))
    return chosen(runs, args.state, args.match)


def _follow(args: Namespace) -> None:
    """Follow a run, or those that run now; end with the exit code of the run that failed."""
    if args.json:
        raise UserError("--follow shows lines for people; leave out --json, or --follow")

    # Of a folder of runs, those that run now.
    runs = _chosen(args)
    is_single = len(args.folders) == 1 and is_run(args.folders[0])
    if not is_single:
        runs = [run for run in runs if run.state == RUNNING]
    if not runs:
        where = ", ".join(map(str, args.folders or [DEFAULT]))
        print(f"no run is running in {where}")
        return

    # Follow.
    ended = follow([run.folder for run in runs])
    code = max(run.exit_code or 0 for run in ended)
    if code:
        sys.exit(code)
