"""The command check-data."""

from collections.abc import Sequence

from edkd.commands._command_line import ArgumentParser, given_path
from edkd.errors import UserError
from edkd.invocation import command
from edkd.signals import hold

DESCRIPTION = """Read every image of a folder, and list what is wrong with it.

The folder is ROOT/{{train,val,test}}/<class>/*, or ROOT/<class>/*. Listed are

- files that cannot be read, each with the reason
- classes without images, and classes that one part lacks
- in a folder without parts, classes with a single image, which cannot be in both sets
- identical image files in two parts, or under two classes of a part
- for each part: numbers of classes and images, image sizes and modes, skipped files

The exit code is 0 if nothing is wrong, else 2.

examples:
  {check_data} photos
  {check_data} data/imagenet --workers 16
"""

SHOWN = 10
"""Lines of a kind that are printed; files that cannot be read are all listed."""

ALL = "unreadable images"


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and check the folder."""
    name = command("check-data")
    parser = ArgumentParser(prog=name, description=DESCRIPTION.format(check_data=name))
    parser.add_argument("root", type=given_path, metavar="ROOT", help="folder of the images")
    parser.add_argument(
        "--workers",
        type=int,
        default=16,
        metavar="N",
        help="processes that read, at most one for each available core; 0: this process reads "
        "(default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.workers < 0:
        raise UserError(f"--workers {args.workers}: give 0, or a number of processes")

    with hold():  # a signal must not interrupt the import of torch, which takes seconds
        from edkd.dataset.cores import workers_for
        from edkd.dataset.folder_checks import warn_of_single_class
        from edkd.dataset.folder_report import describe, report_on

    root = args.root.expanduser()
    report = report_on(root, workers_for(args.workers))

    # What is wrong.
    for noun, lines in report.faults.items():
        limit = len(lines) if noun == ALL else SHOWN
        print("\n".join(lines[:limit]))
        if len(lines) > limit:
            print(f"and {len(lines) - limit} more")

    # What there is.
    for part in report.parts:
        print("\n".join(describe(part)))
    warn_of_single_class(report.parts[0].listing)
    if report.faults:
        counts = ", ".join(f"{noun} ({len(lines)})" for noun, lines in report.faults.items())
        raise UserError(f"{root}: {counts}; the lines above name them")
    print("nothing is wrong")
